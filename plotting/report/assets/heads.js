// The head table: a row per head and role, scores at a checkpoint or their highest over training.

class HeadView {
  // `roles`: [label, colour] of the roles in IOI; `open(model, head)` shows a head's details.
  constructor(records, meanings, roles, open) {
    Object.assign(this, { records, open });
    this.colours = new Map(roles);
    this.table = new SortTable(byId("heads-table"), "Heads");
    fillSelect(byId("heads-model"), records.map((record) => [record.model, record.model]));
    byId("heads-model").addEventListener("change", () => { this.chooseModel(); this.onChange(); });
    byId("heads-step").addEventListener("change", () => { this.fill(); this.onChange(); });
    this.table.onChange = () => this.onChange();
    for (const [role, meaning] of Object.entries(meanings)) {
      byId("meanings").append(element("dt", {}, role), element("dd", {}, meaning));
    }
    for (const [key, { title, unit }] of new Map(records.flatMap((record) => record.scores.map((score) => [score.key, score])))) {
      byId("meanings").append(element("dt", {}, title), element("dd", {}, `${key}: ${unit}`));
    }
    this.chooseModel();
  }

  chooseModel() {
    this.record = this.records.find((record) => record.model === byId("heads-model").value);
    const { scores } = this.record;
    const steps = [...new Set(scores.flatMap((score) => score.steps))].sort((a, b) => b - a);
    fillSelect(
      byId("heads-step"),
      [["highest", "highest over training"], ...steps.map((step) => [step, `at step ${shownNumber(step)}`])],
      byId("heads-step").value,
    );
    byId("heads-step").parentElement.hidden = !scores.length;
    const press = { label: ({ name }) => `${name}: numbers over training`, act: ({ name }) => this.open(this.record.model, name) };
    this.table.setColumns(
      [
        { key: "name", title: "Head", type: "text", sortKey: "place", hint: "layer and head", press },
        { key: "role", title: "Role", type: "choice", colour: ({ role }) => this.colours.get(role?.replace(/ \(by effect\)$/, "")) },
        { key: "first", title: "First step", type: "number", hint: "first checkpoint with the role" },
        { key: "last", title: "Last step", type: "number", hint: "last checkpoint with the role" },
        { key: "n", title: "Checkpoints", type: "number", hint: "checkpoints with the role" },
        ...scores.map((score) => ({
          key: `score ${score.key}`,
          title: score.title.replace(/ \(.*\)$/, ""),
          hint: score.unit,
          type: "number",
          bar: score.unit.startsWith("%") ? 100 : 1,
        })),
      ],
      ["name", true],
    );
    this.fill();
  }

  addressState() {
    const { sort } = this.table;
    const entries = [["heads-model", this.record.model, this.records[0].model], ["heads-step", byId("heads-step").value, "highest"]];
    entries.push(["heads-sort", `${sort[0]}${sort[1] ? " up" : " down"}`, "name up"]);
    for (const [key, text] of this.table.filters) entries.push([`heads-filter ${key}`, text, ""]);
    return entries.filter(([, value, usual]) => value !== usual).map(([key, value]) => [key, value]);
  }

  restore(parameters) {
    const choose = (id, value) => { if ([...byId(id).options].some((option) => option.value === value)) byId(id).value = value; };
    choose("heads-model", parameters.get("heads-model") ?? this.records[0].model);
    this.table.filters = new Map([...parameters].filter(([key]) => key.startsWith("heads-filter ")).map(([key, text]) => [key.slice("heads-filter ".length), text]));
    const [, key, way] = (parameters.get("heads-sort") ?? "").match(/^(.*) (up|down)$/) ?? [null, "name", "up"];
    this.table.sort = [key, way === "up"];
    this.chooseModel();
    choose("heads-step", parameters.get("heads-step") ?? "highest");
    if ([...parameters.keys()].some((key) => key.startsWith("heads-"))) byId("heads").querySelector("details").open = true;
    this.fill();
  }

  // A head's value of a score as the table shows it.
  value(score, place) {
    const chosen = byId("heads-step").value;
    if (chosen !== "highest") return score.values[score.steps.indexOf(Number(chosen))]?.[place] ?? null;
    const values = score.values.map((row) => row[place]).filter((value) => value !== null);
    return values.length ? Math.max(...values) : null;
  }

  fill() {
    const { heads, scores, roles } = this.record;
    const shared = heads.map(([layer, head], place) => {
      const row = { name: `a${layer}.h${head}`, place };
      for (const score of scores) row[`score ${score.key}`] = this.value(score, place);
      return row;
    });
    const withRole = new Set(roles.map((role) => role.head));
    const rows = roles.map(({ head, role, first, last, n }) => ({ ...shared[head], role, first, last, n }));
    shared.forEach((row, place) => {
      if (!withRole.has(place)) rows.push({ ...row, role: null, first: null, last: null, n: null });
    });
    this.table.setRows(rows);
  }
}
