// How the tables are shown, which the address keeps behind a question mark, so that a link shows the same.

const packed = Uint8Array.from(atob(document.getElementById("data").textContent), (letter) => letter.charCodeAt(0));
const data = await new Response(new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"))).json();
const sections = find("main section[id]").map((section) => [section.id, section]);
const named = (selector) =>
  new Map(
    sections.flatMap(([id, section]) => find(selector, section).map((element, at) => [at ? `${id}-${at}` : id, element])),
  );
const tables = named("table");
const groups = named(".views");
const changed = () => document.dispatchEvent(new Event("view"));

// --------------------------------------------------------------------------------------------------------- filtering

const filter = document.getElementById("filter");
const lines = find("[data-row]");
function choose() {
  const { text, ...facets } = Object.fromEntries(new FormData(filter));
  const wanted = text.trim().toLowerCase().split(/\s+/);
  const shown = data.rows.map(
    (row) =>
      wanted.every((word) => row.label.toLowerCase().includes(word)) &&
      Object.entries(facets).every(([name, value]) => !value || row.facets[name] === value),
  );
  for (const line of lines) line.hidden = !shown[line.dataset.row];
  const count = shown.filter(Boolean).length;
  const all = data.rows.length;
  filter.querySelector("output").textContent =
    count === all ? `${all} row${all === 1 ? "" : "s"}` : count ? `${count} of ${all} rows` : "No row is like that";
  filter.querySelector("[type=reset]").hidden = !text && Object.values(facets).every((value) => !value);
}
filter.hidden = data.rows.length < 2;
filter.addEventListener("input", () => (choose(), changed()));
filter.addEventListener("submit", (event) => event.preventDefault());
filter.addEventListener("reset", () => setTimeout(() => (choose(), changed())));
const facets = find("details", filter)[0];
if (facets) facets.open = matchMedia("(min-width: 60rem)").matches;

// ----------------------------------------------------------------------------------------------------------- columns

// Columns of a table that are hidden: what its reader chose, or else, where it is to fit, what does not fit.
const columns = new Map();

function chooser(table) {
  const names = headings(table).map(words);
  const fits = Boolean(table.closest(".fit"));
  const label = Math.max(0, [...(table.tBodies[0].rows[0]?.cells ?? [])].findIndex((cell) => cell.tagName === "TH"));
  if (!fits && (names.length < 7 || table.rows.length < 3 || table.closest(".matrix"))) return;
  const one = { hidden: new Set(), chosen: false, fits, label };
  const edited = (edit) => () => {
    one.chosen = true;
    edit();
    show(table);
    changed();
  };
  const press = (at) => edited(() => one.hidden[one.hidden.has(at) ? "delete" : "add"](at));
  const boxes = names.map((text, at) => at === label ? null : make("label", null, make("input", { type: "checkbox", "data-at": String(at), input: press(at) }), ` ${text}`));
  one.control = make(
    "details", { class: "columns control" },
    make("summary", null),
    make("div", { role: "group", "aria-label": `Columns: ${table.closest(".box").getAttribute("aria-label")}` }, boxes, make("button", { type: "button", click: edited(() => one.hidden.clear()) }, "All columns")),
  );
  one.control.addEventListener("keydown", (event) => {
    if (event.key !== "Escape") return;
    one.control.open = false;
    one.control.firstChild.focus();
  });
  columns.set(table, one);
  const sized = make("div", { class: "sized" }, one.control);
  table.closest(".box").replaceWith(sized);
  sized.append(table.parentElement);
  show(table);
}

function show(table) {
  const { hidden, control } = columns.get(table);
  for (const row of table.rows) [...row.cells].forEach((cell, at) => (cell.hidden = hidden.has(at)));
  const count = headings(table).length;
  control.firstChild.textContent = hidden.size ? `Columns: ${count - hidden.size} of ${count}` : "Columns";
  find("input", control).forEach((box) => (box.checked = !hidden.has(Number(box.dataset.at))));
}

// Paper has room for all columns, and parts that are opened for it tell of that only later.
let printing = false;
function fit() {
  if (printing) return;
  for (const [table, one] of columns) {
    if (one.chosen || !one.fits) continue;
    const box = table.closest(".box");
    if (one.hidden.size) {
      one.hidden.clear();
      show(table);
    }
    // From the right, but for names and what the table is there for.
    for (let at = headings(table).length - 1; at > 1 && box.scrollWidth > box.clientWidth; at--) {
      if (at === one.label || find(".bar, strong", table).some((cell) => cell.closest("td")?.cellIndex === at)) continue;
      one.hidden.add(at);
      show(table);
    }
  }
  edges();
}

for (const table of tables.values()) chooser(table);
let waiting = 0;
function refit() {
  cancelAnimationFrame(waiting);
  waiting = requestAnimationFrame(fit);
}
for (const part of find("main details:not(.columns)")) part.addEventListener("toggle", refit);
addEventListener("resize", refit);
addEventListener("click", (event) => {
  for (const open of find("details.columns[open]")) if (!open.contains(event.target)) open.open = false;
});

// ------------------------------------------------------------------------------------------- views, heat map, models

// Of several views of the same table, one at a time.
function switches(group) {
  const views = find(":scope > .view", group);
  const select = (wanted) => {
    views.forEach((view) => (view.hidden = view !== wanted));
    buttons.forEach((button, at) => button.setAttribute("aria-pressed", String(views[at] === wanted)));
    fit();
  };
  const buttons = views.map((view) => make("button", { type: "button", click: () => (select(view), changed()) }, view.dataset.name));
  const usual = views.find((view) => "first" in view.dataset) ?? views[0];
  if (views.length > 1) group.prepend(make("div", { class: "switch control", role: "group", "aria-label": "Which numbers" }, buttons));
  return { views, select, usual };
}
const switched = new Map([...groups].map(([name, group]) => [name, switches(group)]));

// The columns of classes are colored by what stands in them.
for (const table of find(".heat table")) {
  const classes = headings(table).map((heading) => data.classes.includes(words(heading)));
  for (const row of table.tBodies[0].rows) {
    [...row.cells].forEach((cell, at) => {
      if (!classes[at] || cell.dataset.s === undefined) return;
      cell.classList.add("shade");
      cell.style.setProperty("--v", `${100 * cell.dataset.s}%`);
    });
  }
}

// A row's name leads to its model.
for (const cell of find("main tr[data-row] > th[scope=row]")) {
  const name = [...cell.childNodes].filter((node) => node.nodeName !== "SMALL");
  cell.prepend(make("a", { href: `#model-${cell.parentElement.dataset.row}`, class: "name" }, name));
}

// ----------------------------------------------------------------------------------------------------------- address

function address() {
  const [anchor, ...query] = location.hash.slice(1).split("?");
  return { anchor, query: query.join("?") };
}

function state() {
  const found = new URLSearchParams([...new FormData(filter)].filter(([, value]) => value));
  for (const [name, table] of tables) {
    const at = headings(table).findIndex((heading) => ORDERS.includes(heading.getAttribute("aria-sort")));
    if (at >= 0) found.append("sort", `${name}.${at}.${headings(table)[at].getAttribute("aria-sort")}`);
    const one = columns.get(table);
    if (one?.chosen) found.append("hide", [name, ...one.hidden].join("."));
  }
  for (const [name, { views, usual }] of switched) {
    const at = views.findIndex((view) => !view.hidden);
    if (views[at] !== usual) found.append("show", `${name}.${at}`);
  }
  return found.toString();
}

function restore(query) {
  const wanted = new URLSearchParams(query);
  const told = (name) => new Map(wanted.getAll(name).map((text) => [text.split(".")[0], text.split(".").slice(1)]));
  const [sorted, hidden, shown] = ["sort", "hide", "show"].map(told);
  for (const field of filter.elements) {
    if (!field.name) continue;
    field.value = wanted.get(field.name) ?? "";
    if (field.selectedIndex < 0) field.selectedIndex = 0;
    if (field.value && field.closest("details")) facets.open = true;
  }
  choose();
  for (const [name, table] of tables) {
    const [at, order] = sorted.get(name) ?? [];
    const heading = headings(table)[at];
    if (heading?.hasAttribute("aria-sort") && ORDERS.includes(order)) sort(table, heading, order);
    else if (came.has(table)) sort(table, null, null);
    const one = columns.get(table);
    if (!one) continue;
    const chosen = hidden.get(name)?.map(Number).filter((column) => headings(table)[column] && column !== one.label);
    one.chosen = chosen !== undefined;
    one.hidden = new Set(chosen);
    show(table);
  }
  for (const [name, { views, select, usual }] of switched) select(views[shown.get(name)?.[0]] ?? usual);
  for (const part of [...sorted.keys(), ...hidden.keys()]) {
    for (let at = tables.get(part)?.closest("details"); at; at = at.parentElement.closest("details")) at.open = true;
  }
}

function remember() {
  const query = state();
  const { anchor } = address();
  const hash = query ? `#${anchor}?${query}` : anchor && `#${anchor}`;
  history.replaceState(history.state, "", location.href.split("#")[0] + hash);
}

document.addEventListener("view", () => !document.getElementById("panel").open && remember());
restore(address().query);

// ------------------------------------------------------------------------------------------------------------- paper

const closed = new Set();
addEventListener("beforeprint", () => {
  printing = true;
  for (const part of find("main details:not([open], .columns)")) closed.add(part).has(part) && (part.open = true);
  for (const view of find(".view[hidden]")) closed.add(view).has(view) && (view.hidden = false);
  for (const [table, one] of columns) if (!one.chosen && one.hidden.size) one.hidden.clear(), show(table);
});
addEventListener("afterprint", () => {
  for (const part of closed) part.tagName === "DETAILS" ? (part.open = false) : (part.hidden = true);
  closed.clear();
  printing = false;
  fit();
});
