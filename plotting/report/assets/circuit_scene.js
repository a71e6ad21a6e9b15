// Two circuits on one plan: where every node of either stands, and which edges they share. Edges go by number in a record,
// and by name (`a0.h1->m2`) between records.

const PORT_NAMES = ["", "<q>", "<k>", "<v>"];
const SPREAD = 0.42; // half the width of a box, as in plotting/parts/circuit_layout.py

// A record's edge by number: [source, target, port], the first two numbers of nodes.
const edgeEnds = (record, edge) => [record.edges[3 * edge], record.edges[3 * edge + 1], record.edges[3 * edge + 2]];

function edgeName(record, edge) {
  const [source, target, port] = edgeEnds(record, edge);
  return `${record.nodes[source][0]}->${record.nodes[target][0]}${PORT_NAMES[port]}`;
}

const shownEdge = (name) => name.replace("->", " → ");

// Name -> number of every edge of a record, made when first asked for.
function edgeNumbers(record) {
  record.numbers ??= new Map(
    Array.from({ length: record.edges.length / 3 }, (_, edge) => [edgeName(record, edge), edge]),
  );
  return record.numbers;
}

function nodeLevel(name) {
  if (name === "input") return -1;
  if (name === "logits") return Infinity;
  const [, kind, layer] = name.match(/^([am])(\d+)/);
  return 2 * Number(layer) + (kind === "m" ? 1 : 0);
}

// The plan of a record and another: `record` itself if they are one. The first record's nodes and edges keep their
// numbers; `fromOther` has the number here of each of the other's edges.
function sceneOf(record, other) {
  if (!other || other === record) return { ...record, fromOther: null };
  const nodes = [...record.nodes];
  const place = new Map(nodes.map(([name], index) => [name, index]));
  for (const node of other.nodes) {
    if (!place.has(node[0])) { place.set(node[0], nodes.length); nodes.push(node); }
  }
  const edges = [...record.edges];
  const known = edgeNumbers(record);
  const fromOther = Array.from({ length: other.edges.length / 3 }, (_, edge) => {
    const number = known.get(edgeName(other, edge));
    if (number !== undefined) return number;
    const [source, target, port] = edgeEnds(other, edge);
    edges.push(place.get(other.nodes[source][0]), place.get(other.nodes[target][0]), port);
    return edges.length / 3 - 1;
  });
  const ofNodes = record.ofNodes && other.ofNodes; // Else boxes cannot say what lines do.
  return { ...record, ...planOf(nodes, record.nodes.length), edges, ofNodes, fromOther, numbers: null };
}

// Rows as plotting/parts/circuit_layout.py stacks them. Within a row the first `n` nodes keep their order; the others follow.
function planOf(nodes, n) {
  const levels = new Map();
  nodes.forEach(([name, x], index) => {
    const level = nodeLevel(name);
    if (!levels.has(level)) levels.set(level, []);
    levels.get(level).push({ name, index, key: [index < n ? 0 : 1, x] });
  });
  const isRow = ([first]) => first.name.includes(".");
  const side = (Math.max(1, ...[...levels.values()].filter(isRow).map((row) => row.length)) + 1) / 2;
  const placed = [...nodes];
  const rows = [];
  let height = 0;
  let previous = null;
  for (const level of [...levels.keys()].sort((a, b) => a - b)) {
    const row = levels.get(level).sort((a, b) => a.key[0] - b.key[0] || a.key[1] - b.key[1]);
    const { name } = row[0];
    if (previous !== null) height += level % 2 === 1 && previous === level - 1 ? 0.5 : 1;
    previous = level;
    const isMlp = /^m\d/.test(name);
    row.forEach((node, i) => {
      const x = isMlp ? side : isRow(row) ? i - (row.length - 1) / 2 : 0;
      placed[node.index] = [node.name, x, height];
    });
    rows.push([height, isMlp ? "" : isRow(row) ? `layer ${level / 2}` : name]);
  }
  const hasMlp = nodes.some(([name]) => /^m\d/.test(name));
  const halfWidth = hasMlp ? side + SPREAD : Math.max(side - 1 + SPREAD, SPREAD);
  return { nodes: placed, rows, halfWidth, height };
}

// The page holds shares of thresholds in thousandths.
const ofThousand = (share) => (share === null || share === undefined ? null : share / 1000);

// Edges of a circuit and their state against another: `added` (only here), `removed` (only there), `kept`, or `only` if
// there is nothing to compare with. `now` and `then`: number of an edge -> its place in `state` and `other`.
function compareCircuits(state, other, fromOther) {
  const now = new Map(state.edges.map((edge, i) => [edge, i]));
  const there = other?.edges ?? [];
  const then = new Map(there.map((edge, i) => [fromOther ? fromOther[edge] : edge, i]));
  const items = [];
  for (const [edge, i] of now) {
    const j = then.get(edge);
    const kept = j !== undefined;
    items.push({
      edge,
      score: state.scores[i],
      earlier: kept ? other.scores[j] : null,
      stability: state.stability?.[i] ?? null,
      inclusion: ofThousand(state.inclusion?.[i]),
      state: !there.length ? "only" : kept ? "kept" : "added",
    });
  }
  if (now.size) {
    for (const [edge, j] of then) {
      if (now.has(edge)) continue;
      const stability = other.stability?.[j] ?? null;
      const inclusion = ofThousand(other.inclusion?.[j]);
      items.push({ edge, score: other.scores[j], earlier: other.scores[j], stability, inclusion, state: "removed" });
    }
  }
  return { now, then, items };
}

// Rank by |score| of every edge of a circuit, 1 the strongest; made when first asked for.
function ranks(state) {
  if (!state.ranks) {
    const order = state.edges.map((edge, i) => i).sort((a, b) => Math.abs(state.scores[b]) - Math.abs(state.scores[a]));
    state.ranks = new Map(order.map((i, rank) => [state.edges[i], rank + 1]));
  }
  return state.ranks;
}
