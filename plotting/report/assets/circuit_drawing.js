// The drawing of one circuit at one checkpoint: boxes stand still over training, edges come and go.
//
// The shapes are those of plotting/plot_circuit.py: an edge leaves the top of its source's box and arrives from below; one
// that stays in its source's column runs beside the boxes between. With the keyboard, arrows go from box to box.

const BOX_WIDTH = 0.84;
const BOX_HEIGHT = 0.36;
const PORT_SHARE = [0, -0.3, 0, 0.3];
const THINNEST = 0.7;
const WIDEST = 6.5;
const REACH = { mouse: 8, pen: 12, touch: 18 };
const SAMPLES = 24;
// How far from the middle of a column an edge runs beside its boxes, and how far up it takes to get there.
const BESIDE = 0.5;
const TURN = 0.55;
// Milliseconds after which a drawing that stands still is drawn smoothly; while the slider moves, speed counts.
const SETTLED = 180;
const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] };

class CircuitDrawing {
  // `choose(name)` is told which box or edge was asked for, `asked(true)` if by keyboard.
  constructor(holder, tip, roles, choose) {
    Object.assign(this, { holder, tip, roles, choose });
    this.active = -1;
    this.drawn = [];
    this.samples = null;
    holder.addEventListener("pointermove", (event) => this.point(event));
    holder.addEventListener("pointerdown", (event) => { this.pointerType = event.pointerType; this.point(event); });
    holder.addEventListener("click", () => this.take());
    holder.addEventListener("keydown", (event) => this.press(event));
    holder.addEventListener("focus", () => { if (holder.matches(":focus-visible")) this.activate(this.active < 0 ? this.firstNode() : this.active); });
    holder.addEventListener("blur", () => this.leave());
    // A finger leaves as soon as it has tapped; what it asked for stays until it taps elsewhere.
    holder.addEventListener("pointerleave", (event) => { if (event.pointerType !== "touch") this.leave(); });
    document.addEventListener("pointerdown", (event) => { if (!holder.contains(event.target)) this.leave(); });
    holder.addEventListener("scroll", () => this.leave());
  }

  // Lay out the boxes of all checkpoints' circuits; `describe` tells a box's or an edge's lines for the tooltip.
  setRecord(record, describe) {
    this.record = record;
    this.describe = describe;
    this.resize();
  }

  resize() {
    const { record } = this;
    const inColumns = record.columns.length > 0;
    const narrow = this.holder.clientWidth < 560;
    // MLPs stand on the right only, so on a phone the rows' names fit into the empty column on the left.
    const left = narrow && !inColumns && record.nodes.some(([name]) => /^m\d/.test(name)) ? 0 : 58;
    const units = 2 * record.halfWidth + (narrow ? 0.46 : 1);
    const unit = Math.min(96, Math.max(narrow ? 40 : 46, (this.holder.clientWidth - left - 4) / units));
    const rise = Math.min(narrow ? 74 : 104, Math.max(narrow ? 66 : 74, 1000 / (record.height + 1)));
    this.unit = unit;
    this.rise = rise;
    this.x = (x) => left + (x + units / 2) * unit;
    this.y = (y) => 14 + (record.height - y + BOX_HEIGHT) * rise;
    this.width = left + units * unit;
    this.height = 28 + (record.height + 2 * BOX_HEIGHT) * rise + (inColumns ? 20 : 0);
    this.svg = svgElement("svg", { width: this.width.toFixed(0), height: this.height.toFixed(0), viewBox: `0 0 ${this.width.toFixed(0)} ${this.height.toFixed(0)}`, class: narrow ? "narrow" : "" });
    this.edgeLayer = svgElement("g", { class: "edges" });
    this.highlight = svgElement("path", { class: "highlight", d: "" });
    this.svg.append(this.rowLabels(), this.edgeLayer, this.highlight, this.boxes());
    this.holder.replaceChildren(this.svg);
    this.holder.scrollLeft = (this.width - this.holder.clientWidth) / 2;
    this.active = -1;
  }

  rowLabels() {
    const layer = svgElement("g", { class: "rows" });
    for (const [y, name] of this.record.rows) {
      if (name) layer.append(svgElement("text", { x: 2, y: this.y(y) + 4 }, name));
    }
    // The role's name below its column, and a line between two.
    for (const [role, start, end] of this.record.columns) {
      layer.append(svgElement("text", { class: "role", x: this.x((start + end) / 2), y: this.height - 6 }, role || "all tokens"));
      if (end < this.record.halfWidth) layer.append(svgElement("line", { x1: this.x(end), x2: this.x(end), y1: 0, y2: this.height }));
    }
    return layer;
  }

