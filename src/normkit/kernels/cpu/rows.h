// Pools that are one contiguous row: LayerNorm, RMSNorm, GroupNorm of single positions, and
// LayerNorm2d where channels lie last.
//
// A row comes from memory once and stays in the nearest cache for every later look at it: the
// mean, the deviations, the result.
#pragma once

#include "parts.h"

namespace normkit::NORMKIT_BUILD {

template <class T, Act act> struct Rows {
  using A = Acc<T>;
  using V = Vec<A>;

  // float sums run over at most this many values and are then added in double.
  static constexpr int64_t piece = 4096;
  // Rows whose gradients of γ and β are added in A before they are added in double.
  static constexpr int64_t short_sum = 128;

  const Problem& q;
  const Threads& threads;

  bool by_position() const { return q.over == Over::position; }
  int64_t groups() const { return by_position() ? 1 : q.groups; }
  int64_t samples() const { return by_position() ? q.n * q.s : q.n; }
  int64_t rows() const { return samples() * groups(); }
  int64_t length() const { return q.c / groups(); }
  Activation<act, A> activation() const { return Activation<act, A>(q.slope); }

  // ---- forward ----

  // Of one piece. What the rounded mean leaves is seen in the deviations and mended.
  static NORMKIT_INLINE void add_moments(Moments& moments, const T* x, int64_t k, bool centred) {
    V first[4] = {}, second[4] = {};
    A middle = 0;
    if (centred) {
      sweep_four<A>(k, [&](int64_t i, auto part, int slot) __attribute__((always_inline)) {
        first[slot] += load(x + i, part);
      });
      middle = static_cast<A>(sum<A>(first) / static_cast<double>(k));
      for (V& v : first) v = V{};
    }
    sweep_four<A>(k, [&](int64_t i, auto part, int slot) __attribute__((always_inline)) {
      const V d = keep<A>(load(x + i, part) - middle, part);
      first[slot] += d;
      second[slot] += d * d;
    });
    const double count = static_cast<double>(k), squares = sum<A>(second);
    const double rest = centred ? sum<A>(first) / count : 0;
    const double m2 = squares - rest * rest * count;
    moments.merge(count, middle + rest, m2 < 0 ? 0 : m2);
  }

  NORMKIT_INLINE void forward_row(int64_t r, const A* gamma, const A* beta) const {
    const int64_t k = length();
    const T* x = static_cast<const T*>(q.x) + r * k;
    const T* residual = q.residual ? static_cast<const T*>(q.residual) + r * k : nullptr;
    T* y = static_cast<T*>(q.y) + r * k;

    Moments moments{};
    for (int64_t i = 0; i < k; i += piece)
      add_moments(moments, x + i, smaller(piece, k - i), q.centred);
    const Saved<A> saved(q.stats, rows());
    saved.put(r, moments, q);
    const A hi = saved.hi[r], lo = saved.lo[r], rstd = saved.rstd[r];

    const auto f = activation();
    sweep<A>(k, [&](int64_t i, auto part) __attribute__((always_inline)) {
      const V a = load(gamma + i, part) * rstd;
      V z = (load(x + i, part) - hi) * a + (load(beta + i, part) - a * lo);
      if (residual) z += load(residual + i, part);
      store(y + i, f(z), part);
    });
  }

  void forward() {
    const Parameter<A> gamma(q.weight, q.c, 1), beta(q.bias, q.c, 0);
    const int64_t k = length(), g = groups();
    parallel(threads, rows(), ceil_div(kAlone, larger(k, 1)),
             [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r) {
        const int64_t at = r % g * k;
        forward_row(r, gamma.data + at, beta.data + at);
      }
    });
  }

  // ---- backward ----

