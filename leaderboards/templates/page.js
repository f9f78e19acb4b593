const find = (selector, within = document) => [...within.querySelectorAll(selector)];
const root = document.documentElement;

// Elements are made from data with text nodes alone, so that no name can become markup.
function make(tag, attributes, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (typeof value === "function") made.addEventListener(name, value);
    else if (value !== null && value !== false) made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children.flat(9).filter((child) => child !== null && child !== undefined));
  return made;
}

// ------------------------------------------------------------------------------------------------------------ colors

const theme = document.getElementById("theme");
const dark = matchMedia("(prefers-color-scheme: dark)");
let chosen = null;
function paint() {
  const now = chosen ?? (dark.matches ? "dark" : "light");
  root.style.colorScheme = chosen ?? "";
  root.dataset.theme = now;
  theme.textContent = now === "dark" ? "Light" : "Dark";
  theme.setAttribute("aria-label", `Use ${now === "dark" ? "light" : "dark"} colors`);
  return now;
}
theme.hidden = false;
theme.addEventListener("click", () => {
  chosen = paint() === "dark" ? "light" : "dark";
  paint();
});
dark.addEventListener("change", paint);
paint();

// ----------------------------------------------------------------------------------------------------------- sorting

const headings = (table) => [...table.tHead.rows[0].cells];

// The words of a heading or of the first cell of a line, without what stands small below them.
function words(cell) {
  const copy = cell.cloneNode(true);
  find("small", copy).forEach((small) => small.remove());
  return copy.textContent.trim();
}

function key(row, column, numeric) {
  const cell = row.cells[column];
  if (!numeric) return cell.textContent.trim() || null;
  return cell.dataset.s === undefined ? null : Number(cell.dataset.s);
}

const ORDERS = ["ascending", "descending"];
const first = (heading) => ORDERS[heading.dataset.first ? 0 : 1];

// Sorted by a column, or, where the order is null, as the table came.
const came = new Map();
function sort(table, heading, order) {
  const body = table.tBodies[0];
  const caption = find("caption span", table)[0] ?? table.caption;
  if (!came.has(table)) came.set(table, { rows: [...body.rows], caption: [...(caption?.childNodes ?? [])] });
  const before = came.get(table);
  for (const other of headings(table)) other.setAttribute("aria-sort", other === heading && order ? order : "none");
  if (!order) {
    body.append(...before.rows);
    caption?.replaceChildren(...before.caption);
    return;
  }
  const numeric = heading.classList.contains("n");
  const sign = order === "ascending" ? 1 : -1;
  const letters = new Intl.Collator("en", { numeric: true });
  const keyed = [...body.rows].map((row) => [key(row, heading.cellIndex, numeric), row]);
  keyed.sort(([a], [b]) => {
    // What has no figure stands last either way.
    if (a === null || b === null) return (a === null) - (b === null);
    return sign * (numeric ? a - b : letters.compare(a, b));
  });
  body.append(...keyed.map(([, row]) => row));
  const told = before.caption.map((node) => node.textContent).join("").replace(/,? from best to worst$/i, "");
  const way = numeric ? ["lowest first", "highest first"] : ["A to Z", "Z to A"];
  caption?.replaceChildren(`${told}, sorted by ${words(heading)}, ${way[ORDERS.indexOf(order)]}`);
}

function sortable(table) {
  if (table.tBodies[0].rows.length < 2) return;
  for (const heading of headings(table)) {
    const press = () => {
      const [one, other] = first(heading) === "ascending" ? ORDERS : [...ORDERS].reverse();
      sort(table, heading, heading.getAttribute("aria-sort") === one ? other : one);
      document.dispatchEvent(new Event("view"));
    };
    heading.append(make("button", { type: "button", click: press }, ...heading.childNodes));
    heading.setAttribute("aria-sort", "none");
  }
}
find("main table").forEach(sortable);

// ----------------------------------------------------------------------------------------------------------- scrolling

// A table that goes on fades there.
function edge(box) {
  box.classList.toggle("more", box.scrollLeft + box.clientWidth < box.scrollWidth - 2);
  box.classList.toggle("longer", box.scrollTop + box.clientHeight < box.scrollHeight - 2);
}
const edges = () => find("main .box").forEach(edge);
for (const box of find("main .box")) box.addEventListener("scroll", () => edge(box), { passive: true });
addEventListener("resize", edges);
edges();
