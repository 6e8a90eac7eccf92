// Runs, backward: a pool's sums, then its gradients from cache.
#pragma once

#include "runs_shape.h"

namespace normkit::NORMKIT_BUILD {

template <class T, nk_act act> struct RunsBackward : Runs<T> {
  using Base = Runs<T>;
  using A = typename Base::A;
  using V = typename Base::V;
  using Block = typename Base::Block;
  using Staged = typename Base::Staged;
  using Base::q, Base::threads, Base::x, Base::residual, Base::dy, Base::saved_y, Base::dx,
        Base::dresidual, Base::groups, Base::members, Base::runs, Base::stride, Base::blocks,
        Base::pools, Base::ahead, Base::streaming, Base::saved, Base::block, Base::start,
        Base::channel, Base::index, Base::split, Base::grain, Base::staging, Base::kBlock,
        Base::kFew, Base::kTogether;
  static constexpr int64_t L = Base::L;

  Activation<act, A> f;

  RunsBackward(const Problem& q, const nk_threads& threads)
      : Base(q, threads), f(q) {}

  struct Sums { double dz = 0, dzx = 0; };  // of dz and dz*(x - hi)

  // Over `rows` runs that share their coefficients.
  template <Slope way>
  Sums sums(int64_t at, int64_t rows, int64_t length, const Coefficients<A>& c) const {
    const V hi = fill(c.hi), a = fill(c.a), b = fill(c.b);
    const auto g = f;
    const int64_t step = stride, next = ahead;
    // Sums of a few hundred values first, then sums of those: a long sum in float loses digits.
    constexpr int64_t few = 64 * L;
    V s[2] = {}, t[2] = {}, dz{}, dzx{};
    int64_t since = 0;
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t from = 0; from < length; from += few) {
        const int64_t o = at + r * step + from, here = smaller(few, length - from);
        const T *px = x + o, *pg = dy + o;
        const T* pr = residual ? residual + o : nullptr;
        const T* py = saved_y ? saved_y + o : nullptr;
        sweep_four<A>(here, [&](int64_t i, auto part, int slot) NORMKIT_LAMBDA {
          prefetch(px + i + next);
          prefetch(pg + i + next);
          const V d = load(px + i, part) - hi;
          const V v = keep<A>(
              back_through<way>(g, d, a, b, pg + i, pr ? pr + i : pr, py ? py + i : py, part),
              part);
          s[slot & 1] += v;
          t[slot & 1] += v * d;
        });
        since += here;
        if (since >= few) {
          dz += s[0] + s[1], dzx += t[0] + t[1];
          s[0] = s[1] = t[0] = t[1] = V{};
          since = 0;
        }
      }
    }
    dz += s[0] + s[1], dzx += t[0] + t[1];
    return {sum<A>(dz), sum<A>(dzx)};
  }

  template <Slope way>
  void gradient(int64_t at, int64_t length, const Coefficients<A>& c, const Slopes<A>& w, T* to,
                bool streaming) const {
    const V hi = fill(c.hi), a = fill(c.a), b = fill(c.b);
    const V scale = fill(w.scale), slope = fill(w.slope), offset = fill(w.offset);
    const auto g = f;
    const T *px = x + at, *pg = dy + at;
    const T* pr = residual ? residual + at : nullptr;
    const T* py = saved_y ? saved_y + at : nullptr;
    T* const tr = dresidual ? dresidual + at : nullptr;
    const int64_t head = streaming && to ? before_line(to) : 0;
    const bool computed = !q.fixed_stats;
    const bool both = streaming && to && tr && before_line(tr) == head;
    sweep_after<A>(head, length, [&](int64_t i, auto part) NORMKIT_LAMBDA {
      const V d = load(px + i, part) - hi;
      const V v = back_through<way>(g, d, a, b, pg + i, pr ? pr + i : pr, py ? py + i : py, part);
      if (tr) result(tr + i, v, part, both);
      if (to) {
        V g1 = v * scale;
        // Fixed statistics pass no gradient on; not even a zero, as zero times infinity is NaN.
        if (computed) g1 += d * slope + offset;
        result(to + i, g1, part, streaming);
      }
    });
  }

  A gamma(int64_t c) const { return q.weight ? static_cast<const A*>(q.weight)[c] : A(1); }

  Slopes<A> slopes(int64_t pool, int64_t run, double g1, double g2) const {
    return {saved, index(pool, run), gamma(channel(pool, run)), g1, g2, q};
  }

  // Sums of a block; one for each run where the runs of a pool belong to several channels.
  template <Slope way> void add(int64_t pool, int64_t i, Sums* into) const {
    const Block b = block(i);
    const int64_t step = members > 1 ? 1 : b.rows;
    for (int64_t r = b.run; r < b.run + b.rows; r += step) {
      const Coefficients<A> c = saved.of(index(pool, r), channel(pool, r), q);
      const Sums part = sums<way>(start(pool) + r * stride + b.at, step, b.length, c);
      Sums& to = into[members > 1 ? r : 0];
      to.dz += part.dz, to.dzx += part.dzx;
    }
  }
  template <Slope way> void gradient(int64_t pool, int64_t i, double g1, double g2) const {
    const Block b = block(i);
    const int64_t at = start(pool) + b.run * stride + b.at;
    // Written over dy, it is in cache already.
    const bool fresh = dx && dx != dy;
    Staged staged(dx ? dx + at : nullptr, fresh && staging(b), b.rows * b.length);
    for (int64_t r = 0; r < b.rows;) {
      const Coefficients<A> c = saved.of(index(pool, b.run + r), channel(pool, b.run + r), q);
      const Slopes<A> w = slopes(pool, b.run + r, g1, g2);
      for (const int64_t stop = members > 1 ? r + 1 : b.rows; r < stop; ++r)
        gradient<way>(at + r * stride, b.length, c, w, dx ? staged.to + r * stride : nullptr,
                      fresh && streaming);
    }
  }
  // Combines the sums of a pool's channels to the pool's means.
  NORMKIT_INLINE void means(int64_t pool, Sums* of, double& g1, double& g2) const {
    g1 = g2 = 0;
    for (int64_t k = 0; k < members; ++k) {
      of[k].dzx -= static_cast<double>(saved.lo[index(pool, k)]) * of[k].dz;
      g1 += of[k].dz * gamma(channel(pool, k));
      g2 += of[k].dzx * gamma(channel(pool, k));
    }
    const double inverse = 1 / static_cast<double>(runs * q.s);
    g1 *= inverse, g2 *= inverse;
  }

  void backward() const {
    by_slope<act>(q, [&](auto way) { backward_by<decltype(way)::slope>(); });
  }

  template <Slope way> void backward_by() const {
    const bool wants = q.dweight || q.dbias || !q.fixed_stats;
    const bool maps = dx || dresidual;
    Scratch<Sums> all(pools * members);
    for (int64_t i = 0; i < pools * members; ++i) all[i] = Sums{};
    if (!wants) {
      parallel(threads, q.n * q.c, grain(q.s), [&](int64_t begin, int64_t end) {
        for (int64_t i = begin, c = begin % q.c; i < end; ++i, c = c + 1 < q.c ? c + 1 : 0)
          gradient<way>(i * q.s, q.s, saved.of(c, c, q), Slopes<A>(saved, c, gamma(c), 0, 0, q),
                        dx ? dx + i * q.s : nullptr, streaming && dx != dy);
      });
      return;
    }
    if (!split()) {
      parallel(threads, pools, grain(runs * q.s), [&](int64_t begin, int64_t end) {
        const int64_t step = blocks == 1 && runs * q.s <= kFew ? kTogether : 1;
        for (int64_t from = begin; from < end; from += step) {
          const int64_t to = smaller(end, from + step);
          double g1[kTogether], g2[kTogether];
          for (int64_t p = from; p < to; ++p)
            for (int64_t i = 0; i < blocks; ++i) add<way>(p, i, &all[p * members]);
          for (int64_t p = from; p < to; ++p)
            means(p, &all[p * members], g1[p - from], g2[p - from]);
          for (int64_t p = from; maps && p < to; ++p)
            for (int64_t i = blocks; i-- > 0;) gradient<way>(p, i, g1[p - from], g2[p - from]);
        }
      });
    } else {
      // Each block has its own sums, which are added in order.
      const int64_t each = members > 1 ? members : 1;
      Scratch<Sums> parts(pools * blocks * each);
      for (int64_t i = 0; i < pools * blocks * each; ++i) parts[i] = Sums{};
      parallel(threads, pools * blocks, grain(kBlock), [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) add<way>(i / blocks, i % blocks, &parts[i * each]);
      });
      Scratch<double> g(2 * pools);
      for (int64_t p = 0; p < pools; ++p) {
        for (int64_t i = 0; i < blocks; ++i)
          for (int64_t k = 0; k < each; ++k) {
            const Sums& part = parts[(p * blocks + i) * each + k];
            all[p * each + k].dz += part.dz, all[p * each + k].dzx += part.dzx;
          }
        means(p, &all[p * each], g[2 * p], g[2 * p + 1]);
      }
      if (maps)
        parallel(threads, pools * blocks, grain(kBlock), [&](int64_t begin, int64_t end) {
          for (int64_t i = end; i-- > begin;)
            gradient<way>(i / blocks, i % blocks, g[i / blocks * 2], g[i / blocks * 2 + 1]);
        });
    }
    for (int64_t c = 0; (q.dweight || q.dbias) && c < q.c; ++c) {
      double w = 0, b = 0;
      for (int64_t p = c / members; p < pools; p += groups) {
        const Sums& s = all[p * members + c % members];
        w += s.dzx * saved.rstd[index(p, c % members)];
        b += s.dz;
      }
      if (q.dweight) static_cast<A*>(q.dweight)[c] = static_cast<A>(w);
      if (q.dbias) static_cast<A*>(q.dbias)[c] = static_cast<A>(b);
    }
  }
};

}  // namespace normkit::NORMKIT_BUILD
