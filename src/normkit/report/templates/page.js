"use strict";
(() => {
  const root = document.documentElement;
  const all = (selector, within = document) => [...within.querySelectorAll(selector)];
  const colour = (name) => getComputedStyle(root).getPropertyValue(name).trim();
  const matches = (query) => window.matchMedia(query).matches;

  // plotly.js reads labels as a small markup of its own; this leaves it nothing to read.
  const plain = (text) =>
    String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;") || " ";
  const short = (value) => String(Number(value.toPrecision(4))).replace("-", "−");
  const brief = (value) =>
    Math.abs(value) < 1e4 ? short(value)
      : value.toLocaleString("en", { notation: "compact", maximumSignificantDigits: 4 });
  const faint = (hex, alpha) => {
    const [r, g, b] = [1, 3, 5].map((start) => parseInt(hex.slice(start, start + 2), 16));
    return `rgba(${r},${g},${b},${alpha})`;
  };

  // ---- charts -------------------------------------------------------------------------------

  const SIGNS = ["circle", "square", "diamond", "triangle-up", "x", "triangle-down", "pentagon", "cross"];
  // On a sheet of A4 between its margins; style.css has the same height.
  const PAPER = { width: 640, height: 270 };
  const figures = new Map();

  // One closed outline for each stretch without gaps.
  function band(line) {
    const x = [];
    const y = [];
    let stretch = [];
    const close = () => {
      if (!stretch.length) return;
      const back = [...stretch].reverse();
      x.push(...stretch.map((i) => line.at[i]), ...back.map((i) => line.at[i]), null);
      y.push(...stretch.map((i) => line.low[i]), ...back.map((i) => line.high[i]), null);
      stretch = [];
    };
    line.at.forEach((_, i) => {
      if (line.low[i] === null || line.high[i] === null) close();
      else stretch.push(i);
    });
    close();
    return { x, y };
  }

  function traces(spec, hidden) {
    const made = [];
    spec.lines.forEach((line, index) => {
      const tint = colour(line.colour < 0 ? "--arm-ink" : `--arm-${line.colour}`);
      const visible = !hidden.has(index);
      if (line.low) {
        made.push({
          ...band(line), type: "scatter", mode: "lines", fill: "toself", fillcolor: faint(tint, 0.17),
          line: { width: 1, color: faint(tint, 0.3) }, hoverinfo: "skip", visible, meta: index,
          showlegend: false,
        });
      }
    });
    spec.lines.forEach((line, index) => {
      const tint = colour(line.colour < 0 ? "--arm-ink" : `--arm-${line.colour}`);
      const few = spec.markers || line.at.length <= 12;
      made.push({
        x: line.at, y: line.value, type: "scatter", name: plain(line.name),
        mode: line.role === "theory" ? "lines" : "lines+markers",
        line: { color: tint, dash: line.dash, width: line.role === "data" ? 2.25 : 1.75 },
        marker: {
          color: tint, size: few ? 8 : 7, symbol: SIGNS[line.sign] + (line.hollow ? "-open" : ""),
          maxdisplayed: few ? 0 : 9,
        },
        text: line.value.map((value, i) => {
          if (value === null) return "";
          const spread = line.low && line.low[i] !== null && line.high[i] !== null;
          return short(value) + (spread ? ` (${short(line.low[i])} to ${short(line.high[i])})` : "");
        }),
        hovertemplate: "%{text}", connectgaps: false, visible: !hidden.has(index), meta: index,
      });
    });
    return made;
  }

  function layout(spec, width) {
    const ink = colour("--ink-soft");
    const still = matches("(pointer: coarse)");
    const axis = {
      automargin: true, showline: true, linecolor: colour("--rule-strong"), gridcolor: colour("--rule"),
      zeroline: false, ticks: "outside", ticklen: 4, tickcolor: colour("--rule-strong"),
      separatethousands: true, exponentformat: "power", fixedrange: still, tickangle: 0,
    };
    const marks = (ticks, step) => {
      const shown = ticks?.filter((_, i) => i % step === 0);
      return shown ? { tickmode: "array", tickvals: shown, ticktext: shown.map(brief) } : {};
    };
    // As many of the marks as have room for their figures.
    const digits = Math.max(0, ...(spec.xticks ?? []).map((tick) => brief(tick).length));
    const room = Math.max(width - 70, 80);
    const step = Math.max(1, Math.ceil(((spec.xticks?.length ?? 0) * (digits * 8 + 12)) / room));
    // A template of plotly.js, in which only the last brace is ours.
    const heading = `${plain(spec.x).replaceAll("%{", "% {")}: %{x}`;
    return {
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", showlegend: false,
      margin: { l: 44, r: 14, t: 8, b: 28 },
      font: { family: getComputedStyle(document.body).fontFamily, size: 13, color: ink },
      xaxis: { ...axis, ...marks(spec.xticks, step), unifiedhovertitle: { text: heading }, showgrid: false, type: spec.xlog ? "log" : "linear" },
      yaxis: { ...axis, ...marks(spec.yticks, 1), type: spec.ylog ? "log" : "linear", nticks: 6 },
      hovermode: "x unified", dragmode: still ? false : "zoom", separators: ".,",
      hoverlabel: {
        bgcolor: colour("--paper"), bordercolor: colour("--rule-strong"), namelength: 28,
        font: { color: colour("--ink"), size: 13 },
      },
    };
  }

  function draw(figure) {
    const plot = figure.querySelector(".plot");
    const state = figures.get(figure);
    state.spec ??= JSON.parse(document.getElementById(figure.dataset.chart).textContent);
    const size = layout(state.spec, state.width || plot.clientWidth);
    if (state.width) Object.assign(size, { width: state.width, height: PAPER.height, autosize: false });
    const config = { displayModeBar: false, displaylogo: false, responsive: true, doubleClick: "reset" };
    Plotly.react(plot, traces(state.spec, state.hidden), size, config);
    if (state.drawn) return;
    state.drawn = true;
    plot.classList.add("drawn");
    const reset = figure.querySelector('[data-act="reset"]');
    plot.on("plotly_relayout", (change) => {
      const keys = Object.keys(change);
      if (keys.some((key) => key.includes(".range"))) reset.hidden = false;
      if (keys.some((key) => key.includes(".autorange"))) reset.hidden = true;
    });
  }

  // The picture stands alone, so it carries what the page says around the chart.
  function picture(figure) {
    const { spec, hidden } = figures.get(figure);
    const page = layout(spec, 900);
    const titled = (axis, title) => ({ ...axis, title: { text: plain(title) } });
    const font = { ...page.font, color: colour("--ink") };
    Plotly.downloadImage(
      {
        data: traces(spec, hidden),
        layout: {
          ...page, font, paper_bgcolor: colour("--paper"), showlegend: true,
          title: { text: plain(spec.title), x: 0.02, xanchor: "left" },
          legend: { orientation: "h", y: -0.18 }, margin: { l: 64, r: 20, t: 56, b: 56 },
          xaxis: titled(page.xaxis, spec.x), yaxis: titled(page.yaxis, spec.y),
        },
      },
      { format: "png", width: 900, height: 520, scale: 2, filename: `normkit-${figure.dataset.chart}` },
    );
  }

  all("figure.chart").forEach((figure) => {
    figures.set(figure, { hidden: new Set(), drawn: false, spec: null, width: 0 });
    figure.addEventListener("click", (event) => {
      const button = event.target.closest("button");
      if (!button) return;
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
        Plotly.relayout(figure.querySelector(".plot"), { "xaxis.autorange": true, "yaxis.autorange": true });
        figure.querySelector('[data-act="picture"]').focus();
      }
    });
  });

  // A page of many claims draws what comes near.
  const near = new IntersectionObserver(
    (entries) => entries.forEach((entry) => {
      if (!entry.isIntersecting) return;
      near.unobserve(entry.target);
      if (!figures.get(entry.target).drawn) draw(entry.target);
    }),
    { rootMargin: "900px 0px" },
  );
  figures.forEach((_, figure) => near.observe(figure));
  const redraw = () => figures.forEach((state, figure) => state.drawn && draw(figure));

  // ---- theme --------------------------------------------------------------------------------

  const toggle = document.getElementById("theme");
  const system = window.matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : system.matches);
  const mark = () => toggle.setAttribute("aria-pressed", String(isDark()));
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
    if (before) return;
    before = { theme: root.dataset.theme, closed: all("details.long:not([open])") };
    before.closed.forEach((details) => (details.open = true));
    root.dataset.theme = "light";
    figures.forEach((state, figure) => {
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
      draw(figure);
      Plotly.Plots.resize(figure.querySelector(".plot"));
    });
  });

  // ---- downloads ----------------------------------------------------------------------------

  async function unpack(block) {
    if (!("gzip" in block)) return block;
    const bytes = Uint8Array.from(atob(block.gzip), (char) => char.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    return JSON.parse(await new Response(stream).text());
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
  };
  const sizes = new ResizeObserver((entries) => entries.forEach((entry) => fit(entry.target)));
  all(".scroll").forEach((box) => sizes.observe(box));

  // Which claim is being read.
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
