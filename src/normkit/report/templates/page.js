"use strict";
(() => {
  const root = document.documentElement;
  const all = (selector, within = document) => [...within.querySelectorAll(selector)];
  const colour = (name) => getComputedStyle(root).getPropertyValue(name).trim();
  if (!root.classList.contains("scripted")) return;

  async function unpacked(packed) {
    const bytes = Uint8Array.from(atob(packed), (char) => char.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    return new Response(stream).text();
  }

  // ---- charts -------------------------------------------------------------------------------

  // On a sheet of A4 between its margins; style.css has the same height.
  const PAPER = { width: 640, height: 270 };
  const figures = new Map();

  // Most of the page's programs is plotly.js: packed, and run when there is a chart to draw.
  let plotly = "";
  const ready = unpacked(document.getElementById("plotly").textContent).then((text) => (plotly = text));
  function wake() {
    if (window.Plotly) return;
    const program = document.createElement("script");
    program.textContent = plotly;
    document.head.append(program);
    program.remove();
  }

  function draw(figure) {
    wake();
    const plot = figure.querySelector(".plot");
    const state = figures.get(figure);
    state.spec ??= JSON.parse(document.getElementById(figure.dataset.chart).textContent);
    const tall = state.width && !plot.style.height ? PAPER.height : plot.clientHeight;
    const wide = state.width || plot.clientWidth;
    const size = {
      ...Drawing.layout(state.spec, state.hidden, wide, tall), width: wide, height: tall, autosize: false,
    };
    state.size = plot.clientWidth;
    const config = { displayModeBar: false, displaylogo: false, doubleClick: false };
    Plotly.react(plot, Drawing.traces(state.spec, state.hidden), size, config);
    const reset = figure.querySelector('[data-act="reset"]');
    reset.hidden = true;
    if (state.drawn) return;
    state.drawn = true;
    plot.classList.add("drawn");
    plot.on("plotly_relayout", (change) => {
      if (Object.keys(change).some((key) => key.includes(".range"))) reset.hidden = false;
    });
    plot.on("plotly_doubleclick", () => draw(figure));
    widths.observe(plot);
  }

  // Labels and marks are chosen for the width, so another width is another drawing.
  const widths = new ResizeObserver((entries) => requestAnimationFrame(() => entries.forEach(({ target }) => {
    const figure = target.closest("figure");
    const state = figures.get(figure);
    if (!state.width && target.clientWidth && state.size !== target.clientWidth) draw(figure);
  })));

  // The picture stands alone, so it carries what the page says around the chart.
  function picture(figure) {
    const { spec, hidden } = figures.get(figure);
    const { plain } = Drawing;
    const tall = spec.kind === "dots" ? Drawing.height(spec.rows.length) + 150 : 520;
    const page = Drawing.layout(spec, hidden, 900, tall - 112);
    const titled = (axis, title) => ({ ...axis, title: { text: plain(title) } });
    // Rows carry their own names, so only the values of a dot plot need a title.
    const [x, y] = spec.kind === "dots" ? [titled(page.xaxis, spec.y), page.yaxis]
      : [titled(page.xaxis, spec.x), titled(page.yaxis, spec.y)];
    Plotly.downloadImage(
      {
        data: Drawing.traces(spec, hidden),
        layout: {
          ...page, font: { ...page.font, color: colour("--ink") }, paper_bgcolor: colour("--paper"),
          showlegend: true, title: { text: plain(spec.title), x: 0.02, xanchor: "left" },
          legend: { orientation: "h", yref: "container", y: 0, yanchor: "bottom" },
          margin: { l: 64, r: page.margin.r + 6, t: 56, b: 112 },
          xaxis: x, yaxis: y,
        },
      },
      { format: "png", width: 900, height: tall, scale: 2, filename: `normkit-${figure.dataset.chart}` },
    );
  }

  all("figure.chart").forEach((figure) => {
    figures.set(figure, { hidden: new Set(), drawn: false, spec: null, width: 0, size: 0 });
    const rows = Number(figure.dataset.rows);
    if (rows) figure.querySelector(".plot").style.height = `${Drawing.height(rows)}px`;
    figure.addEventListener("click", async (event) => {
      const button = event.target.closest("button");
      if (!button) return;
      await ready;
      const state = figures.get(figure);
      if (!state.drawn) draw(figure);
      if (button.dataset.line !== undefined) {
        const index = Number(button.dataset.line);
        const shown = state.hidden.delete(index);
        if (!shown) state.hidden.add(index);
        button.setAttribute("aria-pressed", String(shown));
        draw(figure);
      } else if (button.dataset.act === "picture") {
        picture(figure);
      } else if (button.dataset.act === "reset") {
        draw(figure);
        figure.querySelector('[data-act="picture"]').focus();
      }
    });
  });

  // What is not shown has no width to be drawn for: it is drawn anew when it comes up.
  function forget(figure) {
    const state = figures.get(figure);
    const plot = figure.querySelector(".plot");
    if (!state.drawn) return;
    widths.unobserve(plot);
    Plotly.purge(plot);
    plot.classList.remove("drawn");
    Object.assign(state, { drawn: false, width: 0, size: 0 });
    near.observe(figure);
  }
  const shown = (figure) => !figure.closest("[hidden], details:not([open])");

  // A page of many claims draws what comes near.
  const near = new IntersectionObserver(
    (entries) => entries.forEach((entry) => {
      if (!entry.isIntersecting || !shown(entry.target)) return;
      near.unobserve(entry.target);
      if (!figures.get(entry.target).drawn) draw(entry.target);
    }),
    { rootMargin: "900px 0px" },
  );
  ready.then(() => figures.forEach((_, figure) => near.observe(figure)));
  const redraw = () => figures.forEach((state, figure) =>
    state.drawn && (shown(figure) ? draw(figure) : forget(figure)));

  // ---- theme --------------------------------------------------------------------------------

  const toggle = document.getElementById("theme");
  const system = window.matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : system.matches);
  const mark = () => (toggle.querySelector("span").textContent = isDark() ? "Light theme" : "Dark theme");
  toggle.addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    try {
      localStorage.setItem("normkit-theme", root.dataset.theme);
    } catch {
      // Without storage the choice lasts as long as the page.
    }
    mark();
    redraw();
  });
  system.addEventListener("change", () => {
    mark();
    redraw();
  });
  mark();

  // ---- paper --------------------------------------------------------------------------------

  // What to undo after printing.
  let before = null;
  window.addEventListener("beforeprint", () => {
    if (before || !plotly) return;
    before = { theme: root.dataset.theme, closed: all("details.long:not([open])") };
    before.closed.forEach((details) => (details.open = true));
    root.dataset.theme = "light";
    // An open claim is printed alone; see claim.css.
    figures.forEach((state, figure) => {
      if (root.dataset.reading && !shown(figure)) return;
      state.width = PAPER.width;
      draw(figure);
    });
  });
  window.addEventListener("afterprint", () => {
    if (!before) return;
    if (before.theme) root.dataset.theme = before.theme;
    else delete root.dataset.theme;
    before.closed.forEach((details) => (details.open = false));
    before = null;
    figures.forEach((state, figure) => {
      state.width = 0;
      if (shown(figure)) draw(figure);
      else forget(figure);
    });
  });

  // ---- downloads ----------------------------------------------------------------------------

  async function unpack(block) {
    return "gzip" in block ? JSON.parse(await unpacked(block.gzip)) : block;
  }

  // A spreadsheet takes text that begins like this for a formula, and would run it.
  const FORMULA = /^[\s\0]*[=+\-@＝＋－＠]|^[\t\r\n\0]/;
  function cell(value) {
    if (value === null) return "";
    if (typeof value === "number" || typeof value === "boolean") return String(value);
    let text = typeof value === "string" ? value : JSON.stringify(value);
    if (FORMULA.test(text)) text = `'${text}`;
    return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  }
  // A list, such as a score for each epoch, gets a column for each place.
  function csv({ columns, rows }) {
    const widths = columns.map((_, i) =>
      Math.max(0, ...rows.map((row) => (Array.isArray(row[i]) ? row[i].length : 0))));
    const spread = (row) => row.flatMap((value, i) => {
      if (!widths[i]) return [value];
      const list = Array.isArray(value) ? value : [value];
      return Array.from({ length: widths[i] }, (_, k) => list[k] ?? null);
    });
    const head = columns.flatMap((name, i) =>
      widths[i] ? Array.from({ length: widths[i] }, (_, k) => `${name} ${k + 1}`) : [name]);
    return [head, ...rows.map(spread)].map((row) => row.map(cell).join(",") + "\r\n").join("");
  }
  // fromEntries, for a column may well be called __proto__.
  const json = ({ about, columns, rows }) =>
    JSON.stringify(
      { ...about, records: rows.map((row) => Object.fromEntries(columns.map((name, i) => [name, row[i]]))) },
      null, 1,
    );

  const KINDS = { csv: [csv, "text/csv;charset=utf-8"], json: [json, "application/json"] };
  all(".download").forEach((box) =>
    box.addEventListener("click", async (event) => {
      const kind = event.target.closest("[data-save]")?.dataset.save;
      if (!kind) return;
      const block = await unpack(JSON.parse(box.querySelector(".rows").textContent));
      const [write, type] = KINDS[kind];
      const link = document.createElement("a");
      link.href = URL.createObjectURL(new Blob([write(block)], { type }));
      link.download = `${block.name}.${kind}`;
      link.click();
      setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
    }),
  );

  // ---- reading ------------------------------------------------------------------------------

  // A box that has nothing to scroll needs no stop for the keyboard.
  const fit = (box) => {
    const over = box.scrollWidth > box.clientWidth + 1 || box.scrollHeight > box.clientHeight + 1;
    if (over) box.tabIndex = 0;
    else box.removeAttribute("tabindex");
    box.classList.toggle("over", box.scrollWidth > box.clientWidth + 1);
  };
  const sizes = new ResizeObserver((entries) => entries.forEach((entry) => fit(entry.target)));
  all(".scroll").forEach((box) => sizes.observe(box));

  // Which finding is being read.
  const links = new Map(all(".rail a").map((link) => [link.hash.slice(1), link]));
  const reading = new IntersectionObserver(
    (entries) => entries.forEach((entry) => {
      const link = links.get(entry.target.id);
      if (!link) return;
      if (entry.isIntersecting) link.setAttribute("aria-current", "true");
      else link.removeAttribute("aria-current");
    }),
    { rootMargin: "-20% 0px -75% 0px" },
  );
  all("article.claim").forEach((article) => reading.observe(article));
})();
