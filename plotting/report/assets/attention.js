// What a head attends to on a prompt, and which tokens it raises and lowers: a part of its details.

const PATTERN = { width: 330, label: 74, letters: 10, most: 30 };

// The checkpoint of a record at which the head is kept that is nearest to a step, the earlier of two; null if there is none.
function nearestSeen(record, name, step) {
  const there = (record?.attention?.seen ?? []).filter((seen) => seen.heads[name]);
  const far = (seen) => Math.abs(seen.step - step);
  return there.reduce((best, seen) => (best === null || far(seen) < far(best) ? seen : best), null);
}

// A token as a label; a space alone is drawn.
const tokenLabel = (text) => text.trim() || "␣".repeat(text.length);
const shortened = (text) => (text.length > PATTERN.letters ? `${text.slice(0, PATTERN.letters - 1)}…` : text);

// [[attention of token 0 to token 0], [of 1 to 0, to 1], ...] from bytes.
function patternOf(encoded, n) {
  const bytes = atob(encoded);
  let at = 0;
  return Array.from({ length: n }, (_, query) => Array.from({ length: query + 1 }, () => bytes.charCodeAt(at++) / 255));
}

function attentionParts(record, state, name) {
  const seen = nearestSeen(record, name, state.step);
  if (!seen) return record?.attention ? [element("p", { class: "quiet" }, withoutHead(record, name))] : [];
  const [encoded, moved] = seen.heads[name];
  const tokens = seen.tokens.map(tokenLabel);
  const pattern = patternOf(encoded, tokens.length);
  const strongest = pattern.map((row) => row.indexOf(Math.max(...row)));
  const end = tokens.length - 1;
  const told = `Attention of ${name} in ${seen.prompt}: from the last token, ${tokens[end]}, the most goes to ${tokens[strongest[end]]} (${shownNumber(round(pattern[end][strongest[end]]))}). The table below has all tokens.`;
  const { measured } = record.attention;
  const kept = record.attention.seen.length;
  const where = seen.step === state.step ? "" : ` (the nearest checkpoint with this head${kept < measured ? `; ${kept} of ${measured} are kept on this page` : ""})`;
  const words = (raised) => moved.filter(([, effect]) => effect > 0 === raised).map(([text, effect]) => element("span", { class: effect > 0 ? "plus" : "minus" }, `${tokenLabel(text)} ${signed(effect)}`));
  const list = (title, items) => (items.length ? element("p", { class: "moved" }, `${title} `, ...items.flatMap((item, i) => (i ? [", ", item] : [item])), ".") : null);
  return [
    element("h4", {}, `Attention at step ${shownNumber(seen.step)}`),
    element("p", { class: "quiet" }, `In ${seen.prompt}${where}. Rows: the token that attends; columns: what it attends to.`),
    patternDrawing(tokens, pattern, told),
    list("Raises", words(true)),
    list("Lowers", words(false)),
    element("p", { class: "quiet" }, "What the head's output at the end of the prompt adds to tokens' logits directly."),
    strongestTable(tokens, pattern, strongest),
  ];
}

function withoutHead(record, name) {
  const without = record.attention.seen.some((seen) => seen.without);
  return /^a/.test(name) ? `The attention of ${name} was not kept${without ? ", or left out to keep this page small" : ": it is in none of the circuits"}.` : "";
}

const round = (share) => Math.round(1000 * share) / 1000;

function patternDrawing(tokens, pattern, told) {
  const n = tokens.length;
  const named = n <= PATTERN.most;
  const margin = named ? PATTERN.label : 4;
  const size = (PATTERN.width - margin) / n;
  const svg = svgElement("svg", { viewBox: `0 0 ${PATTERN.width} ${PATTERN.width}`, role: "img", "aria-label": told, class: "pattern" });
  pattern.forEach((row, query) => row.forEach((share, key) => {
    const cell = svgElement("rect", { x: margin + key * size, y: query * size, width: size, height: size, "fill-opacity": share.toFixed(3) });
    cell.append(svgElement("title", {}, `${tokens[query]} → ${tokens[key]}: ${round(share)}`));
    svg.append(cell);
  }));
  if (named) tokens.forEach((token, i) => {
    const middle = (i + 0.5) * size;
    svg.append(svgElement("text", { x: margin - 4, y: middle + 3, class: "end" }, shortened(token)));
    const [x, y] = [margin + middle + 3, n * size + 4];
    svg.append(svgElement("text", { x, y, class: "end", transform: `rotate(-90 ${x} ${y})` }, shortened(token)));
  });
  return svg;
}

// For each token the one that it attends to the most.
function strongestTable(tokens, pattern, strongest) {
  const head = element("tr", {}, ...["From", "Most to", "Attention"].map((name) => element("th", { scope: "col" }, name)));
  const rows = tokens.map((token, i) => element("tr", {}, element("td", {}, `${i + 1}. ${token}`), element("td", {}, `${strongest[i] + 1}. ${tokens[strongest[i]]}`), element("td", {}, String(round(pattern[i][strongest[i]])))));
  const table = element("table", {}, element("thead", {}, head), element("tbody", {}, ...rows));
  return element("details", { class: "attended" }, element("summary", {}, "Strongest attention of every token"), element("div", { class: "scroll" }, table));
}
