"use strict";
// The lab's corruptions, normkit/lab/data/corruptions.py, of 28×28 pixels from 0 to 255. In float32
// where a last bit decides which of two whole numbers a pixel becomes.
const Corrupt = (() => {
  const SIDE = 28, AREA = SIDE * SIDE, SEED = 1903;
  const f = Math.fround;

  // To the nearest, ties to even, as torch.round does; and within a byte.
  function whole(value) {
    const up = Math.round(value);
    const even = up - value === 0.5 && up % 2 ? up - 1 : up;
    return even < 0 ? 0 : even > 255 ? 255 : even;
  }

  // Mersenne twister, as torch.Generator on a CPU: 24 bits of each number make a float.
  function twister(seed) {
    const state = new Uint32Array(624);
    let at = 624;
    state[0] = seed;
    for (let i = 1; i < 624; i++) {
      const before = state[i - 1] ^ (state[i - 1] >>> 30);
      state[i] = Math.imul(1812433253, before) + i;
    }
    function refill() {
      for (let i = 0; i < 624; i++) {
        const bits = (state[i] & 0x80000000) | (state[(i + 1) % 624] & 0x7fffffff);
        state[i] = state[(i + 397) % 624] ^ (bits >>> 1) ^ (bits & 1 ? 0x9908b0df : 0);
      }
      at = 0;
    }
    return () => {
      if (at === 624) refill();
      let bits = state[at++];
      bits ^= bits >>> 11;
      bits ^= (bits << 7) & 0x9d2c5680;
      bits ^= (bits << 15) & 0xefc60000;
      bits ^= bits >>> 18;
      return (bits & 0xffffff) / 0x1000000;
    };
  }
  const rand = (count, seed) => Float32Array.from({ length: count }, twister(seed));
  // Box and Muller in blocks of 16, eight radii and eight angles, as torch.randn.
  function randn(count, seed) {
    const drawn = rand(count, seed);
    for (let block = 0; block < count; block += 16) {
      for (let i = block; i < block + 8; i++) {
        const radius = Math.sqrt(-2 * Math.log(1 - drawn[i])), angle = 2 * Math.PI * drawn[i + 8];
        drawn[i] = radius * Math.cos(angle);
        drawn[i + 8] = radius * Math.sin(angle);
      }
    }
    return drawn;
  }
  // All noise is drawn once, for all images: an image keeps its own at every strength.
  const kept = {};
  const once = (name, make) => (kept[name] ??= make());

  // Each takes all pixels, from 0 to 255, and the severity from 0 to 4, and fills `out`.
  const KINDS = {
    noise(pixels, severity, out) {
      const size = f(255 * [0.08, 0.12, 0.18, 0.26, 0.38][severity]);
      const drawn = once("noise", () => randn(pixels.length, SEED));
      for (let i = 0; i < pixels.length; i++) out[i] = whole(f(pixels[i] + f(size * drawn[i])));
    },
    blur(pixels, severity, out) {
      const deviation = [0.6, 0.9, 1.2, 1.6, 2][severity], reach = 6;
      const line = Float32Array.from({ length: 2 * reach + 1 },
        (_, i) => Math.exp(-0.5 * ((i - reach) / deviation) ** 2));
      const total = line.reduce((sum, weight) => f(sum + weight), 0);
      const across = new Float32Array(AREA);
      const inside = (i) => (i < 0 ? 0 : i >= SIDE ? SIDE - 1 : i);
      for (let from = 0; from < pixels.length; from += AREA) {
        for (let y = 0; y < SIDE; y++) for (let x = 0; x < SIDE; x++) {
          let sum = 0;
          for (let k = -reach; k <= reach; k++) {
            sum += line[k + reach] / total * pixels[from + y * SIDE + inside(x + k)];
          }
          across[y * SIDE + x] = sum;
        }
        for (let y = 0; y < SIDE; y++) for (let x = 0; x < SIDE; x++) {
          let sum = 0;
          for (let k = -reach; k <= reach; k++) {
            sum += line[k + reach] / total * across[inside(y + k) * SIDE + x];
          }
          out[from + y * SIDE + x] = whole(sum);
        }
      }
    },
    contrast(pixels, severity, out) {
      const share = f([0.4, 0.3, 0.2, 0.1, 0.05][severity]);
      for (let from = 0; from < pixels.length; from += AREA) {
        let sum = 0;
        for (let i = from; i < from + AREA; i++) sum += pixels[i];
        const mean = f(sum / AREA);
        for (let i = from; i < from + AREA; i++) {
          out[i] = whole(f(mean + f(share * f(pixels[i] - mean))));
        }
      }
    },
    fog(pixels, severity, out) {
      const light = f([0.3, 0.45, 0.6, 0.7, 0.8][severity]), step = f(-0.5 / (SIDE - 1));
      for (let y = 0; y < SIDE; y++) {
        const row = y < SIDE / 2 ? f(1 + f(step * y)) : f(0.5 - f(step * (SIDE - 1 - y)));
        const share = f(light * row), rest = f(1 - share), white = f(share * 230);
        for (let from = y * SIDE; from < pixels.length; from += AREA) {
          for (let i = from; i < from + SIDE; i++) out[i] = whole(f(f(rest * pixels[i]) + white));
        }
      }
    },
    pixelation(pixels, severity, out) {
      const small = [14, 10, 8, 6, 5][severity], scale = f(small / SIDE);
      const blocks = new Float32Array(small * small);
      const start = (i) => Math.floor(i * SIDE / small), end = (i) => Math.ceil((i + 1) * SIDE / small);
      const source = Int32Array.from({ length: SIDE },
        (_, i) => Math.min(small - 1, Math.floor(f((i + 0.5) * scale))));
      for (let from = 0; from < pixels.length; from += AREA) {
        for (let v = 0; v < small; v++) for (let u = 0; u < small; u++) {
          let sum = 0;
          for (let y = start(v); y < end(v); y++) {
            for (let x = start(u); x < end(u); x++) sum += pixels[from + y * SIDE + x];
          }
          blocks[v * small + u] = sum / ((end(v) - start(v)) * (end(u) - start(u)));
        }
        for (let y = 0; y < SIDE; y++) for (let x = 0; x < SIDE; x++) {
          out[from + y * SIDE + x] = whole(blocks[source[y] * small + source[x]]);
        }
      }
    },
    impulse(pixels, severity, out) {
      const share = [0.03, 0.06, 0.09, 0.17, 0.27][severity];
      const white = f(share / 2), black = f(1 - share / 2);
      const drawn = once("impulse", () => rand(pixels.length, SEED + 1));
      for (let i = 0; i < pixels.length; i++) {
        out[i] = drawn[i] < white ? 255 : drawn[i] > black ? 0 : pixels[i];
      }
    },
    brightness(pixels, severity, out) {
      const more = f(255 * [0.1, 0.2, 0.3, 0.4, 0.5][severity]);
      for (let i = 0; i < pixels.length; i++) out[i] = whole(f(pixels[i] + more));
    },
    inversion(pixels, severity, out) {
      const share = [0.4, 0.6, 0.75, 0.9, 1][severity];
      const rest = f(1 - share), negative = f(share);
      for (let i = 0; i < pixels.length; i++) {
        out[i] = whole(f(f(rest * pixels[i]) + f(negative * (255 - pixels[i]))));
      }
    },
  };

  // The pixels of all images under a corruption; severity 0 leaves them as they are.
  function corrupted(pixels, kind, severity) {
    if (!severity) return pixels;
    const out = new Uint8Array(pixels.length);
    KINDS[kind](pixels, severity - 1, out);
    return out;
  }
  return { kinds: Object.keys(KINDS), corrupted };
})();
