// The circuit section: choice of model and task, the slider over checkpoints, and what changed against another circuit:
// the one before it, another checkpoint's, or another model's or task's.

const PLAY_PAUSE = 900;
const WANTED = { kept: "show-kept", only: "show-kept", added: "show-added", removed: "show-removed" };
// Whether a circuit is one of the task whose roles heads hold, by whatever method (`ioi@eap`).
const ofIoi = (record) => record?.task.split("@")[0] === "ioi";
// Positions of the threshold's slider; the first hides nothing.
const THRESHOLDS = 100;

class CircuitView {
  constructor(records, headRecords, roles, details) {
    Object.assign(this, { records, headRecords, roles, details });
    this.threshold = 0;
    this.onChange = () => {};
    this.onModel = () => {};
    const choose = (name, focus) => this.choose(name, focus);
    this.drawing = new CircuitDrawing(byId("drawing"), byId("tip"), roles, choose);
    this.second = new CircuitDrawing(byId("drawing-other"), byId("tip"), roles, choose);
    this.edges = new EdgeList(byId("edge-list"), byId("edge-table"), (name) => this.choose(name, true));
    this.search = new Search(() => this.findable(), (name) => this.choose(name, true));
    this.slider = byId("step");
    const models = [...new Set(records.map((record) => record.model))];
    // The page opens on a circuit, if there is one.
    const opened = records.find((record) => record.steps.at(-1)?.edges.length) ?? records.find((record) => record.steps.some((state) => state.edges.length)) ?? records[0];
    fillSelect(byId("circuit-model"), models.map((model) => [model, model]), opened.model);
    this.record = opened;
    this.overview = new Overview(records, (task, step) => this.goTo(task, step));
    fillSelect(byId("other-model"), [["", "the same model"], ...models.map((model) => [model, model])]);
    this.listen();
    this.chooseModel();
  }

  listen() {
    const on = (id, event, act) => byId(id).addEventListener(event, () => { act(); this.onChange(); });
    on("circuit-model", "change", () => this.chooseModel());
    on("circuit-task", "change", () => this.chooseRecord());
    on("other-model", "change", () => { this.fillOtherTasks(); this.chooseOther(); });
    on("other-task", "change", () => this.chooseOther());
    on("other-step", "change", () => this.show());
    on("side", "change", () => this.layOut());
    on("step", "input", () => this.show());
    on("previous-step", "click", () => this.move(-1));
    on("next-step", "click", () => this.move(1));
    on("play", "click", () => this.play());
    on("threshold", "input", () => { this.threshold = this.thresholdAt(Number(byId("threshold").value)); this.show(); });
    for (const id of ["circuit-strongest", ...new Set(Object.values(WANTED))]) on(id, "change", () => this.show());
    byId("edge-list").addEventListener("toggle", () => this.fillList());
    byId("save-csv").addEventListener("click", () => saveFile(`${this.fileStem()}.csv`, "text/csv", toCsv(this.rows())));
    byId("save-svg").addEventListener("click", () => saveFile(`${this.fileStem()}.svg`, "image/svg+xml", toSvg(this.sheets())));
    byId("save-json").addEventListener("click", () => saveFile(`${this.fileStem()}.json`, "application/json", toEapIg(this.record.shape, this.present())));
    byId("copy-address").addEventListener("click", () => this.copyAddress());
    // Not the window: details beside the drawing make it narrower too. Phones change in height whenever their address bar goes.
    let wide = byId("drawings").clientWidth;
    new ResizeObserver(() => {
      if (byId("drawings").clientWidth === wide) return;
      wide = byId("drawings").clientWidth;
      this.drawTimeline();
      this.layOut();
    }).observe(byId("drawings"));
  }

  chooseModel() {
    const own = this.records.filter((record) => record.model === byId("circuit-model").value);
    fillSelect(byId("circuit-task"), own.map((record) => [record.task, record.label]), this.record?.task);
    this.onModel(own[0].model);
    this.chooseRecord();
  }

  goTo(task, step) {
    byId("circuit-task").value = task;
    this.chooseRecord();
    this.slider.value = this.record.steps.findIndex((state) => state.step === step);
    this.show();
    this.onChange();
  }

