// The circuit section: choice of model and task, the slider over checkpoints, what changed since the last circuit.

const PLAY_PAUSE = 900;

class CircuitView {
  constructor(records, headRecords) {
    this.records = records;
    this.headRecords = headRecords;
    this.drawing = new CircuitDrawing(byId("drawing"), byId("tip"));
    this.table = new SortTable(byId("edge-table"), "Edges of the circuit");
    this.slider = byId("step");
    const models = [...new Set(records.map((record) => record.model))];
    fillSelect(byId("circuit-model"), models.map((model) => [model, model]));
    this.listen();
    this.chooseModel();
  }

  listen() {
    byId("circuit-model").addEventListener("change", () => this.chooseModel());
    byId("circuit-task").addEventListener("change", () => this.chooseRecord());
    this.slider.addEventListener("input", () => this.show());
    byId("previous-step").addEventListener("click", () => this.move(-1));
    byId("next-step").addEventListener("click", () => this.move(1));
    byId("play").addEventListener("click", () => this.play());
    for (const id of ["circuit-strongest", "show-kept", "show-added", "show-removed"]) {
      byId(id).addEventListener("change", () => this.show());
    }
    byId("edge-list").addEventListener("toggle", () => this.fillTable());
    let wide = window.innerWidth;
    window.addEventListener("resize", () => {
      // Phones resize in height whenever their address bar goes.
      if (window.innerWidth === wide) return;
      wide = window.innerWidth;
      this.drawing.resize();
      this.drawTimeline();
      this.show();
    });
  }

  chooseModel() {
    const own = this.records.filter((record) => record.model === byId("circuit-model").value);
    fillSelect(byId("circuit-task"), own.map((record) => [record.task, record.label]), this.record?.task);
    this.chooseRecord();
  }

  chooseRecord() {
    const [model, task] = [byId("circuit-model").value, byId("circuit-task").value];
    const before = this.state?.step;
    this.record = this.records.find((record) => record.model === model && record.task === task);
    const { steps } = this.record;
    this.slider.max = Math.max(0, steps.length - 1);
    this.slider.disabled = steps.length < 2;
    const same = steps.findIndex((state) => state.step === before);
    this.slider.value = same < 0 ? steps.length - 1 : same;
    this.strongestEver = null;
    this.drawing.setRecord(this.record, (node, edge) => this.describe(node, edge));
    this.drawTimeline();
    this.show();
  }

  move(by) {
    this.slider.value = Number(this.slider.value) + by;
    this.show();
  }

  play() {
    const button = byId("play");
    const stop = () => {
      clearInterval(this.timer);
      this.timer = null;
      button.textContent = "Play";
      button.setAttribute("aria-pressed", "false");
    };
    if (this.timer) return stop();
    if (this.slider.value === this.slider.max) { this.slider.value = 0; this.show(); }
    button.textContent = "Stop";
    button.setAttribute("aria-pressed", "true");
    this.timer = setInterval(() => {
      this.move(1);
      if (this.slider.value === this.slider.max) stop();
    }, PLAY_PAUSE);
    return undefined;
  }

  // Bars of the circuits' sizes above the slider, one per checkpoint.
  drawTimeline() {
    const holder = byId("timeline");
    const { steps } = this.record;
    const most = Math.max(1, ...steps.map((state) => state.edges.length));
    const [width, height] = [1000, 40];
    const slot = width / steps.length;
    this.slider.style.setProperty("--n", steps.length);
    holder.setAttribute("viewBox", `0 0 ${width} ${height}`);
    holder.setAttribute("preserveAspectRatio", "none");
    this.bars = steps.map((state, index) => {
      const size = state.edges.length ? Math.max(2, (height - 2) * (state.edges.length / most)) : 1;
      const bar = { x: (index + 0.1) * slot, y: height - size, width: 0.8 * slot, height: size };
      return svgElement("rect", { ...bar, class: state.edges.length ? "bar" : "bar none" });
    });
    holder.replaceChildren(...this.bars);
    holder.onclick = (event) => {
      const frame = holder.getBoundingClientRect();
      this.slider.value = Math.floor(((event.clientX - frame.left) / frame.width) * steps.length);
      this.show();
    };
  }

