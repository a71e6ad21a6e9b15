// The numbers of a head, MLP or edge at every checkpoint of a record.

// The slider asks for the same history at every checkpoint.
function remembered(record, name, compute) {
  record.remembered ??= new Map();
  if (!record.remembered.has(name)) record.remembered.set(name, compute());
  return record.remembered.get(name);
}

// A half-precision number from its 16 bits; null for NaN.
function fromHalf(bits) {
  const [sign, exponent, fraction] = [bits & 0x8000 ? -1 : 1, (bits >> 10) & 0x1f, bits & 0x3ff];
  if (exponent === 31) return null;
  return sign * (exponent ? 2 ** (exponent - 15) * (1 + fraction / 1024) : 2 ** -14 * (fraction / 1024));
}

// The scores of an edge at every checkpoint, in the circuit there or not: to three digits, null where unknown.
function allScores(record, edge) {
  const { histories } = record;
  if (!histories) return null;
  histories.rows ??= new Map(histories.edges.map((number, row) => [number, row]));
  histories.bytes ??= atob(histories.data);
  const row = histories.rows.get(edge);
  if (row === undefined) return null;
  return record.steps.map((_, column) => {
    const at = 2 * (row * record.steps.length + column);
    const share = fromHalf(histories.bytes.charCodeAt(at) | (histories.bytes.charCodeAt(at + 1) << 8));
    return share === null ? null : Number((share * histories.scale).toPrecision(3));
  });
}

// Of an edge: `score` where it is known, `inside` (its score in the circuit, else null), and where it is in the circuit its
// rank by |score| and its stability.
function edgeHistory(record, name) {
  return remembered(record, name, () => computeEdgeHistory(record, name));
}

function computeEdgeHistory(record, name) {
  const edge = edgeNumbers(record).get(name);
  const known = edge === undefined ? null : allScores(record, edge);
  const history = { score: [], inside: [], rank: [], stability: [] };
  record.steps.forEach((state, i) => {
    const at = edge === undefined ? -1 : state.edges.indexOf(edge);
    history.inside.push(at < 0 ? null : state.scores[at]);
    history.score.push(at < 0 ? (known?.[i] ?? null) : state.scores[at]);
    history.rank.push(at < 0 ? null : ranks(state).get(edge));
    history.stability.push(at < 0 ? null : (state.stability?.[at] ?? null));
  });
  return history;
}

// Of a node: how many edges go in and out, and what their |score| sums to; null where it is not in the circuit.
function nodeHistory(record, name) {
  return remembered(record, name, () => computeNodeHistory(record, name));
}

function computeNodeHistory(record, name) {
  const boxes = boxesOf(record, name);
  const history = { "edges in": [], "edges out": [], "|score| in": [], "|score| out": [] };
  for (const state of record.steps) {
    const [counts, sums] = [[0, 0], [0, 0]];
    if (boxes.size) {
      const writing = sourcesOf(record, state.edges);
      state.edges.forEach((edge, i) => {
        for (const way of [0, 1]) {
          if (!joins(record, edge, boxes, 1 - way, writing)) continue;
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

// The boxes of a node's name; of one without a role, those at all roles.
const boxesOf = (record, name) => new Set(record.nodes.flatMap(([own], node) => (own === name || bareNode(own) === name ? [node] : [])));

// Whether an edge goes into (`way` 1) or out of (`way` 0) some of the boxes.
const joins = (record, edge, boxes, way, writing) => (way ? edgeTargets(record, edge, writing) : [record.edges[3 * edge]]).some((node) => boxes.has(node));

// Edges of a checkpoint's circuit into (`way` 1) or out of (`way` 0) a node, the strongest first: [{name, score}].
function edgesAt(record, state, name, way) {
  const [boxes, writing] = [boxesOf(record, name), sourcesOf(record, state.edges)];
  return state.edges
    .map((edge, i) => ({ edge, score: state.scores[i] }))
    .filter(({ edge }) => joins(record, edge, boxes, way, writing))
    .sort((a, b) => Math.abs(b.score) - Math.abs(a.score))
    .map(({ edge, score }) => ({ name: edgeName(record, edge), score }));
}

// Values of `record` at the steps of another, null at those it lacks.
const alignedTo = (steps, record, values) => steps.map((step) => {
  const at = record.steps.findIndex((state) => state.step === step);
  return at < 0 ? null : values[at];
});
