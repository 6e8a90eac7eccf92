// Pools that are one contiguous row: LayerNorm, RMSNorm, GroupNorm of single positions, and
// LayerNorm2d where channels lie last.
//
// A row is read from memory once and stays in the nearest cache for every later pass over it: the
// mean, the deviations, the result. Several rows are processed together: forward, because their
// square roots are computed at once; backward, because all add to the same gradients of γ and β.
#pragma once

#include "parts.h"

namespace normkit::NORMKIT_BUILD {

template <class T, nk_act act> struct Rows {
  using A = Acc<T>;
  using V = Vec<A>;

  // float sums run over at most this many values and are then added in double.
  static constexpr int64_t kPiece = 4096;
  // Rows whose gradients of γ and β are added in A before they are added in double.
  static constexpr int64_t kShort = 128;
  static constexpr int kForward = 16;                               // rows taken together
  static constexpr int kBackward = NORMKIT_WIDTH == 64 ? 4 : 2;

  const Problem& q;
  const nk_threads& threads;

  bool by_position() const { return q.pool == NK_POSITION; }
  int64_t groups() const { return by_position() ? 1 : q.groups; }
  int64_t samples() const { return by_position() ? q.n * q.s : q.n; }
  int64_t rows() const { return samples() * groups(); }
  int64_t length() const { return q.c / groups(); }

  // ---- forward ----

  // Of one piece. The deviations correct what rounding took from the mean.
  static NORMKIT_INLINE Moments moments(const T* x, int64_t k, bool centred) {
    const double count = static_cast<double>(k), inverse = 1 / count;
    V first[4] = {}, second[4] = {};
    A middle = 0;
    if (centred) {
      sweep_four<A>(k, [&](int64_t i, auto part, int slot) NORMKIT_LAMBDA {
        first[slot] += load(x + i, part);
      });
      middle = static_cast<A>(sum<A>(first) * inverse);
      for (V& v : first) v = V{};
    }
    sweep_four<A>(k, [&](int64_t i, auto part, int slot) NORMKIT_LAMBDA {
      const V d = keep<A>(load(x + i, part) - middle, part);
      first[slot] += d;
      second[slot] += d * d;
    });
    const double left = centred ? sum<A>(first) : 0, rest = left * inverse;
    const double m2 = sum<A>(second) - rest * left;
    return {count, middle + rest, m2 < 0 ? 0 : m2};
  }

  void forward_rows(int64_t from, int64_t count, const A* gamma, const A* beta) const {
    const int64_t k = length(), g = groups();
    const T* const x = static_cast<const T*>(q.x);
    double mean[kForward] = {}, m2[kForward] = {};
    for (int64_t r = 0; r < count; ++r) {
      const T* const row = x + (from + r) * k;
      Moments all = moments(row, smaller(kPiece, k), q.centred);
      for (int64_t i = kPiece; i < k; i += kPiece) {
        const Moments more = moments(row + i, smaller(kPiece, k - i), q.centred);
        all.merge(more.count, more.mean, more.m2);
      }
      mean[r] = all.mean, m2[r] = all.m2;
    }
    const Saved<A> saved(q.stats, rows());
    saved.put_all(from, count, mean, m2, static_cast<double>(k), q);
    const Activation<act, A> f(q);
    for (int64_t r = 0; r < count; ++r) {
      const int64_t at = (from + r) * k, c = g == 1 ? 0 : (from + r) % g * k;
      const T *const px = x + at, *const pr = q.residual ? (const T*)q.residual + at : nullptr;
      T* const y = static_cast<T*>(q.y) + at;
      const A *const w = gamma + c, *const b = beta + c;
      const A rstd = saved.rstd[from + r];
      const V h = fill(saved.hi[from + r]), s = fill(rstd), o = fill(saved.lo[from + r] * rstd);
      const bool streaming = q.streaming && on_line(y, k);
      sweep<A>(k, [&](int64_t i, auto part) NORMKIT_LAMBDA {
        V z = ((load(px + i, part) - h) * s - o) * load(w + i, part) + load(b + i, part);
        if (pr) z += load(pr + i, part);
        result(y + i, f(z), part, streaming);
      });
    }
  }

  void forward() const {
    const Parameter<A> gamma(q.weight, q.c, 1), beta(q.bias, q.c, 0);
    // Rows that do not fit the nearest cache together are processed one by one.
    const int64_t together = length() <= 512 ? kForward : length() <= 2048 ? kForward / 4 : 1;
    parallel(threads, rows(), ceil_div(kAlone, larger(length(), 1)),
             [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; r += together)
        forward_rows(r, smaller(together, end - r), gamma.data, beta.data);
    });
  }

  // ---- backward ----

