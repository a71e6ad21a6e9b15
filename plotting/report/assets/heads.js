// The head table: a row per head and role, scores at a checkpoint or their highest over training.

class HeadView {
  constructor(records, meanings) {
    this.records = records;
    this.table = new SortTable(byId("heads-table"), "Heads");
    fillSelect(byId("heads-model"), records.map((record) => [record.model, record.model]));
    byId("heads-model").addEventListener("change", () => this.chooseModel());
    byId("heads-step").addEventListener("change", () => this.fill());
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
    this.table.setColumns(
      [
        { key: "name", title: "Head", type: "text", sortKey: "place", hint: "layer and head" },
        { key: "role", title: "Role", type: "choice" },
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
