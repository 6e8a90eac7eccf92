"use strict";
// From a chart as data to what plotly.js draws; page.js decides when and where.
const Drawing = (() => {
  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  // plotly.js reads labels as a small markup of its own; this leaves it nothing to read.
  const plain = (text) =>
    String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;") || " ";
  // A real minus, and powers of ten as the page's own text has them.
  const raised = (power) => String(power).replace(/[-0-9]/g, (sign) => "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"["-0123456789".indexOf(sign)]);
  const short = (value) => {
    const [, sign, mantissa, power] = /^(-?)([^e]+)(?:e([+-]\d+))?$/.exec(String(Number(value.toPrecision(4))));
    const size = Math.abs(Number(value.toPrecision(3)));
    if (size >= 1e-4 && power === undefined) return sign.replace("-", "−") + mantissa;
    if (!size || !Number.isFinite(size)) return String(value).replace("-", "−");
    const at = Math.floor(Math.log10(size) + 1e-9);
    const factor = Number((size / 10 ** at).toPrecision(3));
    return `${sign.replace("-", "−")}${factor === 1 ? "" : `${factor}×`}10${raised(at)}`;
  };
  const brief = (value) =>
    Math.abs(value) < 1e4 ? short(value)
      : value.toLocaleString("en", { notation: "compact", maximumSignificantDigits: 4 });
  const faint = (hex, alpha) => {
    const [r, g, b] = [1, 3, 5].map((start) => parseInt(hex.slice(start, start + 2), 16));
    return `rgba(${r},${g},${b},${alpha})`;
  };
  const tintOf = (line) => colour(line.colour < 0 ? "--arm-ink" : `--arm-${line.colour}`);
  const FAILED = "✕ diverged or did not learn";

  // No row longer than `most` characters, broken between words.
  function wrapped(text, most) {
    const rows = [""];
    for (const word of String(text).split(/\s+/)) {
      const row = rows.at(-1);
      if (row && row.length + word.length >= most) rows.push(word);
      else rows[rows.length - 1] = row ? `${row} ${word}` : word;
    }
    return rows.map((row) => (row.length > most + 8 ? `${row.slice(0, most + 7)}…` : row));
  }

  const SIGNS = ["circle", "square", "diamond", "triangle-up", "x", "triangle-down", "pentagon", "cross"];
  const sign = (line) => SIGNS[line.sign] + (line.hollow ? "-open" : "");
  const spread = (line, i) => line.low && line.low[i] !== null && line.high[i] !== null;
  // What the pointer is told of one point.
  function told(line, i) {
    const value = line.value[i];
    const words = value === null ? "" : short(value);
    const range = value !== null && spread(line, i)
      ? ` (${short(line.low[i])} to ${short(line.high[i])})` : "";
    return words + range + (line.failed?.includes(i) ? ` ${FAILED}` : "");
  }

  // ---- curves -------------------------------------------------------------------------------

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
    line.at.forEach((_, i) => (spread(line, i) ? stretch.push(i) : close()));
    close();
    return { x, y };
  }

  // Crosses where runs failed: on the value, or at the upper edge where there is none.
  function crosses(spec, hidden) {
    const stacked = new Map();
    return spec.lines.flatMap((line, index) => {
      const shared = {
        type: "scatter", mode: "markers", name: plain(line.name), meta: index, visible: !hidden.has(index),
        marker: { symbol: "x-thin", size: 11, line: { color: tintOf(line), width: 3 } },
      };
      const failed = line.failed ?? [];
      const known = failed.filter((i) => line.value[i] !== null);
      const lost = failed.filter((i) => line.value[i] === null);
      const edge = lost.map((i) => {
        const before = stacked.get(line.at[i]) ?? 0;
        stacked.set(line.at[i], before + 1);
        return 0.96 - 0.07 * before;
      });
      return [
        ...(known.length ? [{ ...shared, hoverinfo: "skip", x: known.map((i) => line.at[i]),
          y: known.map((i) => line.value[i]) }] : []),
        ...(lost.length ? [{ ...shared, yaxis: "y2", hovertemplate: FAILED,
          x: lost.map((i) => line.at[i]), y: edge }] : []),
      ];
    });
  }

  function curves(spec, hidden) {
    // Many bands over each other would hide the curves.
    const many = spec.lines.filter((line) => line.low).length > 4;
    const bands = spec.lines.flatMap((line, index) => {
      if (!line.low) return [];
      const tint = tintOf(line);
      return [{
        ...band(line), type: "scatter", mode: "lines", fill: "toself", fillcolor: faint(tint, many ? 0.07 : 0.17),
        line: { width: 1, color: faint(tint, many ? 0.2 : 0.3) }, hoverinfo: "skip", visible: !hidden.has(index),
        meta: index, showlegend: false,
      }];
    });
    const lines = spec.lines.map((line, index) => {
      const tint = tintOf(line);
      const few = spec.markers || line.at.length <= 12;
      const size = few ? 8 : 7;
      return {
        x: line.at, y: line.value, type: "scatter", name: plain(line.name),
        mode: line.role === "theory" ? "lines" : "lines+markers",
        line: { color: tint, dash: line.dash, width: line.role === "data" ? 2.25 : 1.75 },
        marker: {
          color: tint, symbol: sign(line), maxdisplayed: few ? 0 : 9,
          size: line.failed ? line.at.map((_, i) => (line.failed.includes(i) ? 0 : size)) : size,
        },
        text: line.at.map((_, i) => told(line, i)),
        hovertemplate: "%{text}", connectgaps: false, visible: !hidden.has(index), meta: index,
      };
    });
    return [...bands, ...lines, ...crosses(spec, hidden).map((trace) => ({ ...trace, showlegend: false }))];
  }

  // ---- dots ---------------------------------------------------------------------------------

  function dots(spec, hidden) {
    // Without a value a cross stands at the right edge, on an axis of its own.
    const lost = spec.lines.flatMap((line, index) => {
      const rows = (line.failed ?? []).filter((i) => line.value[i] === null);
      return rows.length ? [{
        x: rows.map(() => 0.97), y: rows.map((i) => line.place[i]), xaxis: "x2", type: "scatter",
        mode: "markers", marker: { symbol: "x-thin", size: 11, line: { color: tintOf(line), width: 3 } },
        text: rows.map((i) => `${plain(spec.rows[line.at[i]])}<br>${plain(line.name)}: ${FAILED}`),
        hovertemplate: "%{text}<extra></extra>", visible: !hidden.has(index), meta: index, showlegend: false,
      }] : [];
    });
    return [...spec.lines.map((line, index) => {
      const tint = tintOf(line);
      const reach = (ends) => line.value.map((value, i) => (spread(line, i) ? Math.abs(ends[i] - value) : 0));
      return {
        x: line.value, y: line.place, type: "scatter", mode: "markers", name: plain(line.name),
        marker: { color: tint, size: 10, symbol: line.at.map((_, i) =>
          line.failed?.includes(i) ? "x-thin" : sign(line)), line: { color: tint, width: line.hollow ? 2 : line.failed ? 3 : 0 } },
        error_x: line.low ? { type: "data", symmetric: false, array: reach(line.high),
          arrayminus: reach(line.low), color: tint, thickness: 2, width: 4 } : undefined,
        text: line.at.map((row, i) => `${plain(spec.rows[row])}<br>${plain(line.name)}: ${told(line, i)}`),
        hovertemplate: "%{text}<extra></extra>", visible: !hidden.has(index), meta: index,
      };
    }), ...lost];
  }

  // The height that the rows of a dot plot ask for.
  const height = (rows) => Math.max(150, 62 + 40 * rows);

  // ---- axes ---------------------------------------------------------------------------------

  // All values in view, and no more of the bands than lets the curves be seen. Null: plotly's choice.
  function reach(spec, hidden) {
    const scaled = (value) => (spec.ylog ? (value > 0 ? Math.log10(value) : null) : value);
    const shown = spec.lines.filter((_, index) => !hidden.has(index));
    const kept = (values) => values.filter((value) => value !== null).map(scaled).filter((value) => value !== null);
    const values = kept(shown.flatMap((line) => line.value));
    if (!values.length) return null;
    const bands = kept(shown.flatMap((line) => (line.low ? [...line.low, ...line.high] : [])));
    const [low, high] = [Math.min(...values), Math.max(...values)];
    const room = high > low ? (high - low) / 2 : Infinity;
    const bottom = Math.max(Math.min(low, ...bands), low - room);
    const top = Math.min(Math.max(high, ...bands), high + room);
    const pad = 0.06 * (top - bottom) || Math.abs(top) * 0.05 || 1;
    // Crosses without a value stand above the rest.
    const lost = shown.some((line) => line.failed?.some((i) => line.value[i] === null));
    return [bottom - pad, top + pad + (lost ? 0.12 * (top - bottom) : 0)];
  }

  const canvas = document.createElement("canvas").getContext("2d");
  function wide(text) {
    canvas.font = `12px ${getComputedStyle(document.body).fontFamily}`;
    return canvas.measureText(text).width;
  }

  // Names at the ends of the curves, where there is room for them; the legend has all in any case.
  function labels(spec, hidden, width, tall, range) {
    const none = { notes: [], margin: 14 };
    if (width < 560 || !range) return none;
    const last = Math.max(...spec.lines.flatMap((line) => line.at));
    const first = Math.min(...spec.lines.flatMap((line) => line.at));
    const along = (x) => (spec.xlog ? Math.log10(x) : x);
    const ends = spec.lines.flatMap((line, index) => {
      const i = line.at.reduce((best, x, j) =>
        line.value[j] !== null && (best < 0 || x >= line.at[best]) ? j : best, -1);
      if (hidden.has(index) || i < 0 || (spec.ylog && line.value[i] <= 0)) return [];
      if (along(line.at[i]) < along(last) - 0.02 * (along(last) - along(first))) return [];
      const y = spec.ylog ? Math.log10(line.value[i]) : line.value[i];
      const pixel = ((range[1] - y) / (range[1] - range[0])) * tall;
      return [{ x: along(line.at[i]), y, pixel, text: line.short, tint: tintOf(line) }];
    });
    const margin = 24 + Math.max(0, ...ends.map((end) => wide(end.text)));
    if (!ends.length || ends.length > 9 || ends.length * 16 > tall || margin > 0.34 * width) return none;
    // From the top down each takes the next free place, and then all move up as far as is needed.
    ends.sort((a, b) => a.pixel - b.pixel);
    ends.forEach((end, i) => (end.place = Math.max(end.pixel, i ? ends[i - 1].place + 16 : 6)));
    for (let i = ends.length - 1, limit = tall - 6; i >= 0; i -= 1) {
      ends[i].place = Math.min(ends[i].place, limit);
      limit = ends[i].place - 16;
    }
    const notes = ends.map((end) => ({
      x: end.x, y: end.y, text: plain(end.text), font: { color: end.tint, size: 12 }, showarrow: false,
      xanchor: "left", xshift: 9, yshift: end.pixel - end.place, captureevents: false,
    }));
    return { notes, margin };
  }

  // All places in view, with a margin for their marks.
  function span(spec) {
    const places = spec.lines.flatMap((line) => line.at).map((x) => (spec.xlog ? Math.log10(x) : x));
    const [first, last] = [Math.min(...places), Math.max(...places)];
    const pad = 0.04 * (last - first) || 0.5;
    return [first - pad, last + pad];
  }

  // As many of the marks as have room for their figures.
  function apart(spec, room) {
    const along = (x) => (spec.xlog ? Math.log10(x) : x);
    const places = spec.lines.flatMap((line) => line.at).map(along);
    const [first, last] = [Math.min(...places), Math.max(...places)];
    const pixel = (tick) => (last > first ? ((along(tick) - first) / (last - first)) * Math.max(room, 80) : 0);
    let end = -Infinity;
    return spec.xticks?.filter((tick) => {
      const half = wide(brief(tick)) / 2 + 5;
      if (pixel(tick) - half < end) return false;
      end = pixel(tick) + half;
      return true;
    });
  }

  function layout(spec, hidden, width, tall) {
    const still = window.matchMedia("(pointer: coarse)").matches;
    const axis = {
      automargin: true, showline: true, linecolor: colour("--rule-strong"), gridcolor: colour("--rule"),
      zeroline: false, ticks: "outside", ticklen: 4, tickcolor: colour("--rule-strong"),
      separatethousands: true, exponentformat: "power", fixedrange: still, tickangle: 0,
    };
    const marks = (shown) =>
      (shown ? { tickmode: "array", tickvals: shown, ticktext: shown.map(brief) } : {});
    const page = {
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", showlegend: false,
      margin: { l: 44, r: 14, t: 8, b: 28 },
      font: { family: getComputedStyle(document.body).fontFamily, size: 13, color: colour("--ink-soft") },
      dragmode: still ? false : "zoom", separators: ".,",
      hoverlabel: {
        bgcolor: colour("--paper"), bordercolor: colour("--rule-strong"), namelength: 28,
        font: { color: colour("--ink"), size: 13 },
      },
    };
    if (spec.kind === "dots") {
      const most = Math.max(12, Math.floor((width * 0.4) / 7.5));
      const marked = spec.yticks && width < 500 ? spec.yticks.filter((tick) => Number.isInteger(Math.log10(tick))) : spec.yticks;
      return {
        ...page, hovermode: "closest",
        xaxis: { ...axis, ...marks(marked), type: spec.ylog ? "log" : "linear", nticks: width < 500 ? 5 : 8,
          zeroline: true, zerolinecolor: colour("--ink-quiet"), zerolinewidth: 1.5 },
        yaxis: { ...axis, tickvals: spec.rows.map((_, i) => i), ticks: "", fixedrange: true,
          ticktext: spec.rows.map((row) => wrapped(row, most).slice(0, 2).map(plain).join("<br>")),
          range: [spec.rows.length - 0.5, -0.5] },
        xaxis2: { overlaying: "x", range: [0, 1], visible: false, fixedrange: true },
      };
    }
    const range = reach(spec, hidden);
    const named = labels(spec, hidden, width, tall - 40, range);
    // Else plotly.js would make room for the names once more.
    const across = named.notes.length ? { range: span(spec) } : {};
    // A template of plotly.js, in which only the last brace is ours.
    const heading = `${plain(spec.x).replaceAll("%{", "% {")}: %{x}`;
    return {
      ...page, hovermode: "x unified", annotations: named.notes,
      margin: { ...page.margin, r: named.margin },
      xaxis: { ...axis, ...marks(apart(spec, width - 70 - named.margin)), unifiedhovertitle: { text: heading }, showgrid: false, type: spec.xlog ? "log" : "linear", ...across },
      yaxis: { ...axis, ...marks(spec.yticks), type: spec.ylog ? "log" : "linear", nticks: 6, ...(range ? { range } : {}) },
      // Only crosses that have no value stand on it.
      yaxis2: { overlaying: "y", range: [0, 1], visible: false, fixedrange: true },
    };
  }

  return {
    plain, height, layout,
    traces: (spec, hidden) => (spec.kind === "dots" ? dots : curves)(spec, hidden),
  };
})();
