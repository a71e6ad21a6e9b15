// The numbers of a head, MLP or edge at every checkpoint of a record.

// Of an edge: its score, rank by |score| and stability where it is in the circuit, else null.
function edgeHistory(record, name) {
  const edge = edgeNumbers(record).get(name);
  const history = { score: [], rank: [], stability: [] };
  for (const state of record.steps) {
    const at = edge === undefined ? -1 : state.edges.indexOf(edge);
    history.score.push(at < 0 ? null : state.scores[at]);
    history.rank.push(at < 0 ? null : ranks(state).get(edge));
    history.stability.push(at < 0 ? null : (state.stability?.[at] ?? null));
  }
  return history;
}

// Of a node: how many edges go in and out, and what their |score| sums to; null where it is not in the circuit.
function nodeHistory(record, name) {
  const node = record.nodes.findIndex(([own]) => own === name);
  const history = { "edges in": [], "edges out": [], "|score| in": [], "|score| out": [] };
  for (const state of record.steps) {
    const [counts, sums] = [[0, 0], [0, 0]];
    if (node >= 0) {
      state.edges.forEach((edge, i) => {
        for (const way of [0, 1]) {
          if (record.edges[3 * edge + 1 - way] !== node) continue;
          counts[way] += 1;
          sums[way] += Math.abs(state.scores[i]);
        }
      });
    }
    const there = counts[0] + counts[1] > 0;
    Object.keys(history).forEach((key, i) => {
      history[key].push(there ? [...counts, ...sums][i] : null);
    });
  }
  return history;
}

// Edges of a checkpoint's circuit into (`way` 1) or out of (`way` 0) a node, the strongest first: [{name, score}].
function edgesAt(record, state, name, way) {
  const node = record.nodes.findIndex(([own]) => own === name);
  return state.edges
    .map((edge, i) => ({ edge, score: state.scores[i] }))
    .filter(({ edge }) => record.edges[3 * edge + way] === node)
    .sort((a, b) => Math.abs(b.score) - Math.abs(a.score))
    .map(({ edge, score }) => ({ name: edgeName(record, edge), score }));
}

// Values of `record` at the steps of another, null at those it lacks.
const alignedTo = (steps, record, values) => steps.map((step) => {
  const at = record.steps.findIndex((state) => state.step === step);
  return at < 0 ? null : values[at];
});