  goToModel(model) {
    if (model === this.record.model || !this.records.some((record) => record.model === model)) return;
    byId("circuit-model").value = model;
    this.chooseModel();
    this.onChange();
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
    const scores = steps.flatMap((state) => state.scores.map(Math.abs)).filter((score) => score > 0);
    this.limits = scores.length ? [scores.reduce((a, b) => Math.min(a, b)), scores.reduce((a, b) => Math.max(a, b))] : [1, 1];
    byId("threshold").value = this.thresholdPlace();
    const { shape, ofNodes, columns } = this.record;
    const why = ofNodes || columns.length ? "EAP-IG's files are of edges, without roles of tokens" : "The results do not say how many layers and heads the model has; measure them anew";
    byId("save-json").disabled = !shape || ofNodes || columns.length > 0;
    byId("save-json").title = byId("save-json").disabled ? why : "";
    this.drawTimeline();
    this.fillOtherTasks();
    this.chooseOther();
  }

  // What to compare with. Empty choices follow the record on the left.
  fillOtherTasks() {
    const model = byId("other-model").value || this.record.model;
    const tasks = this.records.filter((record) => record.model === model).map((record) => [record.task, record.label]);
    fillSelect(byId("other-task"), [["", "the same task"], ...tasks], byId("other-task").value);
  }

  chooseOther() {
    const [model, task] = [byId("other-model").value || this.record.model, byId("other-task").value || this.record.task];
    this.other = this.records.find((record) => record.model === model && record.task === task) ?? null;
    const usual = this.other === this.record ? ["before", "the circuit before"] : ["same", "the same step"];
    const steps = (this.other?.steps ?? []).map(({ step }) => [step, `step ${shownNumber(step)}`]);
    fillSelect(byId("other-step"), [usual, ...steps], byId("other-step").value);
    this.scene = sceneOf(this.record, this.other);
    this.layOut();
  }

