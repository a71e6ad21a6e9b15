// A table that sorts by any column and filters by all of them.
//
// Columns: {key, title, hint, type: "number" | "text" | "choice", sortKey, format, bar: highest, colour(row), press}.
// `press`: {label(row), act(row)} makes the cell's text a button.
// Rows are objects; a missing value (null) sorts last whichever way, and passes no filter.

const ROWS_AT_FIRST = 300;
const COMPARISONS = {
  ">": (a, b) => a > b,
  ">=": (a, b) => a >= b,
  "<": (a, b) => a < b,
  "<=": (a, b) => a <= b,
  "=": (a, b) => a === b,
};

// "> 0.5" -> a test of a number; null for nothing typed; undefined for what is no filter.
function numberFilter(text) {
  if (!text.trim()) return null;
  const match = text.trim().match(/^(>=|<=|>|<|=|≥|≤)?\s*([-+]?(?:\d[\d,]*\.?\d*|\.\d+)(?:e[-+]?\d+)?)\s*%?$/i);
  if (!match) return undefined;
  const wanted = Number(match[2].replaceAll(",", ""));
  const compare = COMPARISONS[{ "≥": ">=", "≤": "<=" }[match[1]] ?? match[1] ?? "="];
  return (value) => compare(value, wanted);
}

class SortTable {
  constructor(holder, label) {
    this.holder = holder;
    this.label = label;
    this.columns = [];
    this.rows = [];
    this.filters = new Map();
    this.sort = null;
    this.all = false;
    this.status = element("p", { class: "table-status", role: "status" });
    this.body = element("tbody");
    this.more = element("button", { type: "button", class: "more" }, "Show all rows");
    this.more.addEventListener("click", () => { this.all = true; this.render(); });
  }

  // `sort` is [key, ascending]; filters and sorting stay where the new columns still have them.
  setColumns(columns, sort) {
    this.columns = columns;
    if (!this.sort || !columns.some((column) => column.key === this.sort[0])) this.sort = sort;
    for (const key of [...this.filters.keys()]) {
      if (!columns.some((column) => column.key === key)) this.filters.delete(key);
    }
    this.headers = new Map();
    this.inputs = new Map();
    const titles = element("tr");
    const inputs = element("tr", { class: "filters" });
    for (const column of columns) {
      const button = element("button", { type: "button", title: column.hint }, column.title);
      // On paper, heads that are repeated lack their buttons.
      const header = element("th", { scope: "col", class: column.type }, button, element("span", { class: "on-paper" }, column.title));
      button.addEventListener("click", () => this.sortBy(column));
      titles.append(header);
      this.headers.set(column.key, header);
      inputs.append(element("td", {}, this.makeFilter(column)));
    }
    const table = element("table", { class: "sortable", "aria-label": this.label }, element("thead", {}, titles, inputs), this.body);
    this.holder.replaceChildren(this.status, element("div", { class: "scroll tall", tabindex: "0" }, table), this.more);
  }

  makeFilter(column) {
    const label = `Filter ${column.title}`;
    const kept = this.filters.get(column.key) ?? "";
    let input;
    if (column.type === "choice") {
      input = element("select", { "aria-label": label });
    } else {
      input = element("input", { "aria-label": label, placeholder: column.type === "number" ? "> 0" : "filter", value: kept, size: 4 });
    }
    input.addEventListener("input", () => { this.filters.set(column.key, input.value); this.all = false; this.render(); this.onChange?.(); });
    this.inputs.set(column.key, input);
    return input;
  }

  setRows(rows) {
    this.rows = rows;
    for (const column of this.columns) {
      if (column.type !== "choice") continue;
      const values = [...new Set(rows.map((row) => row[column.key]).filter((value) => value !== null))];
      const kept = this.filters.get(column.key) ?? "";
      fillSelect(this.inputs.get(column.key), [["", "all"], ...values.map((value) => [value, value])], kept);
      this.filters.set(column.key, this.inputs.get(column.key).value);
    }
    this.all = false;
    this.render();
  }

  sortBy(column) {
    const again = this.sort[0] === column.key;
    // Numbers are looked for at their highest first.
    this.sort = [column.key, again ? !this.sort[1] : column.type !== "number"];
    this.render();
    this.onChange?.();
  }

  tests() {
    const tests = [];
    this.wrong = [];
    for (const column of this.columns) {
      const text = this.filters.get(column.key) ?? "";
      const input = this.inputs.get(column.key);
      input.removeAttribute("aria-invalid");
      if (column.type === "number") {
        const passes = numberFilter(text);
        if (passes === undefined) {
          input.setAttribute("aria-invalid", "true");
          this.wrong.push(`${column.title}: “${text}” is no filter; write a number, or > 0.5, >= 10, < 3, <= 1000`);
        } else if (passes) tests.push((row) => row[column.key] !== null && passes(row[column.key]));
      } else if (text) {
        const wanted = text.toLowerCase();
        const exact = column.type === "choice";
        tests.push((row) => {
          const value = String(row[column.key] ?? "").toLowerCase();
          return exact ? value === wanted : value.includes(wanted);
        });
      }
    }
    return tests;
  }

  sorted(rows) {
    const column = this.columns.find((candidate) => candidate.key === this.sort[0]);
    const key = column.sortKey ?? column.key;
    const way = this.sort[1] ? 1 : -1;
    const missing = (value) => value === null || value === undefined;
    return [...rows].sort((first, second) => {
      const a = first[key];
      const b = second[key];
      if (missing(a) || missing(b)) return missing(a) - missing(b);
      return way * (typeof a === "string" ? a.localeCompare(b, "en") : a - b);
    });
  }

  render() {
    const tests = this.tests();
    const passing = this.sorted(this.rows.filter((row) => tests.every((test) => test(row))));
    const drawn = this.all ? passing : passing.slice(0, ROWS_AT_FIRST);
    this.body.replaceChildren(...drawn.map((row) => this.rowElement(row)));
    for (const [key, header] of this.headers) {
      header.setAttribute("aria-sort", key !== this.sort[0] ? "none" : this.sort[1] ? "ascending" : "descending");
    }
    this.more.hidden = drawn.length === passing.length;
    const part = drawn.length < passing.length ? `, the first ${drawn.length} shown` : "";
    this.status.textContent = `${shownNumber(passing.length)} of ${count(this.rows.length, "row")}${part}${this.wrong.map((line) => `. ${line}`).join("")}`;
    this.status.classList.toggle("wrong", this.wrong.length > 0);
  }

  rowElement(row) {
    const line = document.createElement("tr");
    if (row.className) line.className = row.className;
    for (const column of this.columns) {
      const cell = document.createElement("td");
      const value = row[column.key];
      cell.className = column.type;
      const text = column.type === "number" ? (column.format ?? shownNumber)(value) : (value ?? "–");
      const colour = column.colour?.(row);
      if (column.press) {
        const button = element("button", { type: "button", class: "link", "aria-label": column.press.label(row) }, text);
        button.addEventListener("click", () => column.press.act(row));
        cell.append(button);
      } else if (colour) cell.append(roleChip(text, colour));
      else cell.textContent = text;
      if (column.bar && value !== null && value !== undefined) {
        const share = Math.min(1, Math.max(0, value / column.bar));
        cell.style.backgroundSize = `${(100 * share).toFixed(1)}% 100%`;
        cell.classList.add("bar");
      }
      line.append(cell);
    }
    return line;
  }
}
