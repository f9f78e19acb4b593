// What numbers and names lead to, in a panel that the address opens: records, figures, models, two rows side by side.

const panel = document.getElementById("panel");
const percent = (value) => (100 * value).toFixed(1);
const signed = (value) => `${value < 0 ? "−" : "+"}${Math.abs(100 * value).toFixed(1)}`;
const spaced = (name) => name.replaceAll("_", " ");
const link = (anchor, ...text) => make("a", { href: `#${anchor}` }, ...text);
// A label that may wrap where its parts meet, since few have spaces.
const soft = (label) => label.split(/(?<=\S)(?=[[@+]|->)|(?<=[,_·])(?=\S)/).flatMap((part, at) => (at ? [make("wbr"), part] : [part]));
const heading = (...text) => make("h2", { id: "panel-heading", tabindex: "-1" }, ...text);

// Figures as [name, value, ends of the interval where there is one, count].
const figures = ([names, ...found] = []) => found.map((at, place) => [data.shared[names][place], ...data.measures[at]]);
const places = data.places.map(([row, condition, keys, found, classes]) => ({
  row: data.rows[row].label, condition: data.conditions[condition], keys, figures: figures(found), classes: figures(classes),
}));
const byKey = new Map(places.flatMap((place) => place.keys.map((one) => [one, place])));
const status = (one) => data.records[one].status ?? "done";

function ends(figure) {
  return figure.length > 2 ? `${percent(figure[1])}–${percent(figure[2])}` : "";
}

function grid(caption, names, rows, options = {}) {
  const head = names.map((text, at) => make("th", { scope: "col", class: at ? "n" : null }, text));
  const body = rows.map((cells) => make("tr", null, cells.map((cell, at) => (at ? make("td", { class: "n" }, cell) : make("th", { scope: "row" }, cell)))));
  for (const cell of body.flatMap((row) => [...row.cells].slice(1))) {
    const value = parseFloat(cell.firstChild?.textContent.replace("−", "-"));
    if (!Number.isNaN(value)) cell.dataset.s = value;
  }
  const made = make("table", null, caption && make("caption", null, make("span", null, caption)), make("thead", null, make("tr", null, head)), make("tbody", null, body));
  return make("div", { class: `box ${options.class ?? ""}`, tabindex: "0", role: "region", "aria-label": caption || names[0], scroll: (event) => edge(event.target) }, made);
}

function shares(found, name) {
  const made = grid("", [name, "%", "95 % interval", "n"], found.map(([text, ...figure]) => [text, percent(figure[0]), ends(figure), String(figure.at(-1))]));
  find("tbody tr", made).forEach((row, at) => {
    const [, value, low, high] = found[at];
    const known = found[at].length > 3;
    row.cells[1].classList.add("bar");
    row.cells[1].setAttribute("style", `--v:${100 * value}%;--l:${100 * (known ? low : value)}%;--h:${100 * (known ? high : value)}%`);
  });
  return made;
}

// ----------------------------------------------------------------------------------------------------------- records

// A specification as it is: names and values, however deep.
function tree(value) {
  if (Array.isArray(value)) {
    if (value.some((item) => item !== null && typeof item === "object")) return make("ol", null, value.map((item) => make("li", null, tree(item))));
    return value.length ? value.map(tree).join(", ") : "none";
  }
  if (value !== null && typeof value === "object") {
    const entries = Object.entries(value);
    return entries.length ? make("dl", null, entries.map(([name, item]) => [make("dt", null, spaced(name)), make("dd", null, tree(item))])) : "none";
  }
  return value === true ? "yes" : value === false ? "no" : value === null ? "none" : String(value);
}

function marks(title, found, meanings, warn) {
  const entries = Object.entries(found ?? {});
  if (!entries.length) return null;
  const said = ([name, text]) => [...new Set([Object.hasOwn(meanings, name) ? meanings[name] : null, text])].filter(Boolean).join(". ");
  return [make("h4", null, title), make("ul", null, entries.map((entry) => make("li", { class: warn ? "warn" : null }, make("b", null, entry[0]), ": ", said(entry))))];
}

function texts(title, found) {
  return found?.length ? [make("h4", null, title), make("ul", null, found.map((text) => make("li", null, text)))] : null;
}

function metric(name) {
  const [figure, place] = name.split("/");
  return place === undefined ? spaced(figure) : `${spaced(figure)}, class ${data.classes[place] ?? place}`;
}

// Counts, norms and passes are no shares: what has no interval is shown as it is.
function measured(record) {
  const short = (value) => String(Number(value.toPrecision(5)));
  return figures(record.metrics).map(([name, ...found]) => {
    const between = found.length > 2 ? `${short(found[1])}–${short(found[2])}` : "";
    return [metric(name), short(found[0]), between, String(found.at(-1))];
  });
}

function recordPart(identity, open) {
  const record = data.records[identity];
  const made = data.shared[record.made];
  const facts = {
    seed: made.seed, status: status(identity), ...data.shared[made.run], "model key": made.model_key,
    "attack passes": record.costs ? `${record.costs[0]} forward, ${record.costs[1]} backward, all images together` : null,
    "outcome sha256": record.outcome ?? null,
  };
  for (const name of Object.keys(facts)) if (facts[name] === null) delete facts[name];
  const names = data.classes;
  return make(
    "details", { open },
    make("summary", null, make("h3", null, `Seed ${made.seed}: record `, make("code", null, identity))),
    record.reason ? make("p", { class: "warn" }, `${spaced(status(identity))}: ${record.reason}`) : null,
    marks("Flags", record.flags, data.meanings.flags, true),
    marks("Cautions", record.cautions, data.meanings.cautions, false),
    texts("What was observed of the model", record.traits),
    texts("Notes", record.notes),
    make("h4", null, "Run"), tree(facts),
    make("h4", null, "Condition"), tree(data.shared[record.condition]),
    make("h4", null, "Model"), tree(data.shared[made.model]),
    made.training === null ? null : [make("h4", null, "Training"), tree(data.shared[made.training])],
    make("h4", null, "Data set"), tree(data.shared[made.dataset]),
    record.confusion ? [make("h4", null, "Predictions"), grid("Counts by true class (down) and prediction (across)", ["true ↓ predicted →", ...names], record.confusion.map((line, at) => [names[at], ...line.map(String)]), { class: "matrix" })] : null,
    record.metrics ? [make("h4", null, "Metrics"), grid("As they were recorded; shares between 0 and 1", ["Metric", "Value", "95 % interval", "n"], measured(record))] : null,
  );
}

function placePart(place, identity) {
  return [
    heading(place.row),
    make("p", null, place.condition),
    place.figures.length ? shares(place.figures, "Correct") : null,
    place.classes.length ? make("details", null, make("summary", null, "Class by class"), shares(place.classes, "Class")) : null,
    make("p", null, make("small", null, "Numbers are over all seeds together. What each record holds is below; it lies in the store as cells/‹record›/record.json and, where a board is published, in its records.jsonl.")),
    place.keys.map((one) => recordPart(one, one === identity || place.keys.length === 1)),
  ];
}

function figurePart([title, found, used]) {
  const rows = used.map((at) => {
    const place = places[at];
    const main = place.figures[0];
    const troubled = place.keys.map(status).find((one) => one !== "done");
    const shown = main ? [percent(main[1]), ends(main.slice(1)), String(main.at(-1))] : [troubled ?? "–", "", ""];
    return [[link(`record-${place.keys[0]}`, soft(place.condition)), make("small", null, place.row)], ...shown];
  });
  return [
    heading(title),
    found.length ? shares(figures(found), "Over all seeds") : null,
    make("h3", null, "What it rests on"),
    make("p", null, `The records of ${rows.length} condition${rows.length === 1 ? "" : "s"}, image by image:`),
    grid("", ["Condition", "%", "95 % interval", "n"], rows),
  ];
}

function modelPart(at) {
  const card = document.getElementById(`card-${at}`);
  const other = at === 0 ? 1 : 0;
  return [
    heading(data.rows[at].label),
    [...card.children].filter((child) => child.tagName !== "SUMMARY").map((child) => child.cloneNode(true)),
    data.rows.length > 1 ? make("p", null, link(`compare-${other}-${at}`, "Compare with another row")) : null,
  ];
}

// ------------------------------------------------------------------------------------------------------ side by side

const anchors = new Map(Object.entries(data.figures).map(([anchor, [title]]) => [title, anchor]));

// Everything that the board tells of a row, by name: the averaged figure, those by class, and where it leads.
function told(at) {
  const { label, worst } = data.rows[at];
  const cases = Object.entries(worst).map(([threat, [found, classes]]) => [
    `Worst case ${threat}`, { key: threat, figures: figures(found), classes: figures(classes), anchor: anchors.get(`${label}: worst case ${threat}`) },
  ]);
  const own = places.filter((place) => place.row === label);
  return new Map([...cases, ...own.map((place) => [place.condition, { ...place, key: place.condition, anchor: `record-${place.keys[0]}` }])]);
}

const averaged = (found) => found?.find(([name]) => name === "balanced") ?? found?.[0];

// What the second row adds to the first, with interval and p where the board compared them image by image.
function compared(one, two, key) {
  for (const [a, b, changes] of data.pairs) {
    if (!Object.hasOwn(changes, key) || ![one, two].every((at) => at === a || at === b)) continue;
    const [value, low, high] = data.measures[changes[key][0]];
    return { value: a === one ? value : -value, ends: a === one ? [low, high] : [-high, -low], p: changes[key][1] };
  }
  return null;
}

function sideBySide(one, two) {
  const [left, right] = [told(one), told(two)];
  const shown = (entry, figure) => figure ? [entry?.anchor ? link(entry.anchor, percent(figure[1])) : percent(figure[1]), make("small", null, ends(figure.slice(1)))] : "–";
  const line = (name, a, b, [first, second], change) => {
    const value = change ? change.value : first && second ? second[1] - first[1] : null;
    const p = change && (change.p === null ? "these checkpoints" : change.p < 0.001 ? "p < 0.001" : `p ${Number(change.p.toPrecision(2))}`);
    const tested = change && make("small", null, `${signed(change.ends[0])} to ${signed(change.ends[1])}`, make("br"), p);
    return [soft(name), shown(a, first), shown(b, second), value === null ? "–" : [signed(value), tested]];
  };
  const names = ["", data.rows[one].label, data.rows[two].label, "Difference"];
  const all = [...new Set([...left.keys(), ...right.keys()])].map((name) => [name, left.get(name), right.get(name)]);
  const rows = all.map(([name, a, b]) => line(name, a, b, [averaged(a?.figures), averaged(b?.figures)], compared(one, two, (a ?? b).key)));
  const classes = all.filter(([name, a, b]) => (name.startsWith("Worst case ") || name === data.clean) && a?.classes.length && b?.classes.length);
  return [
    grid("Percent correct, averaged over classes, with 95 % intervals; difference in points, second row minus first", names, rows, { class: "pair" }),
    make("p", null, make("small", null, rows.some((cells) => cells[3][1]) ? "Intervals and p values of differences are those of the single changes. Other differences were not tested." : "The board compares rows image by image only where they differ in one part; these differences were not tested.")),
    classes.map(([name, a, b]) =>
      make("details", { open: classes.length < 3 }, make("summary", null, `${name}, class by class`),
        grid("", names, a.classes.map((first) => [first, b.classes.find(([other]) => other === first[0])]).map(([first, second]) => line(first[0], a, b, [first, second], null)), { class: "pair" })),
    ),
  ];
}

function comparePart(one, two) {
  const body = make("div", { "aria-live": "polite" });
  const pick = (name, chosenRow) =>
    make("label", null, `${name} `, make("select", { input: draw }, data.rows.map((row, at) => make("option", { value: String(at), selected: at === chosenRow }, row.label))));
  const fields = make("div", { class: "picks" }, pick("First row", one), pick("Second row", two));
  function draw() {
    const [a, b] = find("select", fields).map((field) => Number(field.value));
    const { query } = address();
    history.replaceState(history.state, "", `#compare-${a}-${b}${query && `?${query}`}`);
    body.replaceChildren(...(a === b ? [make("p", null, "Choose two different rows.")] : sideBySide(a, b).flat(9)));
    find("table", body).forEach(sortable);
    find(".box", body).forEach(edge);
  }
  const parts = [heading("Two rows side by side"), fields, body];
  body.append(...sideBySide(one, two).flat(9));
  return parts;
}

// ------------------------------------------------------------------------------------------------- address and panel

function content(anchor) {
  const [kind, ...rest] = anchor.split("-");
  const rows = rest.map(Number);
  const known = rows.every((at) => data.rows[at]);
  if (kind === "record" && byKey.has(rest[0])) return placePart(byKey.get(rest[0]), rest[0]);
  if (kind === "figure" && data.figures[anchor]) return figurePart(data.figures[anchor]);
  if (kind === "model" && rows.length === 1 && known) return modelPart(rows[0]);
  if (kind === "compare" && rows.length === 2 && known && rows[0] !== rows[1]) return comparePart(...rows);
  return null;
}

// How deep the panel is in, history tells, so that closing returns to the table.
const depth = () => history.state?.depth ?? 0;
function leave() {
  if (depth() > 0) history.go(-depth());
  else {
    const query = state();
    history.replaceState(null, "", location.href.split("#")[0] + (query && `#?${query}`));
  }
  if (panel.open) panel.close();
}

let current = 0;
function follow(event) {
  const { anchor, query } = address();
  if (event && query && query !== state()) restore(query);
  if (query !== state()) remember();
  const parts = content(anchor);
  if (!parts) {
    current = 0;
    if (panel.open) panel.close();
    if (query && anchor) document.getElementById(anchor)?.scrollIntoView();
    return;
  }
  if (event && history.state === null) history.replaceState({ depth: current + 1 }, "");
  current = depth();
  panel.classList.toggle("wide", anchor.startsWith("compare"));
  panel.replaceChildren(
    make("header", null, current > 1 ? make("button", { type: "button", click: () => history.back() }, "← Back") : null, make("button", { type: "button", click: leave }, "Close")),
    ...parts.flat(9).filter(Boolean),
  );
  find("table", panel).forEach(sortable);
  if (!panel.open) panel.showModal();
  find(".box", panel).forEach(edge);
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