  boxes() {
    const layer = svgElement("g", { class: "boxes" });
    const [width, height] = [BOX_WIDTH * this.unit, BOX_HEIGHT * this.rise];
    this.boxElements = this.record.nodes.map(([name, x, y], index) => {
      const isHead = /^a\d/.test(name);
      const box = svgElement("g", { class: isHead ? "head" : /^m\d/.test(name) ? "mlp" : "end", "data-node": name, role: "option", id: `${this.holder.id}-${index}`, "aria-label": name, "aria-selected": "false" });
      const [cx, cy] = [this.x(x), this.y(y)];
      if (isHead) box.append(svgElement("g", { class: "tints" }));
      box.append(svgElement("rect", { class: "box", x: cx - width / 2, y: cy - height / 2, width, height, rx: 3 }));
      box.append(svgElement("text", { x: cx, y: cy + (isHead ? -1 : 4) }, bareNode(name)));
      if (isHead) {
        for (const port of [1, 2, 3]) {
          const at = { class: "port", x: cx + PORT_SHARE[port] * width, y: cy + height / 2 - 2 };
          box.append(svgElement("text", at, PORT_NAMES[port][1]));
        }
      }
      layer.append(box);
      return box;
    });
    return layer;
  }

  // Colour heads by their roles; `held`: head -> numbers of roles. Several share the box.
  tint(held) {
    const [width, height] = [BOX_WIDTH * this.unit, BOX_HEIGHT * this.rise];
    this.boxElements.forEach((box, index) => {
      const [name, x, y] = this.record.nodes[index];
      const own = held[bareNode(name)] ?? [];
      const key = own.join();
      if (box.dataset.roles === key || (!own.length && !box.dataset.roles)) return;
      box.dataset.roles = key;
      const share = width / own.length;
      const left = this.x(x) - width / 2;
      const rects = own.map((role, i) => {
        const [, colour] = this.roles[role];
        return svgElement("rect", { class: "tint", x: left + i * share, y: this.y(y) - height / 2, width: share, height, style: `fill:${colour}` });
      });
      box.querySelector(".tints").replaceChildren(...rects);
      box.classList.toggle("has-role", own.length > 0);
    });
  }

  // Colour the boxes of nodes by their scores, as strongly as plotting/plot_circuit.py; those left out have none.
  fill(items, strongest) {
    const colours = new Map(items.filter(({ state }) => state !== "removed").map(({ edge, score }) => {
      const percent = (12 + (60 * Math.abs(score)) / strongest).toFixed(0);
      return [edgeEnds(this.record, edge)[0], `color-mix(in srgb, var(--${score >= 0 ? "positive" : "negative"}) ${percent}%, var(--page))`];
    }));
    this.boxElements.forEach((box, node) => { box.querySelector(".box").style.fill = colours.get(node) ?? ""; });
  }

  ends(edge, target) {
    const [source, , port] = edgeEnds(this.record, edge);
    const [, x0, y0] = this.record.nodes[source];
    const [, x1, y1] = this.record.nodes[target];
    const lean = 0.4 * Math.tanh((x1 - x0) / 3);
    const landing = port ? PORT_SHARE[port] : -lean;
    return [x0 + lean * BOX_WIDTH, y0 + BOX_HEIGHT / 2, x1 + landing * BOX_WIDTH, y1 - BOX_HEIGHT / 2];
  }

  // Points of cubic curves, in pixels: the start, and of each curve two control points and the end.
  curve(edge, target) {
    const [x0, y0, x1, y1] = this.ends(edge, target);
    const rise = y1 - y0;
    let points = [[x0, y0 + 0.45 * rise], [x1, y1 - 0.45 * rise], [x1, y1]];
    if (Math.abs(x1 - x0) < BOX_WIDTH && rise > 1) {
      const [, column] = this.record.nodes[edgeEnds(this.record, edge)[0]];
      const x = column + (column >= 0 ? BESIDE : -BESIDE);
      const turn = Math.min(TURN, rise / 2);
      points = [
        ...[[x0, y0 + turn / 3], [x, y0 + (2 * turn) / 3], [x, y0 + turn]],
        ...[[x, y0 + turn], [x, y1 - turn], [x, y1 - turn]],
        ...[[x, y1 - (2 * turn) / 3], [x1, y1 - turn / 3], [x1, y1]],
      ];
    }
    return [[x0, y0], ...points].map(([x, y]) => [this.x(x), this.y(y)]);
  }

