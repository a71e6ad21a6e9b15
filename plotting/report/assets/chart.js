// Small charts over training for the details of a head or an edge: checkpoints at equal distances, gaps where there is
// nothing.

const CHART = { width: 330, height: 84, left: 50, right: 8, top: 8, bottom: 16 };
const LINE_CLASSES = ["first", "second"];

// `lines`: [{label, values, hollow}], a value or null per step, drawn as a ring where `hollow` says so. `at`: the step to mark. `best`: whether 1 is at the top (ranks).
function chart(title, steps, lines, { at = null, best = false, limits = null } = {}) {
  const values = lines.flatMap((line) => line.values).filter((value) => value !== null);
  if (!values.length) return null;
  let [low, high] = limits ?? [Math.min(...values), Math.max(...values)];
  if (!limits && low === high) [low, high] = low === 0 ? [-1, 1] : [Math.min(0, low), Math.max(0, high)];
  if (best) [low, high] = [1, Math.max(2, high)];
  const { width, height, left, right, top, bottom } = CHART;
  const x = (i) => left + (steps.length < 2 ? 0.5 : i / (steps.length - 1)) * (width - left - right);
  const up = (value) => (best ? (value - low) / (high - low) : (high - value) / (high - low));
  const y = (value) => top + up(value) * (height - top - bottom);
  const last = lines[0].values.findLast((value) => value !== null);
  const told = `${title} over training: from ${shownNumber(Math.min(...values))} to ${shownNumber(Math.max(...values))}, last ${shownNumber(last)}`;
  const svg = svgElement("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": told, class: "chart" });
  for (const value of best ? [low, high] : [high, low]) {
    svg.append(svgElement("line", { x1: left, x2: width - right, y1: y(value), y2: y(value), class: "grid" }));
    svg.append(svgElement("text", { x: left - 5, y: y(value) + 4, class: "tick end" }, shownNumber(value)));
  }
  if (!best && low < 0 && high > 0) svg.append(svgElement("line", { x1: left, x2: width - right, y1: y(0), y2: y(0), class: "zero" }));
  const now = steps.indexOf(at);
  if (now >= 0) svg.append(svgElement("line", { x1: x(now), x2: x(now), y1: top, y2: height - bottom, class: "now" }));
  [0, steps.length - 1].forEach((i, end) => {
    svg.append(svgElement("text", { x: x(i), y: height - 3, class: end ? "tick end" : "tick" }, `step ${shownNumber(steps[i])}`));
  });
  lines.forEach((line, number) => {
    let path = "";
    line.values.forEach((value, i) => {
      if (value === null) return;
      path += `${i && line.values[i - 1] !== null ? "L" : "M"}${x(i).toFixed(1)} ${y(value).toFixed(1)}`;
    });
    svg.append(svgElement("path", { d: path, class: `line ${LINE_CLASSES[number]}` }));
    line.values.forEach((value, i) => {
      if (value === null) return;
      const dot = svgElement("circle", { cx: x(i), cy: y(value), r: steps[i] === at ? 3.4 : 1.9, class: `dot ${LINE_CLASSES[number]}${line.hollow?.[i] ? " hollow" : ""}` });
      dot.append(svgElement("title", {}, `${line.label}step ${shownNumber(steps[i])}: ${shownNumber(value)}`));
      svg.append(dot);
    });
  });
  return element("figure", { class: "small" }, element("figcaption", {}, title), svg);
}

// The roles that a head holds, a row per role and a cell per checkpoint. `held`: step -> numbers of roles, absent where
// nothing was measured.
function roleStrip(steps, held, roles, at) {
  const ever = [...new Set(Object.values(held).flat())].sort((a, b) => a - b);
  const rows = ever.map((role) => {
    const [label, colour] = roles[role];
    const cells = steps.map((step) => {
      const own = held[step];
      const state = own === undefined ? "not measured" : own.includes(role) ? "holds the role" : "does not hold it";
      const cell = element("span", { class: step === at ? "cell now" : "cell", title: `step ${shownNumber(step)}: ${state}` });
      if (own !== undefined) cell.style.background = own.includes(role) ? colour : "var(--grid)";
      return cell;
    });
    const times = steps.filter((step) => held[step]?.includes(role));
    const told = `${label}: at ${count(times.length, "checkpoint")}, step ${shownNumber(times[0])} to ${shownNumber(times.at(-1))}`;
    return element("div", { class: "role-row" }, roleChip(label, colour), element("div", { class: "cells", role: "img", "aria-label": told }, ...cells));
  });
  return rows.length ? element("div", { class: "roles" }, ...rows) : null;
}

function roleChip(label, colour) {
  const square = element("i", { class: "swatch" });
  square.style.borderColor = colour;
  return element("span", { class: "chip" }, square, label);
}
