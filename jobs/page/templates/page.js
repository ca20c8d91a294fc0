"use strict";
(() => {
  const read = (id) => JSON.parse(document.getElementById(id).textContent);
  const figures = read("figures");
  const concepts = read("concepts");
  const dark = read("dark");
  const live = document.body.hasAttribute("data-live");
  const number = document.body.dataset.view;
  const packSize = Number(document.body.dataset.pack);
  const isDark = window.matchMedia("(prefers-color-scheme: dark)");
  const NARROW = 640;
  const PRINTED = 640;
  const SMALLEST_CELL = 9;

  // what was packed (gzip, base64), as text
  async function unpack(text) {
    const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    return new Response(stream).text();
  }

  // Text and children only: nothing that comes from data is ever taken for HTML.
  function make(name, attributes, ...children) {
    const made = document.createElement(name);
    for (const [key, value] of Object.entries(attributes || {})) made.setAttribute(key, value);
    made.append(...children);
    return made;
  }

  // --- figures ---------------------------------------------------------------------------------

  const COLOURS = /color$/;
  function coloured(value, key) {
    if (typeof value === "string") return COLOURS.test(key) && dark[value] ? dark[value] : value;
    if (Array.isArray(value)) return value.map((inner) => coloured(inner, key));
    if (value && typeof value === "object") {
      return Object.fromEntries(Object.entries(value).map(([name, inner]) => [name, coloured(inner, name)]));
    }
    return value;
  }

  // the names of a matrix that have room: of its rows or, where these are too small, of their groups
  function named(layout, cell) {
    const { vals, text } = layout.meta.groups;
    const all = cell >= SMALLEST_CELL;
    const kept = [];
    vals.forEach((at, place) => {
      if (!kept.length || (at - vals[kept.at(-1)]) * cell >= SMALLEST_CELL) kept.push(place);
    });
    for (const axis of [layout.xaxis, layout.yaxis]) {
      if (!all) Object.assign(axis, { tickvals: kept.map((place) => vals[place]), ticktext: kept.map((place) => text[place]) });
      axis.tickfont = { size: all && cell > 14 ? 12 : 9 };
    }
  }

  // colours for the ground, and what fits the width
  function fitted(figure, width, darkened) {
    const { data, layout } = darkened ? coloured(figure, "") : structuredClone(figure);
    const meta = layout.meta || {};
    if (meta.matrix) {
      layout.height = Math.min(width + 120, 1150);
      named(layout, (width - 110) / meta.matrix);
    }
    if (meta.values) layout.xaxis.domain = [0, 1 - meta.values / (width - 24)];
    if (meta.graph && width < NARROW) layout.height = 520;
    layout.width = width;
    return { data, layout };
  }

  // names of nodes that would lie on others, or beyond the edge: hovering tells them
  function hideCovered(div) {
    const around = div.getBoundingClientRect();
    const kept = [];
    for (const text of div.querySelectorAll(".textpoint text")) {
      const box = text.getBoundingClientRect();
      const inside = box.left >= around.left && box.right <= around.right && box.top >= around.top;
      const free = kept.every((other) => box.right < other.left || box.left > other.right
        || box.bottom < other.top || box.top > other.bottom);
      if (inside && free) kept.push(box);
      else text.style.display = "none";
    }
  }

  // the concept that a point stands for
  function nameAt(point, names) {
    if (names && point.pointIndex) return names[point.pointIndex[0]];
    return Array.isArray(point.customdata) ? point.customdata[1] : null;
  }

  async function draw(div, width = div.clientWidth, darkened = isDark.matches) {
    const Plotly = await plotly();
    const figure = div.figure || figures[div.dataset.figure];
    const { data, layout } = fitted(figure, width, darkened);
    const first = !div.dataset.drawn;
    await Plotly.react(div, data, layout, { displayModeBar: false, responsive: false });
    if (layout.meta && layout.meta.graph) hideCovered(div);
    div.dataset.drawn = String(width);
    if (!first) return;
    div.dataset.after = String(Math.round(performance.now()));
    const names = (figure.layout.meta || {}).names;
    div.on("plotly_click", (event) => {
      const name = nameAt(event.points[0], names);
      if (concepts.includes(name)) location.hash = "concept=" + encodeURIComponent(name);
    });
  }

  let loading = null;
  function plotly() {
    loading ??= unpack(document.getElementById("plotly").textContent).then((source) => {
      document.head.append(Object.assign(document.createElement("script"), { textContent: source }));
      return window.Plotly;
    });
    return loading;
  }

  // one figure at a time, those in sight first, so that the page stays at hand
  const waiting = new Set(document.querySelectorAll(".plot"));
  let drawing = false;
  async function drawNext() {
    if (drawing) return;
    drawing = true;
    while (waiting.size) {
      const seen = [...waiting].find((div) => {
        const { top, bottom } = div.getBoundingClientRect();
        return bottom > -200 && top < innerHeight + 400;
      });
      const next = seen || waiting.values().next().value;
      waiting.delete(next);
      // of a concept that was left meanwhile
      if (!next.isConnected) continue;
      await draw(next);
      await new Promise((resolve) => setTimeout(resolve, seen ? 0 : 30));
    }
    drawing = false;
  }
  function drawAgain(changed) {
    for (const div of document.querySelectorAll(".plot")) {
      if (div.dataset.drawn && changed(div)) waiting.add(div);
    }
    drawNext();
  }
  // paper is light, and as wide as it is
  addEventListener("beforeprint", () => {
    for (const div of document.querySelectorAll(".plot[data-drawn]")) draw(div, PRINTED, false);
  });
  addEventListener("afterprint", () => drawAgain(() => true));
  isDark.addEventListener("change", () => drawAgain(() => true));
  let resized = 0;
  addEventListener("resize", () => {
    clearTimeout(resized);
    resized = setTimeout(() => drawAgain((div) => div.dataset.drawn !== String(div.clientWidth)), 150);
  });

  // --- tables ----------------------------------------------------------------------------------

  function sort(button) {
    const th = button.closest("th");
    const column = [...th.parentNode.children].indexOf(th);
    const down = th.getAttribute("aria-sort") === "ascending";
    for (const other of th.parentNode.children) other.setAttribute("aria-sort", "none");
    th.setAttribute("aria-sort", down ? "descending" : "ascending");
    const body = th.closest("table").tBodies[0];
    const value = (row) => {
      const cell = row.cells[column];
      return cell.dataset.value === undefined ? cell.textContent : Number(cell.dataset.value);
    };
    const rows = [...body.rows].sort((a, b) => {
      const [x, y] = [value(a), value(b)];
      // what has no value comes last, either way
      if (x === "–" || y === "–") return (x === "–") - (y === "–");
      const order = typeof x === "number" && typeof y === "number" ? x - y : String(x).localeCompare(String(y));
      return down ? -order : order;
    });
    body.append(...rows);
  }
  document.addEventListener("click", (event) => {
    const button = event.target.closest("th button");
    if (button) sort(button);
  });

  // --- one concept -----------------------------------------------------------------------------

  const shown = (value) => value === null || value === undefined ? "–"
    : typeof value === "number" && !Number.isInteger(value) ? value.toPrecision(3) : value.toLocaleString("en");
  const share = (value) => value.toFixed(3);
  const link = (name) => make("a", { href: "#concept=" + encodeURIComponent(name) }, name);

  // columns are [name, whether it holds numbers]
  function table(label, columns, rows) {
    const kind = (place) => columns[place][1] ? { class: "number" } : {};
    const cell = (value, place) => make("td", kind(place), value instanceof Node ? value : shown(value));
    const head = make("tr", {}, ...columns.map(([name], place) => make("th", { scope: "col", ...kind(place) }, name)));
    const body = rows.map((row) => make("tr", {}, ...row.map(cell)));
    return make("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": label },
      make("table", {}, make("thead", {}, head), make("tbody", {}, ...body)));
  }
  const card = (title, ...children) => make("div", {}, make("h3", {}, title), ...children);

  async function fetchDetail(name) {
    if (live) {
      const answer = await fetch("api/concept?" + new URLSearchParams({ name, view: number }));
      if (!answer.ok) throw new Error(await answer.text());
      return answer.json();
    }
    const place = concepts.indexOf(name);
    const pack = document.querySelectorAll(".pack")[Math.floor(place / packSize)];
    return JSON.parse(await unpack(pack.textContent))[place % packSize];
  }

  const excitedBy = (expert) => make("div", {},
    make("p", {}, `Layer ${expert.layer}, ${expert.site}, unit ${expert.unit} (AP ${share(expert.ap)}) is most active on:`),
    ...expert.excited_by.map(([value, text, about]) => make("blockquote", {},
      `${shown(value)}: ${text}` + (about.length ? ` (${about.join(", ")})` : ""))));

  function experts(detail) {
    const attributed = detail.experts.some((row) => row.attribution !== undefined && row.attribution !== null);
    const columns = [["layer", true], ["site", false],
      ...["unit", "AP", "AUROC", "median on", "mean off", ...(attributed ? ["attribution (nats)"] : [])].map((name) => [name, true])];
    const rows = detail.experts.map((row) => [row.layer, row.site, String(row.unit), share(row.ap), share(row.auroc),
      row.on_p50, row.off_mean, ...(attributed ? [row.attribution] : [])]);
    return table("Experts", columns, rows);
  }

  function steering(found) {
    if (!found) return [];
    const plot = make("div", { class: "plot", role: "img", "aria-label": "Steering, dose and response" });
    plot.figure = found.figure;
    waiting.add(plot);
    const samples = found.samples.flatMap(({ selection, k, prompt, continuations }) => [
      make("p", {}, k ? `${shown(k)} forced (${selection}):` : `With ${selection}:`),
      ...continuations.map((text) => make("blockquote", {}, make("i", {}, prompt), " ", text)),
    ]);
    return [card("Forcing its neurons", plot, ...samples)];
  }

  function render(detail) {
    const about = [detail.domain && `Domain: ${detail.domain}.`, detail.sense && `Sense: ${detail.sense}.`,
      `${shown(detail.sentences)} sentences.`, detail.n_experts !== null && `${shown(detail.n_experts)} experts.`];
    const excited = detail.experts.filter((row) => (row.excited_by || []).length);
    const near = (rows, unit) => rows.length
      ? table("Nearest", [["concept", false], [unit, true]], rows.map(([name, value]) => [link(name), value]))
      : make("p", {}, "None.");
    const ranks = detail.disagreements.map(([name, similarity, score, model, people]) =>
      [link(name), similarity, score, `${Math.round(100 * model)}%`, `${Math.round(100 * people)}%`]);
    return [
      make("h3", { id: "shown-concept" }, detail.name),
      make("p", {}, about.filter(Boolean).join(" ")),
      make("div", { class: "cards" },
        card("Best experts", experts(detail)),
        ...(excited.length ? [card("What excites them", ...excited.map(excitedBy))] : []),
        card("Nearest in the model", near(detail.model, "similarity of experts")),
        card("Nearest to people", near(detail.people, "human score")),
        card("Where they differ most", ranks.length
          ? table("Disagreements", [["with", false], ...["similarity of experts", "human score", "rank in the model", "rank for people"]
            .map((name) => [name, true])], ranks)
          : make("p", {}, "No pair of it was rated."),
          ...(ranks.length ? [make("p", { class: "note" }, "Ranks among all rated pairs: 0% is the most alike, 100% the least.")] : [])),
        ...steering(detail.steering)),
    ];
  }

  // a part of an address, which anybody may have written
  function decoded(text) {
    try {
      return decodeURIComponent(text);
    } catch {
      return text;
    }
  }

  async function showConcept() {
    const asked = location.hash;
    const place = document.getElementById("detail");
    if (!asked.startsWith("#concept=") || !place) return;
    const name = decoded(asked.slice("#concept=".length));
    if (!concepts.includes(name)) {
      place.replaceChildren(make("p", {}, `No concept is called ${name}.`));
    } else {
      try {
        const detail = await fetchDetail(name);
        // another one was asked for meanwhile
        if (location.hash !== asked) return;
        place.replaceChildren(...render(detail));
        place.dataset.concept = name;
        drawNext();
      } catch (error) {
        place.replaceChildren(make("p", {}, String(error.message || error)));
      }
    }
    document.getElementById("concept").scrollIntoView();
    place.focus({ preventScroll: true });
  }
  const choose = document.getElementById("choose");
  if (choose) {
    choose.addEventListener("submit", (event) => {
      event.preventDefault();
      const name = document.getElementById("name").value.trim();
      const hash = "#concept=" + encodeURIComponent(name);
      if (location.hash === hash) showConcept(); else location.hash = hash;
    });
  }
  addEventListener("hashchange", showConcept);
  const view = document.getElementById("view");
  if (view) view.addEventListener("change", () => location.assign("?view=" + view.value));

  drawNext();
  showConcept();
})();