  // Both drawings on one plan, so that a box stands at the same place in each.
  layOut() {
    const side = byId("side").checked;
    byId("drawings").classList.toggle("side", side);
    for (const id of ["drawing-title", "drawing-other", "drawing-other-title"]) byId(id).hidden = !side;
    for (const drawing of side ? [this.drawing, this.second] : [this.drawing]) {
      drawing.setRecord(this.scene, (node, item) => this.describe(node, item));
    }
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
      this.onChange();
      if (this.slider.value === this.slider.max) stop();
    }, PLAY_PAUSE);
    return undefined;
  }

  // Bars of the circuits' sizes above the slider, one per checkpoint.
  drawTimeline() {
    const holder = byId("timeline");
    const { steps } = this.record;
    const most = Math.max(1, ...steps.map((state) => state.size));
    const [width, height] = [1000, 40];
    const slot = width / steps.length;
    this.slider.style.setProperty("--n", steps.length);
    holder.setAttribute("viewBox", `0 0 ${width} ${height}`);
    holder.setAttribute("preserveAspectRatio", "none");
    this.bars = steps.map((state, index) => {
      const size = state.edges.length ? Math.max(2, (height - 2) * (state.size / most)) : 1;
      const bar = { x: (index + 0.1) * slot, y: height - size, width: 0.8 * slot, height: size };
      return svgElement("rect", { ...bar, class: state.edges.length ? "bar" : "bar none" });
    });
    holder.replaceChildren(...this.bars);
    holder.onclick = (event) => {
      const frame = holder.getBoundingClientRect();
      this.slider.value = Math.floor(((event.clientX - frame.left) / frame.width) * steps.length);
      this.show();
      this.onChange();
    };
  }

  // |score| at a position of the threshold's slider, on a log scale, in two digits.
  thresholdAt(place) {
    if (!place) return 0;
    const [low, high] = this.limits;
    return Number((low * (high / low) ** (place / THRESHOLDS)).toPrecision(2));
  }

  thresholdPlace() {
    const [low, high] = this.limits;
    if (!this.threshold || low === high) return 0;
    return Math.min(THRESHOLDS, Math.max(1, Math.round((THRESHOLDS * Math.log(this.threshold / low)) / Math.log(high / low))));
  }

  otherState() {
    const at = Number(this.slider.value);
    const wanted = byId("other-step").value;
    if (wanted === "before") return this.record.steps.slice(0, at).findLast((state) => state.edges.length) ?? null;
    const step = wanted === "same" ? this.record.steps[at].step : Number(wanted);
    return this.other?.steps.find((state) => state.step === step) ?? null;
  }

  show() {
    this.draw();
    if (this.details.name) this.details.show(this.details.name, this.context());
  }

  draw() {
    this.state = this.record.steps[Number(this.slider.value)];
    this.before = this.otherState();
    Object.assign(this, compareCircuits(this.state, this.before, this.scene.fromOther));
    const writing = { now: sourcesOf(this.scene, [...this.now.keys()]), then: sourcesOf(this.scene, [...this.then.keys()]) };
    for (const item of this.items) item.targets = edgeTargets(this.scene, item.edge, item.state === "removed" ? writing.then : writing.now);
    this.writing = writing;
    const limit = byId("circuit-strongest").value === "all" ? Infinity : Number(byId("circuit-strongest").value);
    const strongestFirst = (a, b) => Math.abs(b.score) - Math.abs(a.score);
    this.wanted = this.items.filter((item) => byId(WANTED[item.state]).checked).sort(strongestFirst);
    const above = this.wanted.filter((item) => Math.abs(item.score) >= this.threshold);
    this.shown = {
      here: above.filter((item) => item.state !== "removed").slice(0, limit),
      gone: above.filter((item) => item.state === "removed").slice(0, limit),
    };
    const side = byId("side").checked;
    const { here, gone } = this.shown;
    const strongest = (state) => Math.max(0, ...(state?.scores ?? []).map(Math.abs)) || 1;
    const [mine, theirs] = [this.held(this.record, this.state), this.held(this.other, this.before)];
    this.drawing.draw(side ? here : [...here, ...gone], strongest(this.state), this.nodeStates(side ? "here" : "both"), mine, this.details.name);
    if (side) {
      const kept = here.filter((item) => item.earlier !== null).map((item) => ({ ...item, score: item.earlier, targets: edgeTargets(this.scene, item.edge, this.writing.then) }));
      this.second.draw([...kept, ...gone], strongest(this.before), this.nodeStates("there"), theirs, this.details.name);
    }
    this.tell();
    this.overview.draw(this.record.model, this.record.task, this.state.step);
    this.bars.forEach((bar, index) => bar.classList.toggle("now", index === Number(this.slider.value)));
    this.fillList();
  }

  // Head -> roles in IOI at a checkpoint; empty where they were not measured, and on other tasks.
  held(record, state) {
    if (!ofIoi(record)) return {};
    return this.headRecords.find((heads) => heads.model === record.model)?.held[state?.step] ?? {};
  }

  nodeStates(which) {
    const nodesOf = (edges, writing) => new Set([...writing, ...[...edges.keys()].flatMap((edge) => edgeTargets(this.scene, edge, writing))]);
    const [now, then] = [nodesOf(this.now, this.writing.now), nodesOf(this.then, this.writing.then)];
    const states = new Map();
    if (which === "there") {
      for (const node of then) states.set(node, now.size && !now.has(node) ? "gone" : "in");
      return states;
    }
    for (const node of now) states.set(node, then.size && !then.has(node) ? "new" : "in");
    if (which === "both" && now.size) for (const node of then) if (!now.has(node)) states.set(node, "gone");
    return states;
  }

  // How the circuit compared with is called.
  otherName() {
    const parts = [];
    if (this.other && this.other.model !== this.record.model) parts.push(this.other.model);
    if (this.other && this.other.task !== this.record.task) parts.push(this.other.label);
    parts.push(this.before ? `step ${shownNumber(this.before.step)}` : "no such checkpoint");
    return parts.join(", ");
  }

  tell() {
    const { state, before } = this;
    const tokens = state.tokens === null ? "" : ` (${compactNumber(state.tokens)} tokens)`;
    byId("step-label").textContent = `step ${shownNumber(state.step)}${tokens}`;
    this.slider.setAttribute("aria-valuetext", `step ${state.step}`);
    byId("previous-step").disabled = this.slider.value === this.slider.min;
    byId("next-step").disabled = this.slider.value === this.slider.max;
    const facts = [];
    if (this.now.size) facts.push(`${state.units ? `${count(state.units, "neuron")}, ` : ""}${count(state.size, "edge")}, ${count(state.nodes, "node")}`);
    else facts.push(`No circuit${state.status ? `: ${state.status}` : ""}`);
    if (state.faithfulness !== undefined) {
      const interval = state.faithfulness_low === undefined ? "" : ` (95%: ${shownNumber(state.faithfulness_low)} to ${shownNumber(state.faithfulness_high)})`;
      facts.push(`faithfulness ${shownNumber(state.faithfulness)}${interval}`);
    }
    if (state.full !== undefined) {
      facts.push(`${this.record.metric} of the whole model ${shownNumber(state.full)}, on corrupted prompts ${shownNumber(state.corrupted)}`);
    }
    byId("facts").textContent = `${facts.join(" · ")}.`;
    byId("change").textContent = this.changeText();
    byId("drawing-title").textContent = this.titleOf(this.record, state);
    byId("drawing-other-title").textContent = before ? this.titleOf(this.other, before) : `Nothing to compare with: ${this.otherName()}`;
    const hidden = this.wanted.filter((item) => Math.abs(item.score) < this.threshold).length;
    const told = this.threshold
      ? `|score| ≥ ${shownNumber(this.threshold)}: ${shownNumber(hidden)} of ${this.counted(this.wanted.length)} hidden`
      : `none: 0 of ${this.counted(this.wanted.length)} hidden`;
    byId("threshold-label").textContent = told;
    byId("threshold").setAttribute("aria-valuetext", told);
    const measured = this.headRecords.some((heads) => heads.model === this.record.model && Object.keys(heads.held).length);
    byId("role-keys").hidden = !measured || ![this.record, this.other].some(ofIoi);
  }

  titleOf(record, state) {
    return `${record.model}, ${record.label}, step ${shownNumber(state.step)}: ${count(state.size, "edge")}`;
  }

  // What the drawing shows one by one.
  counted(n) {
    return count(n, this.scene.ofNodes ? "node" : "edge");
  }

  changeText() {
    const { before } = this;
    const total = (name) => this.items.filter((item) => item.state === name).length;
    const usual = byId("other-step").value === "before";
    const lines = [];
    if (this.now.size && !before?.edges.length) {
      const why = before ? `${this.otherName()} has no circuit` : this.otherName();
      lines.push(usual ? "The first circuit: nothing before it to compare with." : `Nothing to compare with: ${why}.`);
    } else if (this.now.size) {
      lines.push(`${usual ? "Since" : "Against"} ${this.otherName()}: ${this.counted(total("added"))} added, ${shownNumber(total("removed"))} removed, ${shownNumber(total("kept"))} kept.`);
    }
    const { here, gone } = this.shown;
    if (here.length < this.now.size) lines.push(`${this.counted(here.length)} of ${shownNumber(this.now.size)} drawn.`);
    if (gone.length < total("removed")) lines.push(`${shownNumber(gone.length)} of ${shownNumber(total("removed"))} removed ones drawn.`);
    return lines.join(" ");
  }

  describe(node, item) {
    return item ? this.describeEdge(item) : this.describeNode(node);
  }

  describeEdge({ edge, score, earlier, stability, inclusion, state }) {
    const lines = [shownEdge(edgeName(this.scene, edge))];
    const there = this.before ? this.otherName() : "";
    const since = byId("other-step").value === "before";
    if (state === "removed") return [...lines, `score ${signed(score)} at ${there}`, since ? "removed since" : "not in this one"];
    lines.push(`score ${signed(this.state.scores[this.now.get(edge)] ?? score)}`);
    if (stability !== null) lines.push(`stability ${shownNumber(stability)}`);
    if (inclusion !== null) lines.push(`in the circuits of ${shownNumber(100 * inclusion)}% of the thresholds`);
    if (state === "kept") lines.push(`${signed(earlier)} at ${there}`);
    if (state === "added") lines.push(since ? `added since ${there}` : `not in ${there}`);
    return lines;
  }

  describeNode(node) {
    const [name] = this.scene.nodes[node];
    const lines = [name];
    const held = this.held(this.record, this.state)[bareNode(name)] ?? [];
    if (held.length) lines.push(held.map((role) => this.roles[role][0]).join(", "));
    const own = [...this.now].map(([edge, i]) => [edge, this.state.scores[i]]);
    const into = own.filter(([edge]) => edgeTargets(this.scene, edge, this.writing.now).includes(node));
    const from = own.filter(([edge]) => edgeEnds(this.scene, edge)[0] === node);
    if (into.length + from.length === 0) return [...lines, "not in this checkpoint's circuit"];
    if (this.record.ofNodes) return [...lines, ...from.map(([, score]) => `score ${signed(score)}`)];
    const sum = (edges) => signed(edges.reduce((total, [, score]) => total + score, 0));
    if (into.length) lines.push(`${count(into.length, "edge")} in, scores sum to ${sum(into)}`);
    if (from.length) lines.push(`${count(from.length, "edge")} out, scores sum to ${sum(from)}`);
    const match = bareNode(name).match(/^a(\d+)\.h(\d+)$/);
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

  // Open the details of a box or an edge.
  choose(name, focus = false) {
    this.details.show(name, this.context(), focus);
    this.draw();
    // Below the bar of the slider, whose height the page's scroll padding allows for.
    if (focus) byId("drawing").querySelector(".chosen .box")?.scrollIntoView({ block: "nearest" });
    this.onChange();
  }

  closed() {
    this.draw();
    this.onChange();
  }

  context() {
    const other = this.other && this.other !== this.record ? this.other : null;
    return { model: this.record.model, record: this.record, state: this.state, other };
  }

  // Names that the search finds: boxes, then the circuit's edges from the strongest, then edges of other checkpoints.
  findable() {
    const heads = this.headRecords.find((record) => record.model === this.record.model)?.heads ?? [];
    const nodes = new Set([...this.scene.nodes.map(([name]) => name), ...heads.map(([layer, head]) => `a${layer}.h${head}`)]);
    const rank = ranks(this.state);
    const now = [...rank.keys()].map((edge) => edgeName(this.scene, edge));
    return [...new Set([...nodes, ...now, ...edgeNumbers(this.scene).keys()])];
  }

  fillList() {
    const itemsWithNames = () => this.items.map((item) => ({ ...item, name: edgeName(this.scene, item.edge) }));
    this.edges.fill(itemsWithNames);
  }

  // The edges drawn that are in the circuit of the checkpoint.
  present() {
    return this.shown.here.map(({ edge }) => ({ name: edgeName(this.scene, edge), score: this.state.scores[this.now.get(edge)] }));
  }

  // The edges drawn, a row each.
  rows() {
    const rank = ranks(this.state);
    const there = this.before ? { other_model: this.other.model, other_task: this.other.task, other_step: this.before.step } : {};
    return [...this.shown.here, ...this.shown.gone].map(({ edge, score, earlier, stability, inclusion, state }) => {
      const [from, end] = edgeName(this.scene, edge).split("->");
      const [source, role] = from.split("@");
      const [target, input] = end.replace(">", "").split("<");
      const here = state !== "removed";
      return {
        model: this.record.model, task: this.record.task, step: this.state.step, source, target, input: input ?? "",
        score: here ? score : null, rank: here ? rank.get(edge) : null, stability: here ? stability : null,
        inclusion: here ? inclusion : null, ...(this.scene.columns.length ? { role } : {}), state,
        ...there, other_score: earlier,
      };
    });
  }

  sheets() {
    const sheets = [{ svg: this.drawing.svg, title: this.titleOf(this.record, this.state) }];
    if (byId("side").checked && this.before) sheets.push({ svg: this.second.svg, title: this.titleOf(this.other, this.before) });
    return sheets;
  }

  fileStem() {
    return fileName("circuit", this.record.model, this.record.task, `step${this.state.step}`);
  }

  async copyAddress() {
    address.write();
    const said = byId("copied");
    try {
      await navigator.clipboard.writeText(window.location.href);
      said.textContent = "Address of this view copied";
    } catch {
      said.textContent = "The address above the page now leads to this view; copy it from there";
    }
  }

  // For the address: what differs from how the page opens.
  addressState() {
    const at = (id) => byId(id).value;
    const entries = [
      ["model", this.record.model, null], ["task", this.record.task, null], ["step", this.state.step, null],
      ["other-model", at("other-model"), ""], ["other-task", at("other-task"), ""],
      ["other-step", at("other-step"), this.other === this.record ? "before" : "same"],
      ["side", byId("side").checked ? "1" : "", ""],
      ["strongest", at("circuit-strongest"), "200"], ["threshold", String(this.threshold), "0"],
      ["hide", ["kept", "added", "removed"].filter((state) => !byId(WANTED[state]).checked).join(","), ""],
      ["open", this.details.name ?? "", ""],
    ];
    return entries.filter(([, value, usual]) => value !== usual).map(([key, value]) => [key, value]);
  }

  restore(parameters) {
    const choose = (id, value) => { if ([...byId(id).options].some((option) => option.value === value)) byId(id).value = value; };
    const hidden = (parameters.get("hide") ?? "").split(",");
    for (const state of ["kept", "added", "removed"]) byId(WANTED[state]).checked = !hidden.includes(state);
    choose("circuit-strongest", parameters.get("strongest") ?? "200");
    byId("side").checked = parameters.get("side") === "1";
    const threshold = Number(parameters.get("threshold"));
    this.threshold = threshold > 0 && Number.isFinite(threshold) ? threshold : 0;
    choose("circuit-model", parameters.get("model"));
    this.chooseModel();
    choose("circuit-task", parameters.get("task"));
    this.chooseRecord();
    choose("other-model", parameters.get("other-model") ?? "");
    this.fillOtherTasks();
    choose("other-task", parameters.get("other-task") ?? "");
    this.chooseOther();
    choose("other-step", parameters.get("other-step") ?? (this.other === this.record ? "before" : "same"));
    const step = this.record.steps.findIndex((state) => String(state.step) === parameters.get("step"));
    if (step >= 0) this.slider.value = step;
    const name = parameters.get("open");
    const absent = name ? this.absent(name) : null;
    const wrong = ["model", "task"].filter((key) => parameters.get(key) && byId(`circuit-${key}`).value !== parameters.get(key));
    const notes = wrong.map((key) => `The address asks for the ${key} ${parameters.get(key)}: there is none here.`);
    if (parameters.get("step") && step < 0 && !wrong.length) {
      notes.push(`The address asks for step ${parameters.get("step")}: ${this.record.model} has no such checkpoint here.`);
    }
    if (absent) notes.push(`The address opens ${name}: ${absent}.`);
    byId("address-note").hidden = !notes.length;
    byId("address-note").textContent = notes.join(" ");
    if (name && !absent) this.details.name = name;
    else this.details.close();
    const inTools = ["other-model", "other-task", "other-step", "side", "strongest", "threshold"];
    if (inTools.some((key) => parameters.has(key))) byId("circuit-tools").open = true;
    this.show();
  }

  // Why there is no head, MLP or edge of a name in the model; null if there is one.
  absent(name) {
    if (!/^(input|[am]\d+(\.h\d+)?)(->(logits|[am]\d+(\.h\d+<[qkv]>)?))?$|^logits$/.test(name.replace(/@.*?(?=->|$)/, ""))) return "that is no head, MLP or edge";
    const { shape, nodes, model } = this.record;
    for (const end of name.split("->")) {
      const [node] = bareNode(end).split("<");
      const [, kind, layer, head] = node.match(/^([am])(\d+)(?:\.h(\d+))?$/) ?? [];
      const known = shape
        ? kind === undefined || (Number(layer) < shape.n_layers && (kind === "m" || Number(head) < shape.n_heads))
        : nodes.some(([own]) => bareNode(own) === node) || this.findable().includes(node);
      if (!known) return `${model} has no ${kind === "m" ? "MLP" : "head"} ${node}`;
    }
    return null;
  }
}

