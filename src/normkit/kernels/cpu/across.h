// LayerNorm2d in contiguous memory: every position has moments over its channels, which lie S
// apart.
//
// A tile is all channels of a few vectors of neighbouring positions, so that memory is read in
// lines and each lane is a pool of its own. It stays in cache for every later look at it.
#pragma once

#include "parts.h"

namespace normkit::NORMKIT_BUILD {

template <class T, Act act> struct Across {
  using A = Acc<T>;
  using V = Vec<A>;
  static constexpr int64_t L = lanes<A>;
  static constexpr int64_t widest = 16;  // vectors
  static constexpr int64_t cached = 1 << 17;  // bytes of a tile, in A
  // float sums run over at most this many channels and are then added in double.
  static constexpr int64_t piece = 512;
  // Vectors whose gradients of γ and β are added in A before they are added in double.
  static constexpr int64_t short_sum = 128;

  const Problem& q;
  const Threads& threads;

  int64_t width() const {  // vectors of a tile
    const int64_t fit = cached / (larger(q.c, 1) * NORMKIT_WIDTH);
    return larger(1, smaller(smaller(fit, widest), ceil_div(q.s, L)));
  }
  int64_t per_sample() const { return ceil_div(q.s, width() * L); }
  int64_t tiles() const { return q.n * per_sample(); }
  int64_t tile_size() const { return q.c * smaller(q.s, width() * L); }

  struct Tile {
    int64_t at, pool, count;  // first element, first pool, positions
  };
  Tile tile(int64_t i) const {
    const int64_t n = i / per_sample(), s = i % per_sample() * width() * L;
    return {n * q.c * q.s + s, n * q.s + s, smaller(width() * L, q.s - s)};
  }

  // f(s, part, v) for the vectors v of `count` positions s.
  template <class F> static NORMKIT_INLINE void along(int64_t count, const F& f) {
    int64_t s = 0, v = 0;
    for (; s + L <= count; s += L, ++v) f(s, Whole{}, v);
    if (s < count) f(s, Part{count - s}, v);
  }

  // Sums of many values a lane, in pieces.
  struct Sums {
    V part[widest];
    double total[widest * L];
    NORMKIT_INLINE void clear(int64_t vectors) {
      for (int64_t v = 0; v < vectors; ++v) part[v] = V{};
      for (int64_t i = 0; i < vectors * L; ++i) total[i] = 0;
    }
    NORMKIT_INLINE void flush(int64_t vectors) {
      for (int64_t v = 0; v < vectors; ++v) {
        A all[L];
        store(all, part[v]);
        for (int64_t i = 0; i < L; ++i) total[v * L + i] += all[i];
        part[v] = V{};
      }
    }
  };
  // each(channel) for all channels, with a flush of the sums after every piece.
  template <class Flush, class Each>
  NORMKIT_INLINE void pieces(const Flush& flush, const Each& each) const {
    for (int64_t c = 0; c < q.c;) {
      for (const int64_t stop = smaller(q.c, c + piece); c < stop; ++c) each(c);
      flush();
    }
  }

  // ---- forward ----

  void forward_tile(const Tile& t, const A* gamma, const A* beta) const {
    const T* x = static_cast<const T*>(q.x) + t.at;
    const T* residual = q.residual ? static_cast<const T*>(q.residual) + t.at : nullptr;
    T* y = static_cast<T*>(q.y) + t.at;
    const int64_t vectors = ceil_div(t.count, L);
    const double k = static_cast<double>(larger(q.c, 1));
    Sums first, second;
    V middle[widest];

    for (int64_t v = 0; v < vectors; ++v) middle[v] = V{};
    first.clear(vectors);
    second.clear(vectors);
    if (q.centred) {
      pieces([&] { first.flush(vectors); }, [&](int64_t c) __attribute__((always_inline)) {
        along(t.count, [&](int64_t s, auto part, int64_t v) __attribute__((always_inline)) {
          first.part[v] += load(x + c * q.s + s, part);
        });
      });
      for (int64_t v = 0; v < vectors; ++v)
        for (int64_t i = 0; i < L; ++i) middle[v][i] = static_cast<A>(first.total[v * L + i] / k);
      first.clear(vectors);
    }
    pieces([&] { first.flush(vectors), second.flush(vectors); },
           [&](int64_t c) __attribute__((always_inline)) {
      along(t.count, [&](int64_t s, auto part, int64_t v) __attribute__((always_inline)) {
        const V d = load(x + c * q.s + s, part) - middle[v];
        first.part[v] += d;
        second.part[v] += d * d;
      });
    });

    const Saved<A> saved(q.stats, q.n * q.s);
    for (int64_t s = 0; s < t.count; ++s) {
      const double rest = q.centred ? first.total[s] / k : 0;
      const double m2 = second.total[s] - rest * rest * k;
      const double mean = static_cast<double>(middle[s / L][s % L]) + rest;
      saved.put(t.pool + s, Moments{k, mean, m2 < 0 ? 0 : m2}, q);
    }
    V lo[widest], rstd[widest];
    along(t.count, [&](int64_t s, auto part, int64_t v) __attribute__((always_inline)) {
      middle[v] = load(saved.hi + t.pool + s, part);
      lo[v] = load(saved.lo + t.pool + s, part);
      rstd[v] = load(saved.rstd + t.pool + s, part);
    });

    const Activation<act, A> f(q.slope);
    for (int64_t c = 0; c < q.c; ++c) {
      const int64_t row = c * q.s;
      along(t.count, [&](int64_t s, auto part, int64_t v) __attribute__((always_inline)) {
        const V a = gamma[c] * rstd[v];
        V z = (load(x + row + s, part) - middle[v]) * a + (beta[c] - a * lo[v]);
        if (residual) z += load(residual + row + s, part);
        store(y + row + s, f(z), part);
      });
    }
  }

  void forward() {
    const Parameter<A> gamma(q.weight, q.c, 1), beta(q.bias, q.c, 0);
    if (q.s == 0) return;
    parallel(threads, tiles(), ceil_div(kAlone, larger(tile_size(), 1)),
             [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) forward_tile(tile(i), gamma.data, beta.data);
    });
  }