  // dw and db: sums for γ and β of this row's channels, or null. room: for k values.
  template <Slope slope>
  NORMKIT_INLINE void backward_row(int64_t r, const A* gamma, const A* beta, A* dw, A* db,
                                   A* room) const {
    const int64_t k = length(), at = r * k;
    const T* x = static_cast<const T*>(q.x) + at;
    const T* dy = static_cast<const T*>(q.dy) + at;
    const T* residual = q.residual ? static_cast<const T*>(q.residual) + at : nullptr;
    const T* y = slope == Slope::output ? static_cast<const T*>(q.saved_y) + at : nullptr;
    T* dresidual = q.dresidual ? static_cast<T*>(q.dresidual) + at : nullptr;
    const Saved<A> saved(q.stats, rows());
    const A hi = saved.hi[r], lo = saved.lo[r], rstd = saved.rstd[r];
    const auto f = activation();

    // dz is kept for the second look, unless it lies in memory as it is.
    constexpr bool as_is = slope == Slope::none && sizeof(T) == sizeof(A);
    double sum_g = 0, sum_gx = 0;
    for (int64_t from = 0; from < k; from += piece) {
      V gs{}, gxs{};
      sweep<A>(smaller(piece, k - from), [&](int64_t j, auto part)
               __attribute__((always_inline)) {
        const int64_t i = from + j;
        const V t = load(x + i, part) - hi, ga = load(gamma + i, part);
        V dz = load(dy + i, part);
        if constexpr (slope == Slope::output) {
          dz = f.backward(dz, load(y + i, part));
        } else if constexpr (slope == Slope::again) {
          const V a = ga * rstd;
          V z = t * a + (load(beta + i, part) - a * lo);
          if (residual) z += load(residual + i, part);
          dz = f.backward(dz, z);
        }
        if constexpr (!as_is) store(room + i, dz, part);
        if (dresidual) store(dresidual + i, dz, part);
        if (dw) store(dw + i, load(dw + i, part) + dz * ((t - lo) * rstd), part);
        if (db) store(db + i, load(db + i, part) + dz, part);
        const V g = keep<A>(ga * dz, part);
        gs += g;
        gxs += g * t;
      });
      sum_g += sum<A>(gs);
      sum_gx += sum<A>(gxs);
    }
    if (!q.dx) return;

    const double n = static_cast<double>(k), r64 = rstd;
    const double g2 = (sum_gx - lo * sum_g) / n, k1 = r64 * g2 * r64 * -r64;
    // A value alone is its own mean: nothing of it is left to pass a gradient on.
    const bool alone = q.centred && k == 1;
    const A scale = alone ? 0 : rstd, slope_x = alone ? 0 : static_cast<A>(k1);
    const A constant =
        alone ? 0 : static_cast<A>((q.centred ? -r64 * (sum_g / n) : 0) - lo * k1);
    T* dx = static_cast<T*>(q.dx) + at;
    sweep<A>(k, [&](int64_t i, auto part) __attribute__((always_inline)) {
      V dz;
      if constexpr (as_is) dz = load(dy + i, part);
      else dz = load(room + i, part);
      const V t = load(x + i, part) - hi;
      store(dx + i, load(gamma + i, part) * dz * scale + (t * slope_x + constant), part);
    });
  }

  template <Slope slope> void backward_as() {
    const Parameter<A> gamma(q.weight, q.c, 1), beta(q.bias, q.c, 0);
    const int64_t k = length(), g = groups(), c = q.c;
    const bool wanted = q.dweight || q.dbias;
    Totals totals(wanted, c, samples(), c);
    parallel(threads, totals.blocks, totals.grain(), [&](int64_t begin, int64_t end) {
      const Scratch<A> room(k), short_sums(wanted ? 2 * c : 0);
      A* const dw = q.dweight ? short_sums.data : nullptr;
      A* const db = q.dbias ? short_sums.data + c : nullptr;
      const int64_t sums = wanted ? 2 * c : 0;
      for (int64_t block = begin; block < end; ++block) {
        double* const table = totals.of(block);
        for (int64_t i = 0; i < sums; ++i) table[i] = 0;
        const int64_t last = totals.end(block);
        for (int64_t n = totals.begin(block); n < last;) {
          for (int64_t i = 0; i < sums; ++i) short_sums.data[i] = 0;
          for (const int64_t stop = smaller(last, n + short_sum); n < stop; ++n)
            for (int64_t j = 0; j < g; ++j)
              backward_row<slope>(n * g + j, gamma.data + j * k, beta.data + j * k,
                                  dw ? dw + j * k : nullptr, db ? db + j * k : nullptr, room.data);
          for (int64_t i = 0; i < sums; ++i) table[i] += short_sums.data[i];
        }
      }
    });
    if (wanted) totals.finish<A>(threads, q.dweight, q.dbias);
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