// The list of edges below the drawing, filled only while it is open.
class EdgeList {
  constructor(holder, place, open) {
    this.holder = holder;
    this.table = new SortTable(place, "Edges of the circuit");
    this.open = open;
  }

  fill(itemsWithNames) {
    if (!this.holder.open) return;
    const items = itemsWithNames();
    const sure = SHARES.filter(({ key }) => items.some((item) => item[key] !== null));
    if (this.sure?.length !== sure.length) {
      this.sure = sure;
      const press = { label: ({ name }) => `${shownEdge(name)}: numbers over training`, act: ({ name }) => this.open(name) };
      this.table.setColumns(
        [
          { key: "source", title: "Source", type: "text", press },
          { key: "target", title: "Target", type: "text" },
          { key: "score", title: "Score", type: "number", format: signedOrNone },
          { key: "earlier", title: "Score before", type: "number", format: signedOrNone },
          { key: "size", title: "|Score|", type: "number" },
          ...sure,
          { key: "state", title: "State", type: "choice" },
        ],
        ["size", false],
      );
    }
    this.table.setRows(
      items.map(({ name, score, earlier, stability, inclusion, state }) => {
        const [source, target] = name.split("->");
        const now = state === "removed" ? null : score;
        const size = Math.abs(score);
        return { name, source, target, score: now, earlier, size, stability, inclusion, state: state === "only" ? null : state };
      }),
    );
  }
}

// Columns that say how sure an edge is, where the results do.
const SHARES = [
  { key: "stability", title: "Stability", type: "number", hint: "share of resamples that have the edge", bar: 1 },
  { key: "inclusion", title: "Inclusion", type: "number", hint: "share of the faithfulness thresholds from 0.6 to 0.95 whose circuit has the edge", bar: 1 },
];
const signedOrNone = (value) => (value === null || value === undefined ? "–" : signed(value));