  // ---- backward ----

  // dw and db: sums for γ and β, a vector per channel, or null. room: for the tile.
  template <Slope slope>
  void backward_tile(const Tile& t, const A* gamma, const A* beta, A* dw, A* db, A* room) const {
    const T* x = static_cast<const T*>(q.x) + t.at;
    const T* dy = static_cast<const T*>(q.dy) + t.at;
    const T* residual = q.residual ? static_cast<const T*>(q.residual) + t.at : nullptr;
    const T* y = slope == Slope::output ? static_cast<const T*>(q.saved_y) + t.at : nullptr;
    T* dresidual = q.dresidual ? static_cast<T*>(q.dresidual) + t.at : nullptr;
    const int64_t vectors = ceil_div(t.count, L), step = vectors * L;
    const Saved<A> saved(q.stats, q.n * q.s);
    const Activation<act, A> f(q.slope);

    Sums sum_g, sum_gx;
    V hi[widest], lo[widest], rstd[widest];
    sum_g.clear(vectors);
    sum_gx.clear(vectors);
    along(t.count, [&](int64_t s, auto part, int64_t v) __attribute__((always_inline)) {
      hi[v] = load(saved.hi + t.pool + s, part);
      lo[v] = load(saved.lo + t.pool + s, part);
      rstd[v] = load(saved.rstd + t.pool + s, part);
    });

    // dz is kept for the second look, unless it lies in memory as it is.
    constexpr bool as_is = slope == Slope::none && sizeof(T) == sizeof(A);
    pieces([&] { sum_g.flush(vectors), sum_gx.flush(vectors); },
           [&](int64_t c) __attribute__((always_inline)) {
      const int64_t row = c * q.s;
      V w{}, b{};
      along(t.count, [&](int64_t s, auto part, int64_t v) __attribute__((always_inline)) {
        const V d = load(x + row + s, part) - hi[v];
        V dz = load(dy + row + s, part);
        if constexpr (slope == Slope::output) {
          dz = f.backward(dz, load(y + row + s, part));
        } else if constexpr (slope == Slope::again) {
          const V a = gamma[c] * rstd[v];
          V z = d * a + (beta[c] - a * lo[v]);
          if (residual) z += load(residual + row + s, part);
          dz = f.backward(dz, z);
        }
        dz = keep<A>(dz, part);
        if constexpr (!as_is) store(room + c * step + v * L, dz);
        if (dresidual) store(dresidual + row + s, dz, part);
        w += dz * ((d - lo[v]) * rstd[v]);
        b += dz;
        const V g = gamma[c] * dz;
        sum_g.part[v] += g;
        sum_gx.part[v] += g * d;
      });
      if (dw) store(dw + c * L, load(dw + c * L) + w);
      if (db) store(db + c * L, load(db + c * L) + b);
    });
    if (!q.dx) return;

    // A value alone is its own mean: nothing of it is left to pass a gradient on.
    const bool alone = q.centred && q.c == 1;
    V scale[widest], slope_x[widest], constant[widest];
    for (int64_t v = 0; v < vectors; ++v) {
      scale[v] = alone ? V{} : rstd[v];
      for (int64_t i = 0; i < L; ++i) {
        const double g = sum_g.total[v * L + i], n = static_cast<double>(q.c);
        const double gx = sum_gx.total[v * L + i], r = rstd[v][i], rest = lo[v][i];
        const double k1 = r * ((gx - rest * g) / n) * r * -r;
        slope_x[v][i] = alone ? 0 : static_cast<A>(k1);
        constant[v][i] = alone ? 0 : static_cast<A>((q.centred ? -r * (g / n) : 0) - rest * k1);
      }
    }
    T* dx = static_cast<T*>(q.dx) + t.at;
    for (int64_t c = 0; c < q.c; ++c) {
      const int64_t row = c * q.s;
      along(t.count, [&](int64_t s, auto part, int64_t v) __attribute__((always_inline)) {
        V dz;
        if constexpr (as_is) dz = load(dy + row + s, part);
        else dz = load(room + c * step + v * L);
        const V d = load(x + row + s, part) - hi[v];
        store(dx + row + s, gamma[c] * dz * scale[v] + (d * slope_x[v] + constant[v]), part);
      });
    }
  }

