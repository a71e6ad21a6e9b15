// What is chosen on the page, in the address's fragment (`#model=toy&task=ioi&step=1350`), so that a view can be sent.
// A fragment without `=` is an anchor, and no state.

const SETTLE_ADDRESS = 150;

class Address {
  constructor() {
    this.parts = [];
    window.addEventListener("hashchange", () => this.read());
  }

  // `part` has `addressState()`, which gives [[key, value], ...] of what differs from the default, and `restore(parameters)`.
  add(part) {
    this.parts.push(part);
    part.onChange = () => this.changed();
  }

  // Put the page into the state of its address, if that holds one.
  read() {
    const text = window.location.hash.slice(1);
    if (!text.includes("=")) return;
    const parameters = new URLSearchParams(text);
    for (const part of this.parts) part.restore(parameters);
    const target = [...parameters.keys()].some((key) => !key.startsWith("heads-")) ? "circuit" : "heads";
    if (!byId(target).hidden) byId(target).scrollIntoView();
  }

  changed() {
    clearTimeout(this.waiting);
    this.waiting = setTimeout(() => this.write(), SETTLE_ADDRESS);
  }

  write() {
    clearTimeout(this.waiting);
    const parameters = new URLSearchParams(this.parts.flatMap((part) => part.addressState()));
    window.history.replaceState(null, "", `#${parameters}`);
  }
}
