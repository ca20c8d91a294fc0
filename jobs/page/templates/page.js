"use strict";
(() => {
  const readJson = (id) => JSON.parse(document.getElementById(id).textContent);
  const figures = readJson("figures");
  const concepts = readJson("concepts");
  const dark = readJson("dark");
  const live = document.body.hasAttribute("data-live");
  const viewNumber = document.body.dataset.view;
  const packSize = Number(document.body.dataset.pack);
  const nMarked = Number(document.body.dataset.marked);
  const isDark = window.matchMedia("(prefers-color-scheme: dark)");
  const NARROW_WIDTH = 640;
  const PRINT_WIDTH = 640;
  const MIN_LABELED_CELL = 9;

  // Decodes base64 and gzip.
  async function decompress(text) {
    const bytes = Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    return new Response(stream).text();
  }

  // Only text and nodes: data are never parsed as HTML.
  function make(name, attributes, ...children) {
    const element = document.createElement(name);
    for (const [key, value] of Object.entries(attributes || {})) element.setAttribute(key, value);
    element.append(...children);
    return element;
  }

  // --- figures ---------------------------------------------------------------------------------

  const COLOR_KEY = /color$/;
  function withDarkColors(value, key) {
    if (typeof value === "string") return COLOR_KEY.test(key) && dark[value] ? dark[value] : value;
    if (Array.isArray(value)) return value.map((inner) => withDarkColors(inner, key));
    if (value && typeof value === "object") {
      return Object.fromEntries(Object.entries(value).map(([name, inner]) => [name, withDarkColors(inner, name)]));
    }
    return value;
  }

  // Labels the rows of a heatmap or, where cells are too small, the groups.
  function labelHeatmap(layout, cell) {
    const { vals, text } = layout.meta.groups;
    const all = cell >= MIN_LABELED_CELL;
    const spaced = [];
    vals.forEach((row, index) => {
      if (!spaced.length || (row - vals[spaced.at(-1)]) * cell >= MIN_LABELED_CELL) spaced.push(index);
    });
    for (const axis of [layout.xaxis, layout.yaxis]) {
      if (!all) Object.assign(axis, { tickvals: spaced.map((index) => vals[index]), ticktext: spaced.map((index) => text[index]) });
      axis.tickfont = { size: all && cell > 14 ? 12 : 9 };
    }
  }

  // Adapts a figure to the color scheme and the width.
  function adapt(figure, width, darkScheme) {
    const { data, layout } = darkScheme ? withDarkColors(figure, "") : structuredClone(figure);
    const meta = layout.meta || {};
    if (meta.matrix) {
      layout.height = Math.min(width + 120, 1150);
      labelHeatmap(layout, (width - 110) / meta.matrix);
    }
    if (meta.values) layout.xaxis.domain = [0, 1 - meta.values / (width - 24)];
    if (meta.graph && width < NARROW_WIDTH) layout.height = 520;
    layout.width = width;
    return { data, layout };
  }

  // Hides node labels that overlap others or the edge; they are shown on hover.
  function hideOverlaps(div) {
    const bounds = div.getBoundingClientRect();
    const visible = [];
    for (const text of div.querySelectorAll(".textpoint text")) {
      const box = text.getBoundingClientRect();
      const inside = box.left >= bounds.left && box.right <= bounds.right && box.top >= bounds.top;
      const free = visible.every((other) => box.right < other.left || box.left > other.right
        || box.bottom < other.top || box.top > other.bottom);
      if (inside && free) visible.push(box);
      else text.style.display = "none";
    }
  }

  // The concept of a point.
  function conceptOf(point, names) {
    if (names && point.pointIndex) return names[point.pointIndex[0]];
    return Array.isArray(point.customdata) ? point.customdata[1] : null;
  }

  async function draw(div, width = div.clientWidth, darkScheme = isDark.matches) {
    const Plotly = await plotly();
    const figure = div.figure || figures[div.dataset.figure];
    const { data, layout } = adapt(figure, width, darkScheme);
    const isFirst = !div.dataset.drawn;
    await Plotly.react(div, data, layout, { displayModeBar: false, responsive: false });
    if (layout.meta && layout.meta.graph) hideOverlaps(div);
    div.dataset.drawn = String(width);
    if (!isFirst) return;
    div.dataset.after = String(Math.round(performance.now()));
    const names = (figure.layout.meta || {}).names;
    div.on("plotly_click", (event) => {
      const name = conceptOf(event.points[0], names);
      if (concepts.includes(name)) location.hash = "concept=" + encodeURIComponent(name);
    });
  }

  let loading = null;
  function plotly() {
    loading ??= decompress(document.getElementById("plotly").textContent).then((source) => {
      document.head.append(Object.assign(document.createElement("script"), { textContent: source }));
      return window.Plotly;
    });
    return loading;
  }

  // One figure at a time, visible ones first, to keep the page responsive.
  const waiting = new Set(document.querySelectorAll(".plot"));
  let drawing = false;
  async function drawNext() {
    if (drawing) return;
    drawing = true;
    while (waiting.size) {
      const visible = [...waiting].find((div) => {
        const { top, bottom } = div.getBoundingClientRect();
        return bottom > -200 && top < innerHeight + 400;
      });
      const next = visible || waiting.values().next().value;
      waiting.delete(next);
      // The concept may have been closed in the meantime.
      if (!next.isConnected) continue;
      await draw(next);
      await new Promise((resolve) => setTimeout(resolve, visible ? 0 : 30));
    }
    drawing = false;
  }
  function redraw(changed) {
    for (const div of document.querySelectorAll(".plot")) {
      if (div.dataset.drawn && changed(div)) waiting.add(div);
    }
    drawNext();
  }
  // Prints are light and have a fixed width.
  addEventListener("beforeprint", () => {
    for (const div of document.querySelectorAll(".plot[data-drawn]")) draw(div, PRINT_WIDTH, false);
  });
  addEventListener("afterprint", () => redraw(() => true));
  isDark.addEventListener("change", () => redraw(() => true));
  let resized = 0;
  addEventListener("resize", () => {
    clearTimeout(resized);
    resized = setTimeout(() => redraw((div) => div.dataset.drawn !== String(div.clientWidth)), 150);
  });

  // --- tables ----------------------------------------------------------------------------------

  function sort(button) {
    const th = button.closest("th");
    const column = [...th.parentNode.children].indexOf(th);
    const descending = th.getAttribute("aria-sort") === "ascending";
    for (const other of th.parentNode.children) other.setAttribute("aria-sort", "none");
    th.setAttribute("aria-sort", descending ? "descending" : "ascending");
    const body = th.closest("table").tBodies[0];
    const value = (row) => {
      const cell = row.cells[column];
      return cell.dataset.value === undefined ? cell.textContent : Number(cell.dataset.value);
    };
    const rows = [...body.rows].sort((a, b) => {
      const [x, y] = [value(a), value(b)];
      // Missing values are last in either direction.
      if (x === "–" || y === "–") return (x === "–") - (y === "–");
      const order = typeof x === "number" && typeof y === "number" ? x - y : String(x).localeCompare(String(y));
      return descending ? -order : order;
    });
    body.append(...rows);
  }
  document.addEventListener("click", (event) => {
    const button = event.target.closest("th button");
    if (button) sort(button);
  });

  // --- concept details -----------------------------------------------------------------------------

  const format = (value) => value === null || value === undefined ? "–"
    : typeof value === "number" && !Number.isInteger(value) ? value.toPrecision(3) : value.toLocaleString("en");
  const threeDecimals = (value) => value.toFixed(3);
  const link = (name) => make("a", { href: "#concept=" + encodeURIComponent(name) }, name);

  // Columns are [name, isNumeric].
  function table(label, columns, rows) {
    const attributes = (index) => columns[index][1] ? { class: "number" } : {};
    const cell = (value, index) => make("td", attributes(index), value instanceof Node ? value : format(value));
    const head = make("tr", {}, ...columns.map(([name], index) => make("th", { scope: "col", ...attributes(index) }, name)));
    const body = rows.map((row) => make("tr", {}, ...row.map(cell)));
    return make("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": label },
      make("table", {}, make("thead", {}, head), make("tbody", {}, ...body)));
  }
  const card = (title, ...children) => make("div", {}, make("h3", {}, title), ...children);

  async function fetchDetail(name) {
    if (live) {
      const response = await fetch("api/concept?" + new URLSearchParams({ name, view: viewNumber }));
      if (!response.ok) throw new Error(await response.text());
      return response.json();
    }
    const index = concepts.indexOf(name);
    const pack = document.querySelectorAll(".pack")[Math.floor(index / packSize)];
    return JSON.parse(await decompress(pack.textContent))[index % packSize];
  }

  const topSentence = ([value, before, token, after, labels]) => make("blockquote", {}, `${value.toPrecision(3)}: ${before}`,
    ...(token ? [make("mark", {}, token)] : []), after + (labels.length ? ` (${labels.join(", ")})` : ""));
  const topSentences = (expert) => make("div", {},
    make("p", {}, `Layer ${expert.layer}, ${expert.site}, unit ${expert.unit} (AP ${threeDecimals(expert.ap)}, `
      + `raw AP ${threeDecimals(expert.ap_raw)}):`),
    ...expert.top_sentences.map(topSentence));
  const topSentencesNote = (experts) => make("p", { class: "note" },
    (experts.some((expert) => expert.top_sentences.some(([, , token]) => token))
      ? `Marked: the token with the maximum, known for the ${nMarked} experts of each concept with the highest AP. ` : "")
    + "In parentheses: the concepts of the sentence. AP is at the reference prevalence; raw AP counts every sentence alike, "
    + "so that sentences of other concepts lower it more.");

  function experts(detail) {
    const attributed = detail.experts.some((row) => row.attribution !== undefined && row.attribution !== null);
    const columns = [["layer", true], ["site", false],
      ...["unit", "AP", "AUROC", "median on", "mean off", ...(attributed ? ["attribution (nats)"] : [])].map((name) => [name, true])];
    const rows = detail.experts.map((row) => [row.layer, row.site, String(row.unit), threeDecimals(row.ap), threeDecimals(row.auroc),
      row.on_p50, row.off_mean, ...(attributed ? [row.attribution] : [])]);
    return table("Experts", columns, rows);
  }

  function steering(curve) {
    if (!curve) return [];
    const plot = make("div", { class: "plot", role: "img", "aria-label": "Dose-response curves of steering" });
    plot.figure = curve.figure;
    waiting.add(plot);
    const samples = curve.samples.flatMap(({ selection, k, prompt, continuations }) => [
      make("p", {}, k ? `${format(k)} ${k === 1 ? "neuron" : "neurons"} clamped (${selection}):` : "Unsteered:"),
      ...continuations.map((text) => make("blockquote", {}, make("i", {}, prompt), " ", text)),
    ]);
    return [card("Steering: clamped neurons", plot, ...samples)];
  }

  function render(detail) {
    const facts = [detail.domain && `Domain: ${detail.domain}.`, detail.sense && `Sense: ${detail.sense}.`,
      `${format(detail.sentences)} sentences.`, detail.n_tokens && `Tokens of its word: ${format(detail.n_tokens)}.`,
      detail.n_experts !== null && `${format(detail.n_experts)} experts.`];
    const withSentences = detail.experts.filter((row) => (row.top_sentences || []).length);
    const nearest = (rows, measure) => rows.length
      ? table("Nearest", [["concept", false], [measure, true]], rows.map(([name, value]) => [link(name), value]))
      : make("p", {}, "None.");
    const ranks = detail.disagreements.map(([name, similarity, score, model, people]) =>
      [link(name), similarity, score, `${Math.round(100 * model)}%`, `${Math.round(100 * people)}%`]);
    return [
      make("h3", { id: "concept-name" }, detail.name),
      make("p", {}, facts.filter(Boolean).join(" ")),
      make("div", { class: "cards" },
        card("Experts with the highest AP", experts(detail)),
        ...(withSentences.length ? [card("Top-activating sentences", topSentencesNote(withSentences), ...withSentences.map(topSentences))] : []),
        card("Nearest in the model", nearest(detail.model, "expert similarity")),
        card("Nearest in human ratings", nearest(detail.people, "human score")),
        card("Largest disagreements", ranks.length
          ? table("Disagreements", [["concept", false], ...["expert similarity", "human score", "rank (model)", "rank (human)"]
            .map((name) => [name, true])], ranks)
          : make("p", {}, "Not rated."),
          ...(ranks.length ? [make("p", { class: "note" }, "Ranks among all rated pairs: 0% is the most similar pair, 100% the least similar.")] : [])),
        ...steering(detail.steering)),
    ];
  }

  // Decodes part of the URL, which may be malformed.
  function decode(text) {
    try {
      return decodeURIComponent(text);
    } catch {
      return text;
    }
  }

  async function showConcept() {
    const { hash } = location;
    const div = document.getElementById("detail");
    if (!hash.startsWith("#concept=") || !div) return;
    const name = decode(hash.slice("#concept=".length));
    if (!concepts.includes(name)) {
      div.replaceChildren(make("p", {}, `Unknown concept: ${name}.`));
    } else {
      try {
        const detail = await fetchDetail(name);
        // The user may have opened another concept in the meantime.
        if (location.hash !== hash) return;
        div.replaceChildren(...render(detail));
        div.dataset.concept = name;
        drawNext();
      } catch (error) {
        div.replaceChildren(make("p", {}, String(error.message || error)));
      }
    }
    document.getElementById("concept").scrollIntoView();
    div.focus({ preventScroll: true });
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
