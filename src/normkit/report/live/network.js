"use strict";
// LeNet-5 with batch normalization, forward, in float32 with sums in float64; and the worker that
// runs it. `arrays` holds the weights by PyTorch's names.
function makeNetwork(arrays, facts) {
  const SIDE = 28, AREA = 784, K = 5;
  // Channels and values of a channel of each normalization layer's input.
  const LAYERS = [[6, 576], [16, 64], [120, 1], [84, 1]];
  const MODES = ["remembered", "batch", "mixed"];
  const w = (name) => arrays[name];
  const count = w("labels").length;
  const first = new Float32Array(count * 6 * 576);
  const known = new Uint8Array(count);
  let pixels = w("images"), now = "";

  function corrupt(kind, severity) {
    const name = severity ? `${kind} ${severity}` : "";
    if (name === now) return;
    now = name;
    pixels = Corrupt.corrupted(w("images"), kind, severity);
    known.fill(0);
  }

  // Valid 5×5 convolution of one image: `inputs` planes of side² at x[from], added to y[to].
  function convolve(x, from, inputs, side, weight, bias, y, to) {
    const out = side - K + 1, plane = out * out;
    for (let o = 0; o < bias.length; o++) {
      const base = to + o * plane;
      y.fill(bias[o], base, base + plane);
      for (let c = 0; c < inputs; c++) for (let ky = 0; ky < K; ky++) {
        const at = ((o * inputs + c) * K + ky) * K;
        const a = weight[at], b = weight[at + 1], d = weight[at + 2], e = weight[at + 3], g = weight[at + 4];
        for (let v = 0; v < out; v++) {
          let i = from + (c * side + v + ky) * side, j = base + v * out;
          for (let u = 0; u < out; u++, i++, j++) {
            y[j] += a * x[i] + b * x[i + 1] + d * x[i + 2] + e * x[i + 3] + g * x[i + 4];
          }
        }
      }
    }
  }

  // Of each pixel value, standardized as in training.
  const f = Math.fround, spread = f(facts.std);
  const scale = f(1 / f(255 * spread)), shift = f(f(facts.mean) / spread);
  const standard = Float32Array.from({ length: 256 }, (_, pixel) => f(pixel * scale) - shift);
  const image = new Float32Array(AREA);
  // The first convolution does not depend on statistics, so it is computed once for each image.
  function begin(index) {
    if (known[index]) return;
    for (let i = 0; i < AREA; i++) image[i] = standard[pixels[index * AREA + i]];
    convolve(image, 0, 1, SIDE, w("conv1.weight"), w("conv1.bias"), first, index * 6 * 576);
    known[index] = 1;
  }

  function dense(x, n, name) {
    const weight = w(`${name}.weight`), bias = w(`${name}.bias`);
    const outputs = bias.length, inputs = weight.length / outputs, y = new Float32Array(n * outputs);
    for (let k = 0; k < n; k++) for (let o = 0; o < outputs; o++) {
      let sum = bias[o], i = k * inputs, j = o * inputs;
      for (const end = i + inputs; i < end; i++, j++) sum += x[i] * weight[j];
      y[k * outputs + o] = sum;
    }
    return y;
  }

  // Mean and biased variance of each channel, over the batch and over space.
  function moments(x, n, [channels, size]) {
    const mean = new Float64Array(channels), variance = new Float64Array(channels);
    for (let c = 0; c < channels; c++) {
      let sum = 0, squares = 0;
      for (let k = 0; k < n; k++) {
        const from = (k * channels + c) * size;
        for (let i = from; i < from + size; i++) sum += x[i];
      }
      const centre = sum / (n * size);
      for (let k = 0; k < n; k++) {
        const from = (k * channels + c) * size;
        for (let i = from; i < from + size; i++) squares += (x[i] - centre) ** 2;
      }
      mean[c] = centre;
      variance[c] = squares / (n * size);
    }
    return { mean, variance };
  }

  // Normalize, then the sigmoid, both in place. As normkit.adapt: means and variances are mixed,
  // n samples of this batch with `prior` of those remembered.
  function normalize(x, n, layer, mode, prior) {
    const name = `norm${layer + 1}`, [channels, size] = LAYERS[layer];
    const batch = moments(x, n, LAYERS[layer]);
    const share = mode === "remembered" ? 0 : mode === "batch" ? 1 : n / (prior + n);
    const mean = w(`${name}.population_mean`), variance = w(`${name}.population_var`);
    const used = { mean: new Float64Array(channels), variance: new Float64Array(channels) };
    for (let c = 0; c < channels; c++) {
      used.mean[c] = (1 - share) * mean[c] + share * batch.mean[c];
      used.variance[c] = (1 - share) * variance[c] + share * batch.variance[c];
      const by = w(`${name}.weight`)[c] / Math.sqrt(used.variance[c] + facts.eps[layer]);
      const add = w(`${name}.bias`)[c] - used.mean[c] * by;
      for (let k = 0; k < n; k++) {
        const from = (k * channels + c) * size;
        for (let i = from; i < from + size; i++) x[i] = 1 / (1 + Math.exp(-(x[i] * by + add)));
      }
    }
    return { batch, used };
  }

  function pool(x, planes, side) {
    const half = side / 2, y = new Float32Array(planes * half * half);
    for (let p = 0, j = 0; p < planes; p++) for (let v = 0; v < half; v++) {
      for (let u = 0, i = (p * side + 2 * v) * side; u < half; u++, i += 2, j++) {
        y[j] = (x[i] + x[i + 1] + x[i + side] + x[i + side + 1]) / 4;
      }
    }
    return y;
  }

  // The logits (n × 10) of these images, as one batch, and the moments of each layer.
  function forward(indices, mode, prior) {
    const n = indices.length, layers = [];
    let x = new Float32Array(n * 6 * 576);
    indices.forEach((index, k) => {
      begin(index);
      x.set(first.subarray(index * 6 * 576, (index + 1) * 6 * 576), k * 6 * 576);
    });
    layers.push(normalize(x, n, 0, mode, prior));
    const below = pool(x, n * 6, 24);
    x = new Float32Array(n * 16 * 64);
    for (let k = 0; k < n; k++) {
      convolve(below, k * 6 * 144, 6, 12, w("conv2.weight"), w("conv2.bias"), x, k * 16 * 64);
    }
    layers.push(normalize(x, n, 1, mode, prior));
    x = dense(pool(x, n * 16, 8), n, "fc1");
    layers.push(normalize(x, n, 2, mode, prior));
    x = dense(x, n, "fc2");
    layers.push(normalize(x, n, 3, mode, prior));
    return { logits: dense(x, n, "fc3"), layers };
  }

  function right(logits, indices) {
    let sum = 0;
    indices.forEach((index, k) => {
      const row = logits.subarray(k * 10, k * 10 + 10);
      sum += row.indexOf(Math.max(...row)) === w("labels")[index];
    });
    return sum;
  }

  // What the page asks for. `run`: one batch. `survey`: batches of n over all images, in each mode,
  // from the image `from` on until 12 ms are over, so that a slider is not kept waiting.
  function answer(ask) {
    corrupt(ask.kind, ask.severity);
    if (ask.what === "run") {
      const result = forward(ask.indices, ask.mode, ask.prior);
      const shown = new Uint8Array(ask.indices.length * AREA);
      ask.indices.forEach((index, k) =>
        shown.set(pixels.subarray(index * AREA, (index + 1) * AREA), k * AREA));
      return { ...result, pixels: shown };
    }
    const begun = performance.now(), hits = MODES.map(() => 0), means = [];
    let from = ask.from;
    do {
      const indices = Array.from({ length: ask.n }, (_, i) => from + i);
      MODES.forEach((mode, m) => {
        const { logits, layers } = forward(indices, mode, ask.prior);
        hits[m] += right(logits, indices);
        if (mode === ask.mode) means.push(layers.map((layer) => layer.batch.mean));
      });
      from += ask.n;
    } while (from + ask.n <= count && performance.now() - begun < 12);
    return { hits, means, from, done: from + ask.n > count };
  }
  return { answer };
}

if (typeof WorkerGlobalScope !== "undefined") {
  let network;
  self.onmessage = ({ data }) => {
    if (data.arrays) network = makeNetwork(data.arrays, data.facts);
    else self.postMessage({ id: data.id, ...network.answer(data) });
  };
}
