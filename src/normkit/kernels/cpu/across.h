// LayerNorm2d in contiguous memory: every position has moments over its channels, which lie S
// apart.
//
// A block is all channels of a few vectors of neighbouring positions: each lane is one pool, the
// sums of a block stay in registers, and its values stay in cache for the next pass over them.
#pragma once

#include "parts.h"

namespace normkit::NORMKIT_BUILD {

template <class T, nk_act act> struct Across {
  using A = Acc<T>;
  using V = Vec<A>;
  static constexpr int64_t L = lanes<A>;
  static constexpr int kWide = NORMKIT_WIDTH == 64 ? 4 : 2;  // vectors of a block
  // float sums run over at most this many channels and are then added in double.
  static constexpr int64_t kPiece = 64;
  // Vectors whose gradients of γ and β are added in A before they are added in double.
  static constexpr int64_t kShort = 128;

  const Problem& q;
  const nk_threads& threads;

  int64_t per_sample() const { return ceil_div(q.s, kWide * L); }
  int64_t items() const { return q.n * per_sample(); }
  int64_t values() const { return q.c * smaller(q.s, kWide * L); }  // of an item

  // block(first element, first pool, size, vectors) for the blocks of an item.
  template <class Block> NORMKIT_INLINE void item(int64_t i, const Block& block) const {
    const int64_t n = i / per_sample(), from = i % per_sample() * kWide * L;
    const int64_t stop = smaller(q.s, from + kWide * L), at = n * q.c * q.s, pool = n * q.s;
    if (stop - from == kWide * L)
      return block(at + from, pool + from, Whole{}, Count<kWide>{});
    int64_t s = from;
    for (; s + L <= stop; s += L) block(at + s, pool + s, Whole{}, Count<1>{});
    if (s < stop) block(at + s, pool + s, Part{stop - s}, Count<1>{});
  }

  // A double for every position of a block.
  template <int N> struct Doubles {
    double of[N * L];
    NORMKIT_INLINE void clear() {
      for (int64_t i = 0; i < N * L; ++i) of[i] = 0;
    }
    NORMKIT_INLINE void add(V (&sums)[N]) {
      A all[N * L];
      for (int j = 0; j < N; ++j) store(all + j * L, sums[j]), sums[j] = V{};
      for (int64_t i = 0; i < N * L; ++i) of[i] += all[i];
    }
  };
  // The saved statistics of a block's positions; u = lo * rstd.
  template <int N> struct Position {
    V hi[N], rstd[N], u[N];
    template <class Size> NORMKIT_INLINE Position(const Saved<A>& saved, int64_t pool, Size part) {
      NORMKIT_UNROLL
      for (int j = 0; j < N; ++j) {
        hi[j] = load(saved.hi + pool + j * L, part);
        rstd[j] = load(saved.rstd + pool + j * L, part);
        u[j] = load(saved.lo + pool + j * L, part) * rstd[j];
      }
    }
  };

  // ---- forward ----

  // Sums of x - middle and of its square.
  template <int N, class Size>
  void deviations(const T* x, Size part, const V (&middle)[N], Doubles<N>& first,
                  Doubles<N>& second) const {
    const int64_t channels = q.c, step = q.s;
    first.clear(), second.clear();
    for (int64_t c = 0; c < channels;) {
      V d[N] = {}, dd[N] = {};
      for (const int64_t stop = smaller(channels, c + kPiece); c < stop; ++c) {
        const T* const row = x + c * step;
        NORMKIT_UNROLL
        for (int j = 0; j < N; ++j) {
          prefetch(row + (N + j) * L);
          const V v = load(row + j * L, part) - middle[j];
          d[j] += v, dd[j] += v * v;
        }
      }
      first.add(d), second.add(dd);
    }
  }
  // Whether a large part of the sum of squares is the square of a sum, so that they cancel.
  template <int N> bool apart_from_mean(const Doubles<N>& first, const Doubles<N>& second) const {
    int far = 0;
    for (int64_t i = 0; i < N * L; ++i)
      far |= 4 * first.of[i] * first.of[i] > second.of[i] * static_cast<double>(q.c);
    return far != 0;
  }

  template <int N, class Size>
  void forward_block(int64_t at, int64_t pool, Size part, const A* gamma, const A* beta) const {
    const T* const x = static_cast<const T*>(q.x) + at;
    const T* const residual = q.residual ? static_cast<const T*>(q.residual) + at : nullptr;
    T* const y = static_cast<T*>(q.y) + at;
    const int64_t channels = q.c, step = q.s;

    // Deviations from the mean of some channels; it need only be close to the mean of all.
    V middle[N] = {};
    if (q.centred) {
      const int64_t apart = larger(1, channels / 32);
      A count = 0;
      for (int64_t c = 0; c < channels; c += apart, ++count)
        NORMKIT_UNROLL
        for (int j = 0; j < N; ++j) middle[j] += load(x + c * step + j * L, part);
      NORMKIT_UNROLL
      for (int j = 0; j < N; ++j) middle[j] /= count;
    }
    Doubles<N> first, second;
    deviations<N>(x, part, middle, first, second);
    if (q.centred && apart_from_mean(first, second)) {
      // The channels differ too much for that mean; repeat with the mean of all.
      const double inverse = 1 / static_cast<double>(channels);
      A rest[N * L];
      for (int64_t i = 0; i < N * L; ++i) rest[i] = static_cast<A>(first.of[i] * inverse);
      for (int j = 0; j < N; ++j) middle[j] += load(rest + j * L);
      deviations<N>(x, part, middle, first, second);
    }

    const Saved<A> saved(q.stats, q.n * q.s);
    {
      A near[N * L], hi[N * L], lo[N * L], rstd[N * L], var[N * L];
      for (int j = 0; j < N; ++j) store(near + j * L, middle[j]);
      const double inverse = 1 / static_cast<double>(channels), eps = q.eps;
      const double centred = q.centred ? 1 : 0;
      for (int64_t i = 0; i < N * L; ++i) {
        const double rest = first.of[i] * inverse * centred;
        const double v = (second.of[i] - rest * first.of[i]) * inverse, w = v < 0 ? 0 : v;
        const double mean = near[i] + rest;
        hi[i] = static_cast<A>(mean);
        lo[i] = static_cast<A>(mean - static_cast<double>(hi[i]));
        var[i] = static_cast<A>(w);
        rstd[i] = static_cast<A>(1.0 / __builtin_sqrt(w + eps));
      }
      for (int j = 0; j < N; ++j) {
        store(saved.hi + pool + j * L, load(hi + j * L), part);
        store(saved.lo + pool + j * L, load(lo + j * L), part);
        store(saved.rstd + pool + j * L, load(rstd + j * L), part);
        if (q.var) store(static_cast<A*>(q.var) + pool + j * L, load(var + j * L), part);
      }
    }

    const Activation<act, A> f(q);
    const Position<N> p(saved, pool, part);
    const bool streaming = q.streaming && on_line(y, step);
    for (int64_t c = 0; c < channels; ++c) {
      const int64_t row = c * step;
      const V w = fill(gamma[c]), b = fill(beta[c]);
      NORMKIT_UNROLL
      for (int j = 0; j < N; ++j) {
        V z = ((load(x + row + j * L, part) - p.hi[j]) * p.rstd[j] - p.u[j]) * w + b;
        if (residual) z += load(residual + row + j * L, part);
        result(y + row + j * L, f(z), part, streaming);
      }
    }
  }

  void forward() const {
    const Parameter<A> gamma(q.weight, q.c, 1), beta(q.bias, q.c, 0);
    parallel(threads, items(), ceil_div(kAlone, larger(values(), 1)),
             [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i)
        item(i, [&](int64_t at, int64_t pool, auto part, auto vectors) {
          forward_block<decltype(vectors)::value>(at, pool, part, gamma.data, beta.data);
        });
    });
  }