  // Edges of the checkpoint chosen and their state against the last checkpoint before it that has a circuit.
  compare() {
    const { steps } = this.record;
    const at = Number(this.slider.value);
    this.state = steps[at];
    this.before = steps.slice(0, at).findLast((state) => state.edges.length) ?? null;
    this.now = new Map(this.state.edges.map((edge, i) => [edge, this.state.scores[i]]));
    this.then = new Map((this.before?.edges ?? []).map((edge, i) => [edge, this.before.scores[i]]));
    const items = [];
    for (const [edge, score] of this.now) {
      items.push({ edge, score, state: this.then.has(edge) ? "kept" : "added" });
    }
    if (!this.before) items.forEach((item) => { item.state = "only"; });
    if (this.now.size) {
      for (const [edge, score] of this.then) {
        if (!this.now.has(edge)) items.push({ edge, score, state: "removed" });
      }
    }
    return items;
  }

  show() {
    this.items = this.compare();
    const limit = byId("circuit-strongest").value === "all" ? Infinity : Number(byId("circuit-strongest").value);
    const wanted = { kept: "show-kept", only: "show-kept", added: "show-added", removed: "show-removed" };
    const chosen = this.items.filter((item) => byId(wanted[item.state]).checked);
    const strongestFirst = (a, b) => Math.abs(b.score) - Math.abs(a.score);
    const present = chosen.filter((item) => item.state !== "removed").sort(strongestFirst).slice(0, limit);
    const gone = chosen.filter((item) => item.state === "removed").sort(strongestFirst).slice(0, limit);
    const strongest = Math.max(0, ...this.state.scores.map(Math.abs)) || 1;
    this.drawing.draw([...present, ...gone], strongest, this.nodeStates());
    this.tell(present.length, gone.length);
    this.bars.forEach((bar, index) => bar.classList.toggle("now", index === Number(this.slider.value)));
    this.fillTable();
  }

  nodeStates() {
    const nodesOf = (edges) => new Set([...edges.keys()].flatMap((edge) => this.record.edges.slice(3 * edge, 3 * edge + 2)));
    const [now, then] = [nodesOf(this.now), nodesOf(this.then)];
    const states = new Map();
    for (const node of now) states.set(node, this.before && !then.has(node) ? "new" : "in");
    if (now.size) for (const node of then) if (!now.has(node)) states.set(node, "gone");
    return states;
  }

  tell(present, gone) {
    const { state, before } = this;
    const tokens = state.tokens === null ? "" : ` (${compactNumber(state.tokens)} tokens)`;
    byId("step-label").textContent = `step ${shownNumber(state.step)}${tokens}`;
    this.slider.setAttribute("aria-valuetext", `step ${state.step}`);
    byId("previous-step").disabled = this.slider.value === this.slider.min;
    byId("next-step").disabled = this.slider.value === this.slider.max;
    const facts = [];
    if (this.now.size) facts.push(`${count(this.now.size, "edge")}, ${count(state.nodes, "node")}`);
    else facts.push(`No circuit${state.status ? `: ${state.status}` : ""}`);
    if (state.faithfulness !== undefined) {
      const interval = state.faithfulness_low === undefined ? "" : ` (95%: ${shownNumber(state.faithfulness_low)} to ${shownNumber(state.faithfulness_high)})`;
      facts.push(`faithfulness ${shownNumber(state.faithfulness)}${interval}`);
    }
    if (state.full !== undefined) {
      facts.push(`${this.record.metric} of the whole model ${shownNumber(state.full)}, on corrupted prompts ${shownNumber(state.corrupted)}`);
    }
    byId("facts").textContent = `${facts.join(" · ")}.`;
    const total = (name) => this.items.filter((item) => item.state === name).length;
    const lines = [];
    if (!this.now.size) lines.push("");
    else if (!before) lines.push("The first circuit: nothing before it to compare with.");
    else lines.push(`Since step ${shownNumber(before.step)}: ${count(total("added"), "edge")} added, ${shownNumber(total("removed"))} removed, ${shownNumber(total("kept"))} kept.`);
    const hidden = this.now.size - present;
    if (hidden > 0) lines.push(`${count(present, "edge")} of ${shownNumber(this.now.size)} drawn.`);
    if (gone < total("removed")) lines.push(`${shownNumber(gone)} of ${shownNumber(total("removed"))} removed ones drawn.`);
    byId("change").textContent = lines.join(" ");
  }

