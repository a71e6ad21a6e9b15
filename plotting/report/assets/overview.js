// All tasks of a model over training, a lane each: the metric as a line, the circuit's size as bars, where the task is
// learned, and at which checkpoints the circuit changes by more than noise. A press goes to that circuit.

const LANE = { title: 19, height: 46, gap: 9, left: 46, right: 8, axis: 36 };

class Overview {
  // `go(task, step)` shows a circuit.
  constructor(records, go) {
    Object.assign(this, { records, go });
    this.holder = byId("lanes");
    let wide = 0;
    new ResizeObserver(() => {
      if (this.holder.clientWidth === wide || !this.now) return;
      wide = this.holder.clientWidth;
      this.draw(...this.now);
    }).observe(this.holder);
  }

  // The lanes of a model; the circuit that is shown, of `task` at `step`, is marked.
  draw(model, task, step) {
    this.now = [model, task, step];
    const records = this.records.filter((record) => record.model === model);
    const steps = [...new Map(records.flatMap((record) => record.steps.map((state) => [state.step, state.tokens])))].sort((a, b) => a[0] - b[0]);
    const { left, right, title, height, gap, axis } = LANE;
    const width = Math.max(280, this.holder.clientWidth);
    const slot = (width - left - right) / steps.length;
    const x = (at) => left + (steps.findIndex(([own]) => own === at) + 0.5) * slot;
    const total = records.length * (title + height + gap) + axis;
    const svg = svgElement("svg", { width, height: total, viewBox: `0 0 ${width} ${total}`, class: "lanes", role: "img", "aria-label": `${model}: metric and circuit size of ${count(records.length, "task")} over training` });
    records.forEach((record, row) => {
      const top = row * (title + height + gap) + title;
      svg.append(this.lane(record, { x, slot, top, width, at: record.task === task ? step : null }));
    });
    const foot = total - axis + 4;
    const every = Math.ceil(48 / slot);
    // From the last one back, so that it has its label.
    steps.forEach(([own, tokens], i) => {
      if ((steps.length - 1 - i) % every) return;
      svg.append(svgElement("text", { x: x(own), y: foot + 9, class: "tick" }, shownNumber(own)));
      svg.append(svgElement("text", { x: x(own), y: foot + 23, class: "tick" }, tokens === null ? "" : compactNumber(tokens)));
    });
    svg.append(svgElement("text", { x: 0, y: foot + 9, class: "tick name" }, "step"));
    if (steps.some(([, tokens]) => tokens !== null)) svg.append(svgElement("text", { x: 0, y: foot + 23, class: "tick name" }, "tokens"));
    this.holder.replaceChildren(svg);
  }

  lane(record, { x, slot, top, width, at }) {
    const { left, right, height } = LANE;
    const bottom = top + height;
    const lane = svgElement("g", { class: "lane", "data-task": record.task });
    const states = record.steps;
    const most = Math.max(0, ...states.map((state) => state.size));
    const values = states.map((state) => state.full).filter((value) => value !== undefined);
    const [low, high] = [Math.min(0, ...values), Math.max(0, ...values)];
    lane.append(svgElement("text", { x: left, y: top - 6, class: "title" }, record.label));
    const [metric, circuit] = width < 520 ? ["", ""] : ["metric up to ", "circuit up to "];
    const told = [values.length ? `${metric}${shownNumber(Number(high.toPrecision(3)))}` : null, most ? `${circuit}${count(most, "edge")}` : "no circuit"];
    lane.append(svgElement("text", { x: width - right, y: top - 6, class: "told" }, told.filter(Boolean).join(", ")));
    const [before, learned] = record.learned ?? [];
    if (learned !== undefined) {
      const from = before === null ? left : x(before);
      const band = svgElement("rect", { x: from, y: top, width: Math.max(2, x(learned) - from), height, class: "learned" });
      band.append(svgElement("title", {}, before === null ? `learned by step ${shownNumber(learned)}` : `learned between steps ${shownNumber(before)} and ${shownNumber(learned)}`));
      lane.append(band);
    }
    lane.append(svgElement("line", { x1: left, x2: width - right, y1: bottom, y2: bottom, class: "base" }));
    let path = "";
    for (const state of states) {
      const [centre, size] = [x(state.step), state.size];
      const changed = record.changed?.includes(state.step);
      const words = [`step ${shownNumber(state.step)}`, size ? count(size, "edge") : (state.status ?? "no circuit"), changed ? "changed by more than noise" : null];
      const group = svgElement("g", { class: state.step === at ? "checkpoint now" : "checkpoint" });
      group.append(svgElement("title", {}, words.filter(Boolean).join(", ")));
      if (size) {
        const tall = Math.max(2, (size / most) * (height - 4));
        group.append(svgElement("rect", { x: centre - 0.36 * slot, y: bottom - tall, width: 0.72 * slot, height: tall, class: changed ? "bar changed" : "bar" }));
      } else group.append(svgElement("path", { d: `M${centre - 3} ${bottom - 7}l6 6m0 -6l-6 6`, class: "none" }));
      group.append(svgElement("rect", { x: centre - 0.5 * slot, y: top - 3, width: slot, height: height + 3, class: "press" }));
      group.addEventListener("click", () => this.go(record.task, state.step));
      lane.append(group);
      if (state.full !== undefined) {
        const y = bottom - 2 - ((state.full - low) / (high - low || 1)) * (height - 6);
        path += `${path ? "L" : "M"}${centre.toFixed(1)} ${y.toFixed(1)}`;
      }
    }
    lane.append(svgElement("path", { d: path, class: "metric" }));
    return lane;
  }
}