  // ---- backward ----

  // dw and db: sums for γ and β, a vector per channel, or null. room: for the block.
  template <Slope way, int N, class Size>
  void backward_block(int64_t at, int64_t pool, Size part, const A* gamma, const A* beta, A* dw,
                      A* db, A* room) const {
    const T* const x = static_cast<const T*>(q.x) + at;
    const T* const dy = static_cast<const T*>(q.dy) + at;
    const T* const residual = q.residual ? static_cast<const T*>(q.residual) + at : nullptr;
    const T* const y = way == Slope::output ? static_cast<const T*>(q.saved_y) + at : nullptr;
    T* const dresidual = q.dresidual ? static_cast<T*>(q.dresidual) + at : nullptr;
    const int64_t channels = q.c, step = q.s;
    const Activation<act, A> f(q);
    const Saved<A> saved(q.stats, q.n * q.s);
    const Position<N> p(saved, pool, part);

    // dz is stored for the second pass, unless dy is already dz.
    constexpr bool as_is = way == Slope::none && sizeof(T) == sizeof(A);
    Doubles<N> sum_g, sum_gx;  // of gamma * dz, and of that times (x - mean) / deviation
    sum_g.clear(), sum_gx.clear();
    for (int64_t c = 0; c < channels;) {
      V gs[N] = {}, gxs[N] = {};
      for (const int64_t stop = smaller(channels, c + kPiece); c < stop; ++c) {
        const int64_t row = c * step;
        const V ga = fill(gamma[c]), be = fill(beta[c]);
        V w{}, b{};
        NORMKIT_UNROLL
        for (int j = 0; j < N; ++j) {
          const int64_t i = row + j * L;
          prefetch(x + i + N * L);
          prefetch(dy + i + N * L);
          const V n = (load(x + i, part) - p.hi[j]) * p.rstd[j] - p.u[j];
          const V dz = keep<A>(
              back_through<way>(f, n, ga, be, dy + i, residual ? residual + i : nullptr,
                                y ? y + i : nullptr, part), part);
          if constexpr (!as_is) store(room + (c * N + j) * L, dz);
          if (dresidual) store(dresidual + i, dz, part);
          w += dz * n;
          b += dz;
          const V g = ga * dz;
          gs[j] += g;
          gxs[j] += g * n;
        }
        if (dw) store(dw + c * L, load(dw + c * L) + w);
        if (db) store(db + c * L, load(db + c * L) + b);
      }
      sum_g.add(gs), sum_gx.add(gxs);
    }
    if (!q.dx) return;

    // dx = rstd * (gamma * dz) - rstd * mean(g) - rstd * n * mean(g n)
    // A single value is its own mean, so its gradient is zero.
    A scale[N * L], slope[N * L], constant[N * L];
    for (int j = 0; j < N; ++j) store(scale + j * L, p.rstd[j]);
    const double alone = q.centred && channels == 1 ? 0 : 1;
    const double inverse = alone / static_cast<double>(channels), centred = q.centred ? 1 : 0;
    for (int64_t i = 0; i < N * L; ++i) {
      const double r = scale[i];
      slope[i] = static_cast<A>(-r * (sum_gx.of[i] * inverse));
      constant[i] = static_cast<A>(-r * (sum_g.of[i] * inverse) * centred);
      scale[i] = static_cast<A>(r * alone);
    }
    V k0[N], k1[N], k2[N];
    for (int j = 0; j < N; ++j)
      k0[j] = load(scale + j * L), k1[j] = load(slope + j * L), k2[j] = load(constant + j * L);
    T* const dx = static_cast<T*>(q.dx) + at;
    const bool streaming = q.streaming && dx != dy && on_line(dx, step);
    for (int64_t c = 0; c < channels; ++c) {
      const int64_t row = c * step;
      const V ga = fill(gamma[c]);
      NORMKIT_UNROLL
      for (int j = 0; j < N; ++j) {
        V dz;
        if constexpr (as_is) dz = load(dy + row + j * L, part);
        else dz = load(room + (c * N + j) * L);
        const V n = (load(x + row + j * L, part) - p.hi[j]) * p.rstd[j] - p.u[j];
        result(dx + row + j * L, (ga * dz) * k0[j] + (n * k1[j] + k2[j]), part, streaming);
      }
    }
  }

