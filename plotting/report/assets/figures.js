// The figures: whole where the page is wide enough, else as they are laid out for a phone; drawn when they come into view, or when the page
// has nothing else to do.

class FigureView {
  constructor(holder, record, template) {
    this.holder = holder;
    this.record = record;
    this.template = template;
    this.legend = holder.parentElement.querySelector(".legend");
    this.off = new Set();
    this.drawn = null;
  }

  draw() {
    const { record, holder } = this;
    const drawing = holder.clientWidth >= record.least ? record.whole : record.phone;
    if (this.drawn === drawing) return;
    this.drawn = drawing;
    for (const old of holder.querySelectorAll(".js-plotly-plot")) Plotly.purge(old);
    holder.replaceChildren();
    this.off.clear();
    this.plot = this.plotted(drawing);
    holder.style.minHeight = "";
    this.fillLegend();
  }

  plotted(drawing) {
    const place = element("div");
    this.holder.append(place);
    const { data, layout } = structuredClone(drawing);
    const settings = {
      responsive: true,
      displaylogo: false,
      // Without a pointer the buttons would always stand there, over the panels' titles.
      displayModeBar: window.matchMedia("(hover: none)").matches ? false : "hover",
      modeBarButtonsToRemove: ["lasso2d", "select2d"],
      toImageButtonOptions: { format: "svg", filename: this.record.name },
    };
    const entries = data.filter((trace) => this.record.legend && trace.name && trace.showlegend !== false);
    Plotly.newPlot(place, data, { ...layout, template: this.template, autosize: true, showlegend: false }, settings).then(
      () => {
        place.on("plotly_afterplot", () => fitToPaper(place));
        fitToPaper(place);
      },
    );
    return { place, groups: data.map((trace) => trace.legendgroup ?? null), entries };
  }

  fillLegend() {
    const entries = new Map(this.plot.entries.map((trace) => [trace.name, trace]));
    const place = (trace) => Number(trace.name.match(/^step ([\d,]+)$/)?.[1].replaceAll(",", "") ?? 0);
    // Checkpoints in order, whichever panel has them; models stay in theirs.
    const ordered = [...entries.values()].sort((a, b) => place(a) - place(b));
    this.legend.replaceChildren(...ordered.map((trace) => this.legendEntry(trace)));
  }

  // Models and checkpoints can be switched off; line styles are only explained.
  legendEntry(trace) {
    const colour = trace.line?.color ?? trace.marker?.color ?? "#555555";
    const dash = trace.line?.dash && trace.line.dash !== "solid" ? "3 3" : "none";
    const sample = svgElement("svg", { width: 26, height: 12, "aria-hidden": "true" });
    if (trace.mode !== "markers") {
      sample.append(svgElement("line", { x1: 1, x2: 25, y1: 6, y2: 6, stroke: colour, "stroke-width": 2, "stroke-dasharray": dash }));
    }
    if (trace.marker?.symbol === "x-thin") {
      sample.append(svgElement("path", { d: "M9 2L17 10M17 2L9 10", stroke: trace.marker.line.color, "stroke-width": 1.3 }));
    } else if (trace.mode?.includes("markers")) sample.append(svgElement("circle", { cx: 13, cy: 6, r: 4, fill: colour }));
    const group = trace.legendgroup;
    const label = unescaped(trace.name);
    if (!group) return element("span", {}, sample, label);
    const button = element("button", { type: "button", "aria-pressed": "true" }, sample, label);
    button.addEventListener("click", () => {
      const on = this.off.delete(group);
      if (!on) this.off.add(group);
      button.setAttribute("aria-pressed", String(on));
      const { place, groups } = this.plot;
      Plotly.restyle(place, { visible: on }, groups.flatMap((name, index) => (name === group ? [index] : [])));
    });
    return button;
  }
}

// Paper has another width than the window, and nothing is drawn anew for it: the style sheet scales what is there.
function fitToPaper(place) {
  const layers = [...place.querySelectorAll(".main-svg")];
  const [width, height] = ["width", "height"].map((name) => layers[0].getAttribute(name));
  for (const layer of layers) layer.setAttribute("viewBox", `0 0 ${width} ${height}`);
  place.style.setProperty("--width", `${width}px`);
  place.style.setProperty("--ratio", width / height);
}

const whenIdle = window.requestIdleCallback ?? ((work) => setTimeout(work, 50));

function startFigures() {
  const { template, figures } = JSON.parse(byId("figure-data").textContent);
  const views = [...document.querySelectorAll(".plot")].map(
    (holder) => new FigureView(holder, figures[Number(holder.dataset.figure)], template),
  );
  const undrawn = new Set(views);
  const folds = [...document.querySelectorAll("#figures > details")];
  const isOpen = (view) => view.holder.closest("details").open;
  const draw = (view) => { undrawn.delete(view); view.draw(); };
  const watcher = new IntersectionObserver((entries) => {
    for (const { isIntersecting, target } of entries) {
      if (isIntersecting) draw(views.find((view) => view.holder === target));
    }
  }, { rootMargin: "600px" });
  views.forEach((view) => watcher.observe(view.holder));
  const drawNext = () => {
    const next = [...undrawn].find(isOpen);
    if (!next) return;
    draw(next);
    whenIdle(drawNext);
  };
  whenIdle(drawNext);
  byId("unfold").addEventListener("click", () => folds.forEach((fold) => { fold.open = true; }));
  // All figures and all models' sentences are printed; what else is folded stays so. Some browsers only say that the medium
  // changed.
  let opened = [];
  const prepare = () => {
    const printed = [...document.querySelectorAll("#figures > details, #story > .model")];
    opened.push(...printed.filter((fold) => !fold.open));
    for (const fold of opened) fold.open = true;
    [...undrawn].forEach(draw);
  };
  const restore = () => { for (const fold of opened.splice(0)) fold.open = false; };
  window.addEventListener("beforeprint", prepare);
  window.addEventListener("afterprint", restore);
  window.matchMedia("print").addEventListener("change", (medium) => (medium.matches ? prepare() : restore()));
  window.addEventListener("resize", () => {
    if (!window.matchMedia("print").matches) views.forEach((view) => { if (!undrawn.has(view) && isOpen(view)) view.draw(); });
  });
}