  // Of R rows, `apart` one after the other. dw and db: sums for γ and β of their channels, or
  // null. room: for R*k values.
  template <Slope way, int R>
  void backward_rows(int64_t from, int64_t apart, const A* gamma, const A* beta, A* dw, A* db,
                     A* room) const {
    const int64_t k = length(), at = from * k, step = apart * k;
    const T *const x = (const T*)q.x + at, *const dy = (const T*)q.dy + at;
    const T* const residual = q.residual ? (const T*)q.residual + at : nullptr;
    const T* const y = way == Slope::output ? (const T*)q.saved_y + at : nullptr;
    T* const dresidual = q.dresidual ? static_cast<T*>(q.dresidual) + at : nullptr;
    const Saved<A> saved(q.stats, rows());
    const Activation<act, A> f(q);
    V hi[R], rstd[R], u[R];
    for (int j = 0; j < R; ++j) {
      const int64_t r = from + j * apart;
      hi[j] = fill(saved.hi[r]), rstd[j] = fill(saved.rstd[r]);
      u[j] = fill(saved.lo[r] * saved.rstd[r]);
    }

    // dz is stored for the second pass, unless dy is already dz.
    constexpr bool as_is = way == Slope::none && sizeof(T) == sizeof(A);
    double sum_g[R] = {}, sum_gx[R] = {};  // of gamma * dz, and of that times (x - mean) * rstd
    for (int64_t begin = 0; begin < k; begin += kPiece) {
      V gs[R] = {}, gxs[R] = {};
      sweep<A>(smaller(kPiece, k - begin), [&](int64_t i, auto part) NORMKIT_LAMBDA {
        const int64_t c = begin + i;
        const V ga = load(gamma + c, part);
        const V be = way == Slope::again ? load(beta + c, part) : V{};
        V w{}, b{};
        NORMKIT_UNROLL
        for (int j = 0; j < R; ++j) {
          const int64_t o = j * step + c;
          const V n = (load(x + o, part) - hi[j]) * rstd[j] - u[j];
          const V dz = keep<A>(
              back_through<way>(f, n, ga, be, dy + o, residual ? residual + o : nullptr,
                                y ? y + o : nullptr, part), part);
          if constexpr (!as_is) store(room + j * k + c, dz, part);
          if (dresidual) store(dresidual + o, dz, part);
          w += dz * n;
          b += dz;
          const V g = ga * dz;
          gs[j] += g;
          gxs[j] += g * n;
        }
        if (dw) store(dw + c, load(dw + c, part) + w, part);
        if (db) store(db + c, load(db + c, part) + b, part);
      });
      for (int j = 0; j < R; ++j) sum_g[j] += sum<A>(gs[j]), sum_gx[j] += sum<A>(gxs[j]);
    }
    if (!q.dx) return;

    // dx = rstd * (gamma * dz) - rstd * mean(g) - rstd * n * mean(g n)
    // A single value is its own mean, so its gradient is zero.
    const bool alone = q.centred && k == 1;
    V scale[R], slope[R], constant[R];
    for (int j = 0; j < R; ++j) {
      const double inverse = 1 / static_cast<double>(k), r = alone ? 0 : rstd[j][0];
      scale[j] = fill(static_cast<A>(r));
      slope[j] = fill(static_cast<A>(-r * (sum_gx[j] * inverse)));
      constant[j] = fill(static_cast<A>(q.centred ? -r * (sum_g[j] * inverse) : 0));
    }
    T* const dx = static_cast<T*>(q.dx) + at;
    const bool streaming = q.streaming && dx != dy && on_line(dx, k);
    sweep<A>(k, [&](int64_t c, auto part) NORMKIT_LAMBDA {
      const V ga = load(gamma + c, part);
      NORMKIT_UNROLL
      for (int j = 0; j < R; ++j) {
        const int64_t o = j * step + c;
        V dz;
        if constexpr (as_is) dz = load(dy + o, part);
        else dz = load(room + j * k + c, part);
        const V n = (load(x + o, part) - hi[j]) * rstd[j] - u[j];
        result(dx + o, (ga * dz) * scale[j] + (n * slope[j] + constant[j]), part, streaming);
      }
    });
  }

  template <Slope way> void backward_by() const {
    const Parameter<A> gamma(q.weight, q.c, 1), beta(q.bias, q.c, 0);
    const int64_t k = length(), g = groups(), c = q.c;
    const bool wanted = q.dweight || q.dbias;
    Totals totals(wanted, c, samples(), c);
    parallel(threads, totals.blocks, totals.grain(), [&](int64_t begin, int64_t end) {
      const Scratch<A> room(kBackward * k), short_sums(wanted ? 2 * c : 0);
      A* const dw = q.dweight ? short_sums.data : nullptr;
      A* const db = q.dbias ? short_sums.data + c : nullptr;
      const int64_t sums = wanted ? 2 * c : 0;
      for (int64_t block = begin; block < end; ++block) {
        double* const table = totals.of(block);
        for (int64_t i = 0; i < sums; ++i) table[i] = 0;
        const int64_t last = totals.end(block);
        for (int64_t n = totals.begin(block); n < last;) {
          for (int64_t i = 0; i < sums; ++i) short_sums.data[i] = 0;
          const int64_t stop = smaller(last, n + kShort);
          const auto rows = [&](auto together) {
            constexpr int R = decltype(together)::value;
            for (; n + R <= stop; n += R)
              for (int64_t j = 0; j < g; ++j)
                backward_rows<way, R>(n * g + j, g, gamma.data + j * k, beta.data + j * k,
                                      dw ? dw + j * k : nullptr, db ? db + j * k : nullptr,
                                      room.data);
          };
          rows(Count<kBackward>{});
          rows(Count<1>{});
          for (int64_t i = 0; i < sums; ++i) table[i] += short_sums.data[i];
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