  path({ edge, targets }) {
    return targets.map((target) => {
      const [start, ...points] = this.curve(edge, target).map((point) => point.map((number) => number.toFixed(1)).join(" "));
      return `M${start}C${points.join(" ")}`;
    }).join("");
  }

  // `edges`: [{edge, targets, score, stability, state: "kept" | "added" | "removed" | "only"}], drawn weakest first; `states`: by
  // number of node "in", "new" or "gone", which hold for the whole circuit, drawn or not; `held`: head -> roles; `chosen`:
  // name of the box or edge whose details are open.
  draw(edges, strongest, states, held, chosen) {
    const chosenNode = this.record.nodes.findIndex(([name]) => name === chosen);
    const ordered = [...edges].sort((a, b) => Math.abs(a.score) - Math.abs(b.score));
    const markup = [];
    // Of a circuit of nodes each item is one: its box has the colour of the score, and no line says more.
    if (this.record.ofNodes) this.fill(ordered, strongest);
    for (const item of this.record.ofNodes ? [] : ordered) {
      const share = Math.sqrt(Math.abs(item.score) / strongest || 0);
      const width = (THINNEST + (WIDEST - THINNEST) * Math.min(1, share)).toFixed(2);
      item.path = this.path(item);
      const sign = item.score >= 0 ? "positive" : "negative";
      const far = chosenNode >= 0 && ![edgeEnds(this.record, item.edge)[0], ...item.targets].includes(chosenNode) ? " far" : "";
      if (item.state === "added") markup.push(`<path class="halo${far}" d="${item.path}" stroke-width="${(Number(width) + 5).toFixed(2)}"/>`);
      const opacity = (0.35 + 0.55 * (item.stability ?? share)).toFixed(2);
      if (chosen && chosenNode < 0 && edgeName(this.record, item.edge) === chosen) {
        markup.push(`<path class="chosen" d="${item.path}" stroke-width="${(Number(width) + 6).toFixed(2)}"/>`);
      }
      markup.push(
        `<path class="edge ${sign} ${item.state}${far}" data-edge="${item.edge}" d="${item.path}" stroke-width="${width}" stroke-opacity="${opacity}"/>`,
      );
    }
    // Numbers and class names only; no text from data.
    this.edgeLayer.innerHTML = markup.join("");
    this.boxElements.forEach((box, node) => {
      box.dataset.state = states.get(node) ?? "out";
      box.classList.toggle("chosen", node === chosenNode);
      box.setAttribute("aria-selected", String(node === chosenNode));
    });
    this.tint(held);
    this.drawn = this.record.ofNodes ? [] : ordered;
    this.samples = null;
    this.leave();
    this.holder.classList.add("moving");
    clearTimeout(this.settling);
    this.settling = setTimeout(() => this.holder.classList.remove("moving"), SETTLED);
  }

  samplePoints() {
    this.samples ??= this.drawn.flatMap((item) => item.targets.map((target) => {
      const curve = this.curve(item.edge, target);
      const parts = (curve.length - 1) / 3;
      const points = new Float32Array(2 * (SAMPLES * parts + 1));
      for (let i = 0; i <= SAMPLES * parts; i += 1) {
        const part = Math.min(Math.floor(i / SAMPLES), parts - 1);
        const t = i / SAMPLES - part;
        const [a, b, c, d] = curve.slice(3 * part, 3 * part + 4);
        const weights = [(1 - t) ** 3, 3 * (1 - t) ** 2 * t, 3 * (1 - t) * t ** 2, t ** 3];
        for (const axis of [0, 1]) {
          points[2 * i + axis] = weights[0] * a[axis] + weights[1] * b[axis] + weights[2] * c[axis] + weights[3] * d[axis];
        }
      }
      return { item, points };
    }));
    return this.samples;
  }

  nearestEdge(x, y, reach) {
    let best = null;
    let bestSquare = reach * reach;
    this.samplePoints().forEach(({ item, points }) => {
      for (let i = 0; i + 3 < points.length; i += 2) {
        const [x0, y0] = [points[i], points[i + 1]];
        const [dx, dy] = [points[i + 2] - x0, points[i + 3] - y0];
        const along = Math.max(0, Math.min(1, ((x - x0) * dx + (y - y0) * dy) / (dx * dx + dy * dy || 1)));
        const square = (x - x0 - along * dx) ** 2 + (y - y0 - along * dy) ** 2;
        if (square <= bestSquare) [best, bestSquare] = [item, square];
      }
    });
    return best;
  }

