// The panel that a click on a head or an edge opens: its numbers over training, and the edges that go in and out.

const MOST_NEIGHBOURS = 40;

class Details {
  // `open(name)` chooses another head or edge, `closed()` is told when the panel closes.
  constructor(headRecords, roles, { open, closed }) {
    Object.assign(this, { headRecords, roles, open, closed });
    this.holder = byId("details");
    this.body = byId("details-body");
    this.title = byId("details-title");
    byId("details-close").addEventListener("click", () => this.close());
    document.addEventListener("keydown", (event) => {
      if (event.key === "Escape" && this.name && !event.defaultPrevented) this.close();
    });
  }

  close() {
    if (!this.name) return;
    this.name = null;
    this.holder.hidden = true;
    document.body.classList.remove("with-details");
    this.closed();
    if (this.cameFrom?.isConnected) this.cameFrom.focus({ preventScroll: true });
  }

  // `name`: `a3.h1`, `m0` or `a0.h1->m0`. `context`: {model, record, state, other}, the last three null where the model
  // has no circuit. With `focus`, the keyboard goes to the panel.
  show(name, context, focus = false) {
    const fresh = name !== this.name;
    if (fresh && !this.holder.contains(document.activeElement)) this.cameFrom = document.activeElement;
    this.name = name;
    const isEdge = name.includes("->");
    this.title.textContent = shownEdge(name);
    const scroll = this.holder.scrollTop;
    const parts = isEdge ? this.edgeParts(name, context) : this.nodeParts(name, context);
    // What was unfolded stays so while the slider moves.
    const unfolded = fresh ? [] : ["numbers", "attended"].filter((kind) => this.body.querySelector(`details.${kind}`)?.open);
    this.body.replaceChildren(...parts.filter((part) => part !== null));
    for (const kind of unfolded) this.body.querySelector(`details.${kind}`)?.setAttribute("open", "");
    this.holder.hidden = false;
    this.holder.scrollTop = fresh ? 0 : scroll;
    document.body.classList.add("with-details");
    if (focus) this.title.focus({ preventScroll: true });
  }

  edgeParts(name, { model, record, state, other }) {
    const history = edgeHistory(record, name);
    const steps = record.steps.map(({ step }) => step);
    const at = record.steps.indexOf(state);
    const [source, target] = name.split("->");
    const into = target.replace(/<.>$/, "");
    const facts = history.inside[at] === null
      ? `Not in the circuit at step ${shownNumber(state.step)}${history.score[at] === null ? "" : `: score ${signed(history.score[at])}`}.`
      : [
        `At step ${shownNumber(state.step)}: score ${signed(history.score[at])}`,
        `rank ${history.rank[at]} of ${shownNumber(state.edges.length)}`,
        history.stability[at] === null ? null : `stability ${shownNumber(history.stability[at])}`,
      ].filter((fact) => fact !== null).join(", ") + ".";
    const lines = (key, values) => {
      const own = [{ label: other ? `${model}, ` : "", values, hollow: history.inside.map((value) => value === null) }];
      if (other) {
        const theirs = edgeHistory(other, name);
        const hollow = alignedTo(steps, other, theirs.inside).map((value) => value === null);
        own.push({ label: `${other.model} ${other.label}, `, values: alignedTo(steps, other, theirs[key]), hollow });
      }
      return own;
    };
    const outside = history.score.some((score, i) => score !== null && history.inside[i] === null);
    const charts = [
      chart(outside ? "Score (rings: not in the circuit)" : "Score", steps, lines("score", history.score), { at: state.step }),
      chart("Rank by |score| (1 is the strongest)", steps, lines("rank", history.rank), { at: state.step, best: true }),
      chart("Stability (share of resamples that have it)", steps, lines("stability", history.stability), { at: state.step, limits: [0, 1] }),
    ];
    const columns = { Score: history.score, "Score in the circuit": history.inside, Rank: history.rank };
    if (!outside) delete columns["Score in the circuit"];
    if (history.stability.some((value) => value !== null)) columns.Stability = history.stability;
    return [
      element("p", {}, `${model}, ${record.label}. ${facts} ${this.span(steps, history.inside)}`),
      other ? this.key(model, other) : null,
      ...charts,
      element("p", { class: "ends" }, "Ends: ", ...this.end(source, model, state, record.task), " and ", ...this.end(into, model, state, record.task)),
      this.neighbours(`Edges into ${source}`, record, state, source, 1),
      this.neighbours(`Edges out of ${into}`, record, state, into, 0),
      this.numbers(steps, columns),
    ];
  }

