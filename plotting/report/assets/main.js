// Start: the circuit and the heads at once, the figures when plotly.js, the last script of the page, is there.

const data = JSON.parse(byId("data").textContent);
const address = new Address();
const page = { circuit: null };
const details = new Details(data.heads, data.roles, {
  open: (name) => page.open(name),
  closed: () => page.circuit?.closed(),
});
if (data.circuits.length) {
  page.circuit = new CircuitView(data.circuits, data.heads, data.roles, details);
  address.add(page.circuit);
}
// What is open belongs to the circuit that is shown, or for a model without one to its head scores alone.
page.model = data.heads[0]?.model ?? null;
page.open = (name, focus = true) => {
  if (page.circuit?.record.model === page.model) page.circuit.choose(name, focus);
  else details.show(name, { model: page.model, record: null, state: null, other: null }, focus);
};
if (page.circuit) page.circuit.onModel = (model) => { page.model = model; };
if (data.heads.length) {
  const heads = new HeadView(data.heads, data.meanings, data.roles, (model, name) => {
    page.circuit?.goToModel(model);
    page.model = model;
    page.open(name);
  });
  address.add(heads);
}
// A link to a section opens what is folded there.
document.querySelector("nav").addEventListener("click", (event) => {
  const fold = document.querySelector(`${event.target.closest("a")?.getAttribute("href") ?? "nav"} > details`);
  if (fold) fold.open = true;
});
address.read();
window.addEventListener("load", () => {
  startFigures();
  document.documentElement.dataset.ready = "true";
});