  nodeAt(x, y) {
    const [width, height] = [BOX_WIDTH * this.unit, BOX_HEIGHT * this.rise];
    return this.record.nodes.findIndex(
      ([, cx, cy]) => Math.abs(x - this.x(cx)) <= width / 2 && Math.abs(y - this.y(cy)) <= height / 2,
    );
  }

  point(event) {
    if (!this.svg) return;
    const frame = this.svg.getBoundingClientRect();
    const [x, y] = [event.clientX - frame.left, event.clientY - frame.top];
    const node = this.nodeAt(x, y);
    const edge = node < 0 ? this.nearestEdge(x, y, REACH[event.pointerType] ?? REACH.mouse) : null;
    this.highlight.setAttribute("d", edge?.path ?? "");
    for (const [index, box] of this.boxElements.entries()) box.classList.toggle("pointed", index === node);
    this.under = node >= 0 ? this.record.nodes[node][0] : edge ? edgeName(this.record, edge.edge) : null;
    this.holder.classList.toggle("pointing", this.under !== null);
    if (!this.under) return this.hideTip();
    const lines = this.describe(node, edge);
    if (event.pointerType === "touch") lines.push("Tap again for its history");
    return this.showTip(lines, event.clientX, event.clientY);
  }

  // A click opens what is under the pointer. A finger covers it, so its first tap tells and its second one opens.
  take() {
    if (!this.under) return;
    const again = this.tapped === this.under;
    this.tapped = this.under;
    if (this.pointerType !== "touch" || again) this.choose(this.under, false);
  }

  press(event) {
    if ([" ", "Enter"].includes(event.key) && this.active >= 0) {
      this.choose(this.record.nodes[this.active][0], true);
    } else if (event.key in ARROWS) {
      this.activate(this.active < 0 ? this.firstNode() : this.neighbour(...ARROWS[event.key]));
    } else return;
    event.preventDefault();
  }

  isDrawn(node) {
    return this.boxElements[node].dataset.state !== "out";
  }

  // The topmost box of the circuit.
  firstNode() {
    const drawn = this.record.nodes.map((node, index) => [node[2], index]).filter(([, index]) => this.isDrawn(index));
    return drawn.length ? drawn.reduce((best, node) => (node[0] > best[0] ? node : best))[1] : -1;
  }

  // The next box of the row (`dx`), or the nearest in the next row (`dy`, upwards) that has one; else where we are.
  neighbour(dx, dy) {
    const [, x, y] = this.record.nodes[this.active];
    let best = this.active;
    let least = Infinity;
    this.record.nodes.forEach(([, otherX, otherY], index) => {
      const ahead = dx ? (otherX - x) * dx : (otherY - y) * dy;
      if (!this.isDrawn(index) || ahead <= 1e-6 || (dx && Math.abs(otherY - y) > 1e-6)) return;
      const far = dx ? ahead : 1000 * ahead + Math.abs(otherX - x);
      if (far < least) [best, least] = [index, far];
    });
    return best;
  }

  activate(node) {
    this.active = node;
    for (const [index, box] of this.boxElements.entries()) box.classList.toggle("pointed", index === node);
    if (node < 0) return this.holder.removeAttribute("aria-activedescendant");
    const box = this.boxElements[node];
    const lines = this.describe(node, null);
    box.setAttribute("aria-label", lines.join(", "));
    this.holder.setAttribute("aria-activedescendant", box.id);
    box.scrollIntoView({ block: "nearest", inline: "nearest" });
    const { right, bottom } = box.getBoundingClientRect();
    return this.showTip(lines, right - 8, bottom - 8);
  }

  showTip([name, ...lines], x, y) {
    const { tip } = this;
    tip.replaceChildren(element("b", {}, name), ...lines.map((line) => element("div", {}, line)));
    tip.hidden = false;
    tip.owner = this;
    const margin = 12;
    const width = document.documentElement.clientWidth;
    const left = x + margin + tip.offsetWidth > width ? x - margin - tip.offsetWidth : x + margin;
    const top = y + margin + tip.offsetHeight > window.innerHeight ? y - margin - tip.offsetHeight : y + margin;
    tip.style.left = `${Math.max(4, Math.min(left, width - tip.offsetWidth - 4))}px`;
    tip.style.top = `${Math.max(4, top)}px`;
  }

  hideTip() {
    // Two drawings share it.
    if (this.tip.owner === this) this.tip.hidden = true;
  }

  leave() {
    this.hideTip();
    this.highlight?.setAttribute("d", "");
    for (const box of this.boxElements ?? []) box.classList.remove("pointed");
  }
}
