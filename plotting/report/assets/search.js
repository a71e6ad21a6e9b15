// Search for a head, an MLP or an edge: a combobox with a list of what matches.

const MOST_FOUND = 30;

// "a3.h1", "3.1", "m0 logits", "a0.h1 -> m2": words that a name must hold, a number in them whole.
function searchTest(text) {
  const words = text.toLowerCase().replace(/->|→/g, " ").split(/\s+/).filter(Boolean)
    .map((word) => word.replace(/^(\d+)\.(\d+)/, "a$1.h$2"));
  if (!words.length) return () => false;
  const holds = (name, word, from) => {
    for (let at = name.indexOf(word, from); at >= 0; at = name.indexOf(word, at + 1)) {
      const cut = /\d$/.test(word) && /\d/.test(name[at + word.length] ?? "");
      const inside = at > 0 && /[a-z0-9]/.test(name[at - 1]) && /^[a-z]/.test(word);
      if (!cut && !inside) return at + word.length;
    }
    return -1;
  };
  const arrow = /->|→/.test(text);
  return (name) => {
    const lower = name.toLowerCase();
    // With an arrow the words stand in the order of source and target.
    let from = 0;
    return words.every((word) => {
      const end = holds(lower, word, arrow ? from : 0);
      from = end;
      return end >= 0;
    });
  };
}

class Search {
  // `names()` gives what can be found, the likeliest first; `choose(name)` is told what was.
  constructor(names, choose) {
    Object.assign(this, { names, choose });
    this.input = byId("find");
    this.list = byId("found");
    this.status = byId("found-status");
    this.input.addEventListener("input", () => this.fill());
    this.input.addEventListener("keydown", (event) => this.press(event));
    this.input.addEventListener("blur", () => setTimeout(() => this.hide(), 150));
    // Not when the focus comes back from what was found.
    this.input.addEventListener("click", () => { if (this.input.value) this.fill(); });
  }

  fill() {
    const test = searchTest(this.input.value);
    const matching = this.names().filter(test);
    this.found = matching.slice(0, MOST_FOUND);
    this.list.replaceChildren(...this.found.map((name, i) => {
      const option = element("li", { role: "option", id: `found-${i}`, "aria-selected": "false" }, shownEdge(name));
      option.addEventListener("pointerdown", (event) => { event.preventDefault(); this.take(i); });
      return option;
    }));
    this.status.textContent = !this.input.value.trim() ? "" : matching.length > this.found.length
      ? `${shownNumber(matching.length)} found, the first ${this.found.length} listed`
      : `${shownNumber(matching.length)} found`;
    this.list.hidden = !this.found.length;
    this.input.setAttribute("aria-expanded", String(!this.list.hidden));
    this.point(this.found.length ? 0 : -1);
  }

  point(index) {
    this.at = index;
    [...this.list.children].forEach((option, i) => option.setAttribute("aria-selected", String(i === index)));
    if (index < 0) return this.input.removeAttribute("aria-activedescendant");
    this.input.setAttribute("aria-activedescendant", `found-${index}`);
    return this.list.children[index].scrollIntoView({ block: "nearest" });
  }

  press(event) {
    const open = !this.list.hidden;
    const moves = { ArrowDown: 1, ArrowUp: -1 };
    if (event.key === "ArrowDown" && !open && this.input.value) {
      this.fill();
    } else if (event.key in moves && open) {
      const n = this.found.length;
      this.point((this.at + moves[event.key] + n) % n);
    } else if (event.key === "Enter" && open) {
      this.take(this.at);
    } else if (event.key === "Escape" && (open || this.input.value)) {
      this.input.value = "";
      this.status.textContent = "";
      this.hide();
    } else return;
    event.preventDefault();
  }

  take(index) {
    const name = this.found[index];
    this.hide();
    if (name) this.choose(name);
  }

  hide() {
    this.list.hidden = true;
    this.input.setAttribute("aria-expanded", "false");
    this.input.removeAttribute("aria-activedescendant");
  }
}
