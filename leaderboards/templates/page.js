"use strict";
(() => {
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

  // ---------------------------------------------------------------------------------------------------------- colors

  const theme = document.getElementById("theme");
  const dark = matchMedia("(prefers-color-scheme: dark)");
  let chosen = null;
  function paint() {
    const now = chosen ?? (dark.matches ? "dark" : "light");
    root.style.colorScheme = chosen ?? "";
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

  // --------------------------------------------------------------------------------------------------------- sorting

  function key(row, column, numeric) {
    const cell = row.cells[column];
    if (!numeric) return cell.textContent.trim() || null;
    return cell.dataset.s === undefined ? null : Number(cell.dataset.s);
  }

  function sort(table, heading) {
    const [first, second] = heading.dataset.first ? ["ascending", "descending"] : ["descending", "ascending"];
    const order = heading.getAttribute("aria-sort") === first ? second : first;
    const numeric = heading.classList.contains("n");
    const sign = order === "ascending" ? 1 : -1;
    const words = new Intl.Collator("en", { numeric: true });
    const keyed = [...table.tBodies[0].rows].map((row) => [key(row, heading.cellIndex, numeric), row]);
    keyed.sort(([a], [b]) => {
      // What has no figure stands last either way.
      if (a === null || b === null) return (a === null) - (b === null);
      return sign * (numeric ? a - b : words.compare(a, b));
    });
    table.tBodies[0].append(...keyed.map(([, row]) => row));
    for (const other of heading.parentElement.cells) other.setAttribute("aria-sort", other === heading ? order : "none");
  }

  function sortable(table) {
    if (table.tBodies[0].rows.length < 2) return;
    for (const heading of table.tHead.rows[0].cells) {
      const button = make("button", { type: "button", click: () => sort(table, heading) }, ...heading.childNodes);
      heading.append(button);
      heading.setAttribute("aria-sort", "none");
    }
  }
  find("main table").forEach(sortable);

  const source = document.getElementById("data");
  if (!source) return;
  const data = JSON.parse(source.textContent);

  // ------------------------------------------------------------------------------------------------------- filtering

  const filter = document.getElementById("filter");
  const lines = find("[data-row]");
  function choose() {
    const { text, ...facets } = Object.fromEntries(new FormData(filter));
    const wanted = text.trim().toLowerCase().split(/\s+/);
    const shown = data.rows.map(
      (row) =>
        wanted.every((word) => row.label.toLowerCase().includes(word)) &&
        Object.entries(facets).every(([name, value]) => !value || row[name] === value),
    );
    for (const line of lines) line.hidden = !shown[line.dataset.row];
    const count = shown.filter(Boolean).length;
    const all = data.rows.length;
    filter.querySelector("output").textContent =
      count === all ? `${all} row${all === 1 ? "" : "s"}` : count ? `${count} of ${all} rows` : "No row is like that";
    filter.querySelector("[type=reset]").hidden = !text && Object.values(facets).every((value) => !value);
  }
  filter.hidden = data.rows.length < 2;
  filter.addEventListener("input", choose);
  filter.addEventListener("submit", (event) => event.preventDefault());
  filter.addEventListener("reset", () => setTimeout(choose));
  choose();

  // Of several views of the same table, one at a time.
  for (const group of find(".views")) {
    const views = find(":scope > .view", group);
    const show = (wanted) => {
      views.forEach((view) => (view.hidden = view !== wanted));
      buttons.forEach((button, at) => button.setAttribute("aria-pressed", String(views[at] === wanted)));
    };
    const buttons = views.map((view) => make("button", { type: "button", click: () => show(view) }, view.dataset.name));
    group.prepend(make("div", { class: "switch control", role: "group", "aria-label": "Which figures" }, buttons));
    show(views.find((view) => "first" in view.dataset) ?? views[0]);
  }

  // --------------------------------------------------------------------------------------------------------- records

  const percent = (value) => (100 * value).toFixed(1);
  const words = (name) => name.replaceAll("_", " ");
  const link = (anchor, ...text) => make("a", { href: `#${anchor}` }, ...text);

  function ends(figure) {
    return figure.length > 2 ? `${percent(figure[1])}–${percent(figure[2])}` : "";
  }

  function table(caption, headings, rows, options = {}) {
    const head = headings.map((text, at) => make("th", { scope: "col", class: at ? "n" : null }, text));
    const body = rows.map((cells) =>
      make("tr", null, cells.map((cell, at) => (at ? make("td", { class: "n" }, cell) : make("th", { scope: "row" }, cell)))),
    );
    const made = make("table", null, caption && make("caption", null, caption), make("thead", null, make("tr", null, head)), make("tbody", null, body));
    return make("div", { class: `box ${options.class ?? ""}`, tabindex: "0", role: "region", "aria-label": caption || headings[0] }, made);
  }

  function shares(figures, heading) {
    const made = table("", [heading, "%", "95 % interval", "n"], figures.map(([name, ...figure]) => [name, percent(figure[0]), ends(figure), String(figure.at(-1))]));
    find("tbody tr", made).forEach((row, at) => {
      const [, value, low, high] = figures[at];
      const known = figures[at].length > 3;
      row.cells[1].classList.add("bar");
      row.cells[1].setAttribute("style", `--v:${100 * value}%;--l:${100 * (known ? low : value)}%;--h:${100 * (known ? high : value)}%`);
    });
    return made;
  }

  // A specification as it is: names and values, however deep.
  function tree(value) {
    if (Array.isArray(value)) {
      if (value.some((item) => item !== null && typeof item === "object")) return make("ol", null, value.map((item) => make("li", null, tree(item))));
      return value.length ? value.map(tree).join(", ") : "none";
    }
    if (value !== null && typeof value === "object") {
      const entries = Object.entries(value);
      return entries.length ? make("dl", null, entries.map(([name, item]) => [make("dt", null, words(name)), make("dd", null, tree(item))])) : "none";
    }
    return value === true ? "yes" : value === false ? "no" : value === null ? "none" : String(value);
  }

  function marks(heading, found, meanings, warn) {
    const entries = Object.entries(found ?? {});
    if (!entries.length) return null;
    const said = ([name, text]) => [...new Set([meanings[name], text])].filter(Boolean).join(". ");
    return [make("h4", null, heading), make("ul", null, entries.map((entry) => make("li", { class: warn ? "warn" : null }, make("b", null, entry[0]), ": ", said(entry))))];
  }

  function texts(heading, found) {
    return found?.length ? [make("h4", null, heading), make("ul", null, found.map((text) => make("li", null, text)))] : null;
  }

  function className(name) {
    const [figure, place] = name.split("/");
    return place === undefined ? words(figure) : `${words(figure)}, class ${data.classes[place] ?? place}`;
  }

  // Counts, norms and passes are no shares: what has no interval is shown as it is.
  function measured(record) {
    const figure = (value) => String(Number(value.toPrecision(5)));
    return data.shared[record.names].map((name, at) => {
      const found = record.metrics[at];
      const between = found.length > 2 ? `${figure(found[1])}–${figure(found[2])}` : "";
      return [className(name), figure(found[0]), between, String(found.at(-1))];
    });
  }

  function recordPart(identity, open) {
    const record = data.records[identity];
    const run = data.shared[record.run];
    const facts = {
      seed: record.seed, status: record.status, ...run, "model key": record.model_key,
      "passes spent": record.costs ? `${record.costs[0]} forward, ${record.costs[1]} backward` : null,
      "outcome sha256": record.outcome ?? null,
    };
    for (const name of Object.keys(facts)) if (facts[name] === null) delete facts[name];
    const names = data.classes;
    return make(
      "details", { open },
      make("summary", null, make("h3", null, `Seed ${record.seed}: record `, make("code", null, identity))),
      record.reason ? make("p", { class: "warn" }, `${words(record.status)}: ${record.reason}`) : null,
      marks("Flags", record.flags, data.meanings.flags, true),
      marks("Cautions", record.cautions, data.meanings.cautions, false),
      texts("What was observed of the model", record.traits),
      texts("Notes", record.notes),
      make("h4", null, "Run"), tree(facts),
      make("h4", null, "Condition"), tree(data.shared[record.condition]),
      make("h4", null, "Model"), tree(data.shared[record.model]),
      record.training === undefined ? null : [make("h4", null, "Training"), tree(data.shared[record.training])],
      make("h4", null, "Data set"), tree(data.shared[record.dataset]),
      record.confusion ? [make("h4", null, "Decisions"), table("Counts by true class (down) and decision (across)", ["true ↓ decided →", ...names], record.confusion.map((line, at) => [names[at], ...line.map(String)]), { class: "matrix" })] : null,
      record.metrics ? [make("h4", null, "Metrics"), table("As they were recorded; shares between 0 and 1", ["Metric", "Value", "95 % interval", "n"], measured(record))] : null,
    );
  }

  function placePart(place, identity) {
    return [
      make("h2", { id: "panel-heading", tabindex: "-1" }, place.row),
      make("p", null, place.condition),
      place.figures.length ? shares(place.figures, "Counted as right") : null,
      place.classes.length ? make("details", null, make("summary", null, "Class by class"), shares(place.classes, "Class")) : null,
      make("p", null, make("small", null, "Figures are over all seeds together. What each record holds is below; it lies in the store as cells/‹record›/record.json and, where a board is published, in its records.jsonl.")),
      place.keys.map((one) => recordPart(one, one === identity || place.keys.length === 1)),
    ];
  }

  function figurePart(figure) {
    const rows = figure.places.map((at) => {
      const place = data.places[at];
      const main = place.figures[0];
      const status = place.keys.map((one) => data.records[one].status).find((found) => found !== "done");
      const shown = main ? [percent(main[1]), ends(main.slice(1)), String(main.at(-1))] : [status ?? "–", "", ""];
      return [[link(`record-${place.keys[0]}`, place.condition), make("small", null, place.row)], ...shown];
    });
    return [
      make("h2", { id: "panel-heading", tabindex: "-1" }, figure.title),
      figure.figures.length ? shares(figure.figures, "Over all seeds") : null,
      make("h3", null, "What it rests on"),
      make("p", null, `The records of ${rows.length} condition${rows.length === 1 ? "" : "s"}, image by image:`),
      table("", ["Condition", "%", "95 % interval", "n"], rows),
    ];
  }

  const byKey = new Map(data.places.flatMap((place) => place.keys.map((one) => [one, place])));
  function content(hash) {
    const [kind, identity] = [hash.slice(1, 8), hash.slice(8)];
    if (kind === "record-" && byKey.has(identity)) return placePart(byKey.get(identity), identity);
    if (kind === "figure-" && data.figures[hash.slice(1)]) return figurePart(data.figures[hash.slice(1)]);
    return null;
  }

  // The address tells what the panel shows; how deep it is in, history tells, so that closing returns to the table.
  const panel = document.getElementById("panel");
  const depth = () => history.state?.depth ?? 0;
  function leave() {
    if (depth() > 0) history.go(-depth());
    else if (content(location.hash)) history.replaceState(null, "", location.href.split("#")[0]);
    if (panel.open) panel.close();
  }
  let current = 0;
  function follow(event) {
    const parts = content(location.hash);
    if (!parts) {
      current = 0;
      if (panel.open) panel.close();
      return;
    }
    if (event && history.state === null) history.replaceState({ depth: current + 1 }, "");
    current = depth();
    panel.replaceChildren(
      make("header", null, current > 1 ? make("button", { type: "button", click: () => history.back() }, "← Back") : null, make("button", { type: "button", click: leave }, "Close")),
      ...parts.flat(9).filter(Boolean),
    );
    find("table", panel).forEach(sortable);
    if (!panel.open) panel.showModal();
    panel.scrollTop = 0;
    document.getElementById("panel-heading").focus();
  }
  panel.addEventListener("cancel", (event) => {
    event.preventDefault();
    leave();
  });
  panel.addEventListener("click", (event) => {
    if (event.target === panel && event.clientX < panel.getBoundingClientRect().left) leave();
  });
  addEventListener("hashchange", follow);
  follow();

  // ---------------------------------------------------------------------------------------------------------- paper

  const closed = new Set();
  addEventListener("beforeprint", () => {
    for (const part of find("main details:not([open])")) closed.add(part).has(part) && (part.open = true);
    for (const view of find(".view[hidden]")) closed.add(view).has(view) && (view.hidden = false);
  });
  addEventListener("afterprint", () => {
    for (const part of closed) part.tagName === "DETAILS" ? (part.open = false) : (part.hidden = true);
    closed.clear();
  });
})();