  describe(node, item) {
    return item ? this.describeEdge(item) : this.describeNode(node);
  }

  describeEdge({ edge, score, state }) {
    const lines = [this.drawing.edgeName(edge)];
    const before = this.before ? `step ${shownNumber(this.before.step)}` : "";
    if (state === "removed") return [...lines, `score ${signed(score)} at ${before}`, "removed since"];
    lines.push(`score ${signed(score)}`);
    if (state === "kept") lines.push(`${signed(this.then.get(edge))} at ${before}`);
    if (state === "added") lines.push(`added since ${before}`);
    return lines;
  }

  describeNode(node) {
    const [name] = this.record.nodes[node];
    const lines = [name];
    const own = [...this.now].map(([edge, score]) => [this.record.edges.slice(3 * edge, 3 * edge + 2), score]);
    const into = own.filter(([[, target]]) => target === node);
    const from = own.filter(([[source]]) => source === node);
    if (into.length + from.length === 0) return [...lines, "not in this checkpoint's circuit"];
    const sum = (edges) => signed(edges.reduce((total, [, score]) => total + score, 0));
    if (into.length) lines.push(`${count(into.length, "edge")} in, scores sum to ${sum(into)}`);
    if (from.length) lines.push(`${count(from.length, "edge")} out, scores sum to ${sum(from)}`);
    const match = name.match(/^a(\d+)\.h(\d+)$/);
    return match ? [...lines, ...this.headScores(Number(match[1]), Number(match[2]))] : lines;
  }

  // The head's scores at this checkpoint, where they were measured.
  headScores(layer, head) {
    const record = this.headRecords.find((candidate) => candidate.model === this.record.model);
    const place = record ? record.heads.findIndex(([l, h]) => l === layer && h === head) : -1;
    if (place < 0) return [];
    return record.scores.flatMap((score) => {
      const value = score.values[score.steps.indexOf(this.state.step)]?.[place];
      return value === null || value === undefined ? [] : [`${score.title}: ${shownNumber(value)}`];
    });
  }

  fillTable() {
    if (!byId("edge-list").open) return;
    if (!this.table.columns.length) {
      this.table.setColumns(
        [
          { key: "source", title: "Source", type: "text" },
          { key: "target", title: "Target", type: "text" },
          { key: "score", title: "Score", type: "number", format: signedOrNone },
          { key: "earlier", title: "Score before", type: "number", format: signedOrNone },
          { key: "size", title: "|Score|", type: "number" },
          { key: "state", title: "State", type: "choice" },
        ],
        ["size", false],
      );
    }
    this.table.setRows(
      this.items.map(({ edge, score, state }) => {
        const [source, target] = this.drawing.edgeName(edge).split(" → ");
        const earlier = this.then.get(edge) ?? null;
        const now = state === "removed" ? null : score;
        return { source, target, score: now, earlier, size: Math.abs(score), state: state === "only" ? null : state };
      }),
    );
  }
}

const signedOrNone = (value) => (value === null || value === undefined ? "–" : signed(value));
