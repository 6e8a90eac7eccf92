"use strict";
// Pictures without axes: the images of a batch with their marks, and the block of values.
const Drawing = (() => {
  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

  // ---- images -------------------------------------------------------------------------------

  const SIDE = 28, AREA = SIDE * SIDE;
  const sheet = document.createElement("canvas");
  let places = { columns: 1, cell: 1 };

  // The columns that make the images largest.
  function arrange(n, width, height) {
    let best = { columns: 1, cell: 0 };
    for (let columns = 1; columns <= n; columns++) {
      const cell = Math.min(width / columns, height / Math.ceil(n / columns), 120);
      if (cell > best.cell - 0.01) best = { columns, cell };
    }
    return best;
  }

  function fill(pixels, n) {
    if (sheet.width !== SIDE * n) sheet.width = SIDE * n;
    sheet.height = SIDE;
    const context = sheet.getContext("2d");
    const image = context.createImageData(SIDE * n, SIDE);
    for (let k = 0; k < n; k++) for (let i = 0; i < AREA; i++) {
      const at = 4 * ((i / SIDE | 0) * SIDE * n + k * SIDE + i % SIDE);
      image.data[at] = image.data[at + 1] = image.data[at + 2] = pixels[k * AREA + i];
      image.data[at + 3] = 255;
    }
    context.putImageData(image, 0, 0);
  }

  // A disc with a tick, or a square with a cross: the report's signs.
  function sign(context, x, y, size, good, tones) {
    context.fillStyle = good ? tones.good : tones.bad;
    context.strokeStyle = tones.paper;
    context.lineWidth = size / 6;
    context.beginPath();
    if (good) context.arc(x + size / 2, y + size / 2, size / 2, 0, 2 * Math.PI);
    else context.rect(x, y, size, size);
    context.fill();
    context.beginPath();
    const points = good ? [[0.26, 0.52], [0.43, 0.7], [0.74, 0.33]] : [[0.27, 0.27], [0.73, 0.73]];
    points.forEach(([u, v], i) => context[i ? "lineTo" : "moveTo"](x + u * size, y + v * size));
    if (!good) {
      context.moveTo(x + 0.73 * size, y + 0.27 * size);
      context.lineTo(x + 0.27 * size, y + 0.73 * size);
    }
    context.stroke();
  }

  // hits: of each image whether the answer is right; look: the one that is looked at.
  function images(canvas, pixels, hits, look) {
    const n = hits.length, width = canvas.clientWidth, height = canvas.clientHeight;
    const ratio = window.devicePixelRatio || 1;
    const size = [Math.round(width * ratio), Math.round(height * ratio)];
    if (canvas.width !== size[0] || canvas.height !== size[1]) [canvas.width, canvas.height] = size;
    const tones = { good: colour("--for"), bad: colour("--against"), paper: colour("--paper") };
    places = arrange(n, width, height);
    fill(pixels, n);
    const context = canvas.getContext("2d");
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.clearRect(0, 0, width, height);
    context.imageSmoothingEnabled = false;
    context.lineCap = context.lineJoin = "round";
    const { columns, cell } = places, gap = Math.max(3, cell * 0.1), inner = cell - gap;
    const mark = Math.min(22, Math.max(9, cell * 0.34));
    for (let k = 0; k < n; k++) {
      const x = k % columns * cell + gap / 2, y = Math.floor(k / columns) * cell + gap / 2;
      context.drawImage(sheet, k * SIDE, 0, SIDE, SIDE, x, y, inner, inner);
      if (!hits[k]) {
        context.strokeStyle = tones.bad;
        context.lineWidth = Math.max(2, gap * 0.5);
        context.strokeRect(x, y, inner, inner);
      }
      sign(context, x + inner - mark + 1, y + inner - mark + 1, mark, hits[k], tones);
      if (k === look) {
        context.strokeStyle = colour("--ink");
        context.lineWidth = 2;
        context.setLineDash([4, 3]);
        context.strokeRect(x - gap / 2 + 1, y - gap / 2 + 1, cell - 2, cell - 2);
        context.setLineDash([]);
      }
    }
  }

  // Which image lies at a point of the canvas.
  const imageAt = (x, y) => Math.floor(y / places.cell) * places.columns
    + Math.min(places.columns - 1, Math.floor(x / places.cell));

  // ---- the block of values ------------------------------------------------------------------

  const N = 4, C = 6, S = 4, EDGE = 17;
  const POOLS = {
    bn: (n, c) => c === C - 1,
    ln: (n) => n === 0,
    gn: (n, c) => n === 0 && c >= C - 2,
    in: (n, c) => n === 0 && c === C - 1,
  };
  // Channels run to the lower right, samples to the upper right, positions upwards.
  const project = (n, c, s) => [
    (EDGE * 0.87 * (c + n)).toFixed(1), (EDGE * (0.5 * (c - n) - s + 2.2)).toFixed(1),
  ];
  const cell = (on, ...corners) =>
    `<polygon class="${on ? "on" : "off"}" points="${corners.map((it) => project(...it)).join(" ")}"/>`;

  // The three visible faces, cell by cell; those drawn last lie over their neighbours' edges.
  function cube(pool) {
    const inside = POOLS[pool], cells = [];
    const add = (n, c, ...corners) => cells.push([inside(n, c), corners]);
    for (let c = 0; c < C; c++) for (let s = 0; s < S; s++) {
      add(0, c, [0, c, s], [0, c + 1, s], [0, c + 1, s + 1], [0, c, s + 1]);
    }
    for (let n = 0; n < N; n++) for (let s = 0; s < S; s++) {
      add(n, C - 1, [n, C, s], [n + 1, C, s], [n + 1, C, s + 1], [n, C, s + 1]);
    }
    for (let n = 0; n < N; n++) for (let c = 0; c < C; c++) {
      add(n, c, [n, c, S], [n, c + 1, S], [n + 1, c + 1, S], [n + 1, c, S]);
    }
    cells.sort((a, b) => a[0] - b[0]);
    const name = (text, [x, y], anchor) => `<text x="${x}" y="${y}" text-anchor="${anchor}">${text}</text>`;
    const [left, bottom] = project(0, C / 2, 0), [right, low] = project(N / 2, C, 0);
    const [edge, middle] = project(0, 0, S / 2);
    return cells.map(([on, corners]) => cell(on, ...corners)).join("")
      + name("C →", [left - 6, +bottom + 20], "end") + name("N →", [+right + 8, +low + 18], "start")
      + name("S ↑", [edge - 6, middle], "end");
  }

  return { colour, images, imageAt, cube };
})();
