// Files of what is shown: the edges as CSV, the drawing as SVG, the circuit as EAP-IG's JSON.

function saveFile(name, type, text) {
  const link = element("a", { href: URL.createObjectURL(new Blob([text], { type })), download: name });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

const fileName = (...parts) => parts.join("_").replace(/[^\w.-]+/g, "-");

const NUMBER = /^[-+]?(?:\d+\.?\d*|\.\d+)(?:e[-+]?\d+)?$/i;

// Rows of objects with the same keys; a cell with a comma, quote or line break is quoted. A text that a spreadsheet would
// take for a formula has an apostrophe before it.
function toCsv(rows) {
  if (!rows.length) return "";
  const cell = (value) => {
    let text = value === null || value === undefined ? "" : String(value);
    const formula = /^[=+\-@\t\r]/.test(text) && !NUMBER.test(text);
    if (formula) text = `'${text}`;
    return formula || /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  };
  const names = Object.keys(rows[0]);
  return [names, ...rows.map((row) => names.map((name) => row[name]))].map((row) => `${row.map(cell).join(",")}\n`).join("");
}

// EAP-IG's JSON: all nodes of the model, and the given edges ([{name, score}]), which are in the graph.
function toEapIg(shape, edges) {
  const members = new Set(["input", "logits"]);
  for (const { name } of edges) for (const end of name.split("->")) members.add(end.replace(/<.>$/, ""));
  const nodes = ["input"];
  for (let layer = 0; layer < shape.n_layers; layer += 1) {
    for (let head = 0; head < shape.n_heads; head += 1) nodes.push(`a${layer}.h${head}`);
    nodes.push(`m${layer}`);
  }
  nodes.push("logits");
  return JSON.stringify({
    cfg: shape,
    nodes: Object.fromEntries(nodes.map((name) => [name, { in_graph: members.has(name) && edges.length > 0 }])),
    edges: Object.fromEntries(edges.map(({ name, score }) => [name, { score, in_graph: true }])),
  });
}

const KEPT_STYLES = ["fill", "stroke", "stroke-width", "stroke-opacity", "stroke-dasharray", "stroke-linecap", "opacity", "font-size", "font-family", "text-anchor"];

// One SVG of the drawings side by side, each with its title: [{svg, title}]. The page's style goes into its elements, so
// that other programs show the same.
function toSvg(drawings) {
  const heading = 34;
  const { backgroundColor: pageColour, color: ink, fontFamily } = getComputedStyle(document.body);
  const width = drawings.reduce((sum, { svg }) => sum + Number(svg.getAttribute("width")), 0);
  const height = heading + Math.max(...drawings.map(({ svg }) => Number(svg.getAttribute("height"))));
  const sheet = svgElement("svg", { xmlns: SVG, width, height, viewBox: `0 0 ${width} ${height}` });
  sheet.append(svgElement("rect", { width, height, fill: pageColour }));
  let x = 0;
  for (const { svg, title } of drawings) {
    const copy = svg.cloneNode(true);
    const [from, to] = [svg, copy].map((root) => [...root.querySelectorAll("*")]);
    from.forEach((original, i) => {
      const style = getComputedStyle(original);
      for (const name of KEPT_STYLES) to[i].setAttribute(name, style.getPropertyValue(name));
      for (const name of ["class", "id", "role", "aria-label", "aria-selected"]) to[i].removeAttribute(name);
    });
    for (const name of ["class", "role"]) copy.removeAttribute(name);
    copy.setAttribute("x", x);
    copy.setAttribute("y", heading);
    sheet.append(svgElement("text", { x: x + 10, y: 22, "font-size": 15, "font-family": fontFamily, fill: ink }, title), copy);
    x += Number(svg.getAttribute("width"));
  }
  return new XMLSerializer().serializeToString(sheet);
}