  nodeParts(name, { model, record, state, other }) {
    const heads = this.headRecords.find((candidate) => candidate.model === model);
    const place = heads ? heads.heads.findIndex(([layer, head]) => `a${layer}.h${head}` === bareNode(name)) : -1;
    const scores = place < 0 ? [] : heads.scores;
    const steps = [...new Set([
      ...(record ? record.steps.map(({ step }) => step) : []),
      ...scores.flatMap((score) => score.steps),
      ...Object.keys(heads?.held ?? {}).map(Number),
    ])].sort((a, b) => a - b);
    const at = state?.step ?? null;
    const columns = {};
    const parts = [];
    const held = Object.fromEntries(Object.entries(heads?.held ?? {}).map(([step, by]) => [step, by[bareNode(name)] ?? []]));
    const strip = roleStrip(steps, held, this.roles, at);
    if (strip && (!record || ofIoi(record))) parts.push(element("h4", {}, "Roles in IOI"), strip);
    let facts = "";
    if (record) {
      const history = nodeHistory(record, name);
      facts = `${record.label}. ${this.span(steps, alignedTo(steps, record, history["edges in"]))}`;
      const line = (key) => {
        const own = [{ label: other ? `${model}, ` : "", values: alignedTo(steps, record, history[key]) }];
        if (other) own.push({ label: `${other.model} ${other.label}, `, values: alignedTo(steps, other, nodeHistory(other, name)[key]) });
        return own;
      };
      if (other) parts.push(this.key(model, other));
      for (const [key, title] of [["|score| in", "Sum of |score| of incoming edges"], ["|score| out", "Sum of |score| of outgoing edges"]]) {
        parts.push(chart(title, steps, line(key), { at }));
      }
      for (const [key, values] of Object.entries(history)) columns[key] = alignedTo(steps, record, values);
    }
    for (const score of scores) {
      const values = steps.map((step) => score.values[score.steps.indexOf(step)]?.[place] ?? null);
      parts.push(chart(`${score.title}, ${score.unit}`, steps, [{ label: "", values }], { at }));
      columns[score.title] = values;
    }
    const around = record
      ? [this.neighbours("Incoming edges", record, state, name, 1), this.neighbours("Outgoing edges", record, state, name, 0)]
      : [];
    const seen = record ? attentionParts(record, state, bareNode(name)) : [];
    const matches = heads?.matches[bareNode(name)];
    const same = matches ? element("p", { class: "matches" }, `In other models: ${matches}.`) : null;
    return [element("p", {}, `${model}${facts ? `, ${facts}` : "."}`), same, ...seen, ...around, ...parts, this.numbers(steps, columns)];
  }

  // At how many checkpoints something is in the circuit.
  span(steps, values) {
    const there = steps.filter((_, i) => values[i] !== null);
    if (!there.length) return "In this circuit at no checkpoint.";
    return `In the circuit at ${shownNumber(there.length)} of ${count(steps.length, "checkpoint")}, step ${shownNumber(there[0])} to ${shownNumber(there.at(-1))}.`;
  }

  key(model, other) {
    return element("p", { class: "quiet" }, "Solid: ", model, "; dashed: ", other.model === model ? other.label : other.model, ".");
  }

  link(name, text = shownEdge(name)) {
    const button = element("button", { type: "button", class: "link" }, text);
    button.addEventListener("click", () => this.open(name));
    return button;
  }

  // A link to an end of an edge, and the roles that it holds at the checkpoint.
  end(name, model, state, task) {
    const held = !ofIoi({ task }) ? [] : this.headRecords.find((heads) => heads.model === model)?.held[state.step]?.[bareNode(name)] ?? [];
    return [this.link(name), ...held.flatMap((role) => [" ", roleChip(...this.roles[role])])];
  }

  neighbours(title, record, state, name, way) {
    const edges = edgesAt(record, state, name, way);
    const heading = element("h4", {}, `${title} at step ${shownNumber(state.step)}: ${shownNumber(edges.length)}`);
    const items = edges.slice(0, MOST_NEIGHBOURS).map((edge) => element("li", {}, this.link(edge.name), element("span", { class: edge.score >= 0 ? "plus" : "minus" }, signed(edge.score))));
    const more = edges.length > items.length ? [element("li", { class: "quiet" }, `and ${shownNumber(edges.length - items.length)} weaker ones`)] : [];
    return element("div", {}, heading, element("ul", { class: "neighbours" }, ...items, ...more));
  }

  numbers(steps, columns) {
    const names = Object.keys(columns);
    if (!names.length) return null;
    const head = element("tr", {}, ...["Step", ...names].map((name) => element("th", { scope: "col" }, name)));
    const rows = steps.map((step, i) => element("tr", {}, element("td", {}, shownNumber(step)), ...names.map((name) => element("td", {}, shownNumber(columns[name][i])))));
    const table = element("table", {}, element("thead", {}, head), element("tbody", {}, ...rows));
    return element("details", { class: "numbers" }, element("summary", {}, "Numbers at every checkpoint"), element("div", { class: "scroll" }, table));
  }
}