  template <Slope slope> void backward_as() {
    const Parameter<A> gamma(q.weight, q.c, 1), beta(q.bias, q.c, 0);
    const int64_t c = q.c, vectors = width();
    const bool wanted = q.dweight || q.dbias;
    Totals totals(wanted, c, q.s ? tiles() : 0, tile_size());
    parallel(threads, totals.blocks, totals.grain(), [&](int64_t begin, int64_t end) {
      const Scratch<A> room(c * vectors * L), short_sums(wanted ? 2 * c * L : 0);
      A* const dw = q.dweight ? short_sums.data : nullptr;
      A* const db = q.dbias ? short_sums.data + c * L : nullptr;
      const int64_t sums = wanted ? 2 * c : 0;
      for (int64_t block = begin; block < end; ++block) {
        double* const table = totals.of(block);
        for (int64_t i = 0; i < sums; ++i) table[i] = 0;
        const int64_t last = totals.end(block);
        for (int64_t i = totals.begin(block); i < last;) {
          for (int64_t j = 0; j < sums * L; ++j) short_sums.data[j] = 0;
          for (const int64_t stop = smaller(last, i + short_sum / vectors); i < stop; ++i)
            backward_tile<slope>(tile(i), gamma.data, beta.data, dw, db, room.data);
          for (int64_t j = 0; j < sums; ++j) table[j] += sum<A>(load(short_sums.data + j * L));
        }
      }
    });
    if (wanted) totals.template finish<A>(threads, q.dweight, q.dbias);
  }

  void backward() {
    if constexpr (act == Act::linear) {
      if (q.slope == 1) return backward_as<Slope::none>();
      if (q.saved_y) return backward_as<Slope::output>();
    }
    backward_as<Slope::again>();
  }
};

}  // namespace normkit::NORMKIT_BUILD
