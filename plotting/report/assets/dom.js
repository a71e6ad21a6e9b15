// Small helpers. Text from data reaches the page only as text nodes and attributes, never as markup.

const SVG = "http://www.w3.org/2000/svg";

const byId = (id) => document.getElementById(id);

function element(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== null && value !== undefined) node.setAttribute(name, value);
  }
  node.append(...children);
  return node;
}

function svgElement(tag, attributes = {}, text = null) {
  const node = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  if (text !== null) node.textContent = text;
  return node;
}

// Four significant digits; whole numbers (steps) with separators.
function shownNumber(value) {
  if (value === null || value === undefined) return "–";
  if (Number.isInteger(value)) return value.toLocaleString("en-US");
  const size = Math.abs(value);
  return size >= 1e5 || size < 1e-4 ? value.toExponential(2) : String(Number(value.toPrecision(4)));
}

const signed = (value) => (value > 0 ? "+" : "") + shownNumber(value);

function compactNumber(value) {
  for (const [unit, suffix] of [[1e12, "T"], [1e9, "B"], [1e6, "M"], [1e3, "k"]]) {
    if (value >= 0.9995 * unit) return (value / unit).toFixed(value >= 99.5 * unit ? 0 : 1).replace(/\.0$/, "") + suffix;
  }
  return String(value);
}

const count = (n, what) => `${shownNumber(n)} ${what}${n === 1 ? "" : "s"}`;

function fillSelect(select, entries, chosen) {
  select.replaceChildren(...entries.map(([value, label]) => element("option", { value }, label)));
  if (entries.some(([value]) => String(value) === String(chosen))) select.value = chosen;
}

// A name in plotly's markup back to plain text.
function unescaped(text) {
  const entities = { "&lt;": "<", "&gt;": ">", "&amp;": "&" };
  return text.replace(/<[^>]*>/g, "").replace(/&(?:lt|gt|amp);/g, (entity) => entities[entity]);
}
