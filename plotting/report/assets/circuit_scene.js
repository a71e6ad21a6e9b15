// Two circuits on one plan: where every node of either stands, and which edges they share. Edges go by number in a record,
// and by name (`a0.h1->m2`) between records. With roles of tokens a node has a box for each role, `a0.h1@s2`; an edge has
// the role of its source, and one into k or v may reach several boxes of its target.

const PORT_NAMES = ["", "<q>", "<k>", "<v>"];
const SPREAD = 0.42; // half the width of a box, as in plotting/parts/circuit_layout.py

// A record's edge by number: [source, target, port], the first two numbers of boxes.
const edgeEnds = (record, edge) => [record.edges[3 * edge], record.edges[3 * edge + 1], record.edges[3 * edge + 2]];

// The boxes that it reaches; given the numbers of those that write (a circuit's sources), the ones among them.
function edgeTargets(record, edge, writing) {
  const all = record.ends[edge] ?? [record.edges[3 * edge + 1]];
  return all.length > 1 && writing ? all.filter((node) => writing.has(node)) : all;
}

const sourcesOf = (record, edges) => new Set(edges.map((edge) => record.edges[3 * edge]));
const bareNode = (name) => name.split("@")[0];
const roleOf = (name) => name.split("@")[1] ?? "";

function edgeName(record, edge) {
  const [source, target, port] = edgeEnds(record, edge);
  return `${record.nodes[source][0]}->${bareNode(record.nodes[target][0])}${PORT_NAMES[port]}`;
}

const shownEdge = (name) => name.replace("->", " → ");

// Name -> number of every edge of a record, made when first asked for.
function edgeNumbers(record) {
  record.numbers ??= new Map(
    Array.from({ length: record.edges.length / 3 }, (_, edge) => [edgeName(record, edge), edge]),
  );
  return record.numbers;
}

function nodeLevel(node) {
  const name = bareNode(node);
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
  const ends = { ...record.ends };
  const known = edgeNumbers(record);
  const sameKind = record.ofNodes === other.ofNodes;
  const fromOther = Array.from({ length: other.edges.length / 3 }, (_, edge) => {
    const [source, first, port] = edgeEnds(other, edge);
    const targets = edgeTargets(other, edge).map((node) => place.get(other.nodes[node][0]));
    let number = sameKind ? known.get(edgeName(other, edge)) : undefined; // A node's line to the logits is no edge.
    if (number === undefined) {
      number = edges.length / 3;
      edges.push(place.get(other.nodes[source][0]), place.get(other.nodes[first][0]), port);
    }
    const all = new Set([...edgeTargets({ edges, ends }, number), ...targets]);
    if (all.size > 1) ends[number] = [...all];
    return number;
  });
  const roles = [...new Set([...record.columns, ...other.columns].map(([role]) => role))];
  roles.sort((one, another) => (one === "end") - (another === "end")); // The last token of both.
  const ofNodes = record.ofNodes && other.ofNodes; // Else boxes cannot say what lines do.
  return { ...record, ...planOf(nodes, record.nodes.length, roles), edges, ends, ofNodes, fromOther, numbers: null };
}

// Rows and columns as plotting/parts/circuit_layout.py has them; nodes of a circuit without roles have a column of their own.
// Within a row the first `n` nodes keep their order; the others follow.
function planOf(nodes, n, roles) {
  const levels = new Map();
  nodes.forEach(([name, x], index) => {
    const level = nodeLevel(name);
    if (!levels.has(level)) levels.set(level, []);
    levels.get(level).push({ name: bareNode(name), role: roleOf(name), index, key: [index < n ? 0 : 1, x] });
  });
  const isRow = ([first]) => first.name.includes(".");
  const widest = (of) => Math.max(1, ...[...levels.values()].filter(isRow).map((row) => row.filter(of).length));
  const side = (widest(() => true) + 1) / 2;
  const columns = [];
  const inColumns = roles.length > 0;
  if (inColumns) {
    const widths = ["", ...roles].filter((role) => nodes.some(([name]) => roleOf(name) === role)).map((role) => [role, widest((node) => node.role === role)]);
    let edge = -widths.reduce((sum, [, width]) => sum + width, 0) / 2;
    for (const [role, width] of widths) { columns.push([role, edge, edge + width]); edge += width; }
  }
  const placed = [...nodes];
  const rows = [];
  let height = 0;
  let previous = null;
  for (const level of [...levels.keys()].sort((a, b) => a - b)) {
    const row = levels.get(level).sort((a, b) => a.key[0] - b.key[0] || a.key[1] - b.key[1]);
    const { name } = row[0];
    if (previous !== null) height += level % 2 === 1 && previous === level - 1 ? (inColumns ? 0.7 : 0.5) : 1;
    previous = level;
    const isMlp = /^m\d/.test(name);
    row.forEach((node, i) => {
      let x = isMlp ? side : isRow(row) ? i - (row.length - 1) / 2 : 0;
      if (inColumns) {
        const [, left, right] = columns.find(([role]) => role === node.role);
        const own = row.filter(({ role }) => role === node.role);
        x = left + Math.floor((right - left - own.length) / 2) + own.indexOf(node) + 0.5;
      }
      placed[node.index] = [nodes[node.index][0], x, height];
    });
    rows.push([height, isMlp ? "" : isRow(row) ? `layer ${level / 2}` : name]);
  }
  const hasMlp = nodes.some(([name]) => /^m\d/.test(name));
  const halfWidth = inColumns ? columns.at(-1)[2] : hasMlp ? side + SPREAD : Math.max(side - 1 + SPREAD, SPREAD);
  return { nodes: placed, rows, columns, halfWidth, height };
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