  template <Slope way> void backward_by() const {
    const Parameter<A> gamma(q.weight, q.c, 1), beta(q.bias, q.c, 0);
    const int64_t c = q.c;
    const bool wanted = q.dweight || q.dbias;
    Totals totals(wanted, c, items(), values());
    parallel(threads, totals.blocks, totals.grain(), [&](int64_t begin, int64_t end) {
      const Scratch<A> room(c * kWide * L), short_sums(wanted ? 2 * c * L : 0);
      A* const dw = q.dweight ? short_sums.data : nullptr;
      A* const db = q.dbias ? short_sums.data + c * L : nullptr;
      const int64_t sums = wanted ? 2 * c : 0;
      for (int64_t block = begin; block < end; ++block) {
        double* const table = totals.of(block);
        for (int64_t i = 0; i < sums; ++i) table[i] = 0;
        const int64_t last = totals.end(block);
        for (int64_t i = totals.begin(block); i < last;) {
          for (int64_t j = 0; j < sums * L; ++j) short_sums.data[j] = 0;
          for (const int64_t stop = smaller(last, i + kShort / kWide); i < stop; ++i)
            item(i, [&](int64_t at, int64_t pool, auto part, auto vectors) {
              backward_block<way, decltype(vectors)::value>(at, pool, part, gamma.data, beta.data,
                                                            dw, db, room.data);
            });
          for (int64_t j = 0; j < sums; ++j) table[j] += sum<A>(load(short_sums.data + j * L));
        }
      }
    });
    if (wanted) totals.template finish<A>(threads, q.dweight, q.dbias);
  }

  void backward() const {
    by_slope<act>(q, [&](auto way) { backward_by<decltype(way)::slope>(); });
  }
};

}  // namespace normkit::NORMKIT_BUILD
