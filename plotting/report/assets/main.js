// Start: the circuit and the heads at once, the figures when plotly.js, the last script of the page, is there.

const data = JSON.parse(byId("data").textContent);
if (data.circuits.length) new CircuitView(data.circuits, data.heads);
if (data.heads.length) new HeadView(data.heads, data.meanings);
window.addEventListener("load", () => {
  startFigures();
  document.documentElement.dataset.ready = "true";
});
