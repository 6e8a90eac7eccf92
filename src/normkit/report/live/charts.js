"use strict";
// The two charts, as SVG as wide as their place. What moves is drawn as one path for each kind.
const Charts = (() => {
  const HEIGHT = { means: 190, record: 330 }, START = 40;
  const dot = ([x, y]) => `M${x.toFixed(1)} ${y.toFixed(1)}h0`;
  const diamond = ([x, y]) => `M${x.toFixed(1)} ${(y - 5).toFixed(1)}l5 5-5 5-5-5Z`;
  const label = (x, y, text, anchor = "middle", kind = "tick") =>
    `<text class="${kind}" x="${x.toFixed(1)}" y="${y.toFixed(1)}" text-anchor="${anchor}">${text}</text>`;
  const line = (kind, x1, y1, x2, y2) => `<path class="${kind}" d="M${x1} ${y1}L${x2} ${y2}"/>`;
  const minus = (value) => String(value).replace("-", "−");

  // Redraw what stays only when something about it has changed.
  function stage(svg, height, key, draw) {
    const width = Math.max(240, Math.round(svg.clientWidth));
    const now = `${width} ${key}`;
    if (svg.dataset.key !== now) {
      svg.dataset.key = now;
      svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
      svg.setAttribute("height", height);
      svg.innerHTML = draw(width);
    }
    return width;
  }
  const move = (svg, kind, path) => svg.querySelector(`.${kind}`).setAttribute("d", path);

  // ---- batch means ----------------------------------------------------------------------------

  const RANGES = [0.25, 0.5, 1, 2, 4, 8, 16, 32, 64, 128];
  // Everything in remembered deviations from the remembered mean, channel by channel.
  function means(svg, { batch, used, others }, words) {
    const count = batch.length, height = HEIGHT.means;
    const largest = Math.max(...[batch, used, ...others].map((row) => Math.max(...row.map(Math.abs))));
    const range = RANGES.find((each) => each >= 1.05 * largest) ?? 2 * largest;
    const left = 40, right = 8, top = 20, bottom = 34;
    const y = (value) => top + (height - top - bottom) * (0.5 - value / (2 * range));
    let x;
    const place = (width) => (i) => left + (width - left - right) * (i + 0.5) / count;
    const width = stage(svg, height, [count, range, words.y, words.x].join(), (wide) => {
      x = place(wide);
      const ticks = [-range, -range / 2, 0, range / 2, range];
      return ticks.map((tick) => line(tick ? "grid" : "remembered", left, y(tick), wide - right, y(tick))
          + label(left - 6, y(tick) + 4, minus(tick), "end")).join("")
        + batch.map((_, i) => label(x(i), height - bottom + 15, i + 1)).join("")
        + label(wide < 340 ? 0 : left, 11, words.y, "start", "name") + label(wide - right, height - 4, words.x, "end", "name")
        + ["others", "batch", "used"].map((kind) => `<path class="${kind}"/>`).join("");
    });
    x ??= place(width);
    const aside = Math.min(9, 0.22 * (width - left - right) / count);
    const points = (row, shift) => row.map((value, i) => [x(i) + shift, y(value)]);
    move(svg, "others", others.map((row) => points(row, -aside).map(dot).join("")).join(""));
    move(svg, "batch", points(batch, -aside).map(dot).join(""));
    move(svg, "used", points(used, aside).map(diamond).join(""));
  }

  // ---- one training ---------------------------------------------------------------------------

  function nice(low, high) {
    const rough = (high - low || 1) / 3, unit = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 5, 10].map((each) => each * unit).find((each) => each >= rough);
    const ticks = [];
    for (let tick = Math.ceil(low / step) * step; tick <= high + step / 1e6; tick += step) {
      ticks.push(Number(tick.toPrecision(6)));
    }
    return ticks;
  }
  // A curve of points, interrupted where there is none.
  const curve = (points) => points.map((point, i) =>
    point && `${points[i - 1] ? "L" : "M"}${point[0].toFixed(1)} ${point[1].toFixed(1)}`).join("");

  // data: batch, moving, population by step; accuracy and recalibrated in %; rests: the steps on
  // incomplete batches. at: the step that is looked at; first to last: those that are drawn; from 0.
  function record(svg, data, at, [first, last], words) {
    const height = HEIGHT.record, left = 44, right = 10;
    const upper = [22, 140], lower = [178, 290];
    const across = (width) => (i) => left + (width - left - right) * (i - first) / (last - first);
    const width = stage(svg, height, [words.key, first, last].join(), (wide) => {
      const x = across(wide), drawn = Array.from({ length: last - first + 1 }, (_, i) => first + i);
      // What matters are the curves once the average has left its start; what lies beyond the edges
      // is not drawn.
      const start = Math.min(START, data.moving.length >> 2);
      const curves = [...data.moving.slice(start), ...data.population.slice(start)];
      const least = Math.min(...curves), most = Math.max(...curves);
      const room = 0.3 * (most - least);
      const low = Math.min(least, Math.max(least - room, Math.min(...data.batch)));
      const high = Math.max(most, Math.min(most + room, Math.max(...data.batch)));
      const down = ([from, to], bottom, top) => (value) => to - (to - from) * (value - bottom) / (top - bottom);
      const points = (rows, scale, [bottom, top]) => drawn.map((i) =>
        rows[i] >= bottom && rows[i] <= top ? [x(i), scale(rows[i])] : null);
      const y = down(upper, low, high), z = down(lower, 0, 100);
      const panel = (ticks, scale, name, top) =>
        ticks.map((tick) => line("grid", left, scale(tick), wide - right, scale(tick))
          + label(left - 6, scale(tick) + 4, minus(tick), "end")).join("")
        + label(left - 36, top - 9, name, "start", "name");
      const path = (kind, rows, scale, edges) => `<path class="${kind}" d="${curve(points(rows, scale, edges))}"/>`;
      const rests = data.rests.filter((i) => i >= first && i <= last);
      return rests.map((i) => line("rest", x(i), upper[0], x(i), lower[1])).join("")
        + panel(nice(low, high), y, words.upper, upper[0])
        + panel([0, 25, 50, 75, 100], z, words.lower, lower[0])
        + `<path class="others" d="${points(data.batch, y, [low, high]).map((point) => point && dot(point)).join("")}"/>`
        + path("population", data.population, y, [low, high]) + path("moving", data.moving, y, [low, high])
        + path("population", data.recalibrated, z, [0, 100]) + path("moving", data.accuracy, z, [0, 100])
        + label(left, height - 22, first + 1) + label(x(last), height - 22, last + 1, "end")
        + label(wide - right, height - 6, words.x, "end", "name") + `<path class="cursor"/>`;
    });
    const x = across(width)(at).toFixed(1);
    move(svg, "cursor", `M${x} ${upper[0] - 6}V${lower[1]}`);
  }

  return { means, record };
})();
