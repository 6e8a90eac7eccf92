// Runs, forward: a pool's moments, then its result from cache.
#pragma once

#include "runs_shape.h"

namespace normkit::NORMKIT_BUILD {

template <class T, nk_act act> struct RunsForward : Runs<T> {
  using Base = Runs<T>;
  using A = typename Base::A;
  using V = typename Base::V;
  using Block = typename Base::Block;
  using Staged = typename Base::Staged;
  using Base::q, Base::threads, Base::x, Base::residual, Base::y, Base::members, Base::runs,
        Base::stride, Base::blocks, Base::pools, Base::ahead, Base::streaming, Base::saved,
        Base::block, Base::start, Base::channel, Base::index, Base::split, Base::grain,
        Base::staging, Base::kBlock, Base::kFew, Base::kTogether;

  Activation<act, A> f;

  RunsForward(const Problem& q, const nk_threads& threads)
      : Base(q, threads), f(q) {}

  // ---- moments ----

  Moments moments(const T* from, const Block& b) const {
    const T* p = from + b.run * stride + b.at;
    int64_t rows = b.rows, length = b.length;
    const int64_t step = stride, next = ahead;
    if (step == length) length *= rows, rows = 1;
    const double n = static_cast<double>(rows * length), inverse = 1 / n;
    A mean = 0;
    if (q.centred) {
      V s[4] = {};
      for (int64_t r = 0; r < rows; ++r) {
        const T* row = p + r * step;
        sweep_four<A>(length, [&](int64_t i, auto part, int slot) NORMKIT_LAMBDA {
          prefetch(row + i + next);
          s[slot] += load(row + i, part);
        });
      }
      mean = static_cast<A>(sum<A>(s) * inverse);
    }
    const V m = fill(mean);
    V d[4] = {}, dd[4] = {};
    for (int64_t r = 0; r < rows; ++r) {
      const T* row = p + r * step;
      sweep_four<A>(length, [&](int64_t i, auto part, int slot) NORMKIT_LAMBDA {
        const V v = keep<A>(load(row + i, part) - m, part);
        d[slot] += v;
        dd[slot] += v * v;
      });
    }
    // Correct what rounding took from the mean; without centring there is none.
    const double sum_d = q.centred ? sum<A>(d) : 0, left = sum_d * inverse;
    const double m2 = sum<A>(dd) - left * sum_d;
    return {n, static_cast<double>(mean) + left, m2 < 0 ? 0 : m2};
  }

  // ---- results ----

  NORMKIT_INLINE void normalize(int64_t at, int64_t length, const Coefficients<A>& c, T* to,
                                bool streaming) const {
    const T* const from = x + at;
    const T* const add = residual ? residual + at : nullptr;
    const V hi = fill(c.hi), a = fill(c.a), b = fill(c.b);
    const auto g = f;
    const int64_t head = streaming ? before_line(to) : 0;
    if (add == nullptr)
      sweep_after<A>(head, length, [&](int64_t i, auto part) NORMKIT_LAMBDA {
        result(to + i, g((load(from + i, part) - hi) * a + b), part, streaming);
      });
    else
      sweep_after<A>(head, length, [&](int64_t i, auto part) NORMKIT_LAMBDA {
        const V z = (load(from + i, part) - hi) * a + b + load(add + i, part);
        result(to + i, g(z), part, streaming);
      });
  }

  void normalize(int64_t pool, const Block& b) const {
    const int64_t at = start(pool) + b.run * stride + b.at;
    Staged staged(y + at, staging(b), b.rows * b.length);
    Coefficients<A> c{};
    for (int64_t r = 0; r < b.rows; ++r) {
      if (r == 0 || members > 1) c = saved.of(index(pool, b.run + r), channel(pool, b.run + r), q);
      normalize(at + r * stride, b.length, c, staged.to + r * stride, streaming);
    }
  }

  // Small pools: their sums are independent, so the processor computes many at once.
  void forward_together(int64_t begin, int64_t end) const {
    for (int64_t p = begin; p < end; p += kTogether) {
      const int64_t count = smaller(kTogether, end - p);
      double mean[kTogether] = {}, m2[kTogether] = {};
      for (int64_t j = 0; j < count; ++j) {
        const Moments m = moments(x + start(p + j), block(0));
        mean[j] = m.mean, m2[j] = m.m2;
      }
      saved.put_all(p, count, mean, m2, static_cast<double>(runs * q.s), q);
      for (int64_t j = 0; y != nullptr && j < count; ++j) normalize(p + j, block(0));
    }
  }

  void forward() const {
    const int64_t values = runs * q.s;
    if (q.fixed_stats) {  // in the order of memory: nothing has to stay in cache
      parallel(threads, q.n * q.c, grain(q.s), [&](int64_t begin, int64_t end) {
        for (int64_t i = begin, c = begin % q.c; i < end; ++i, c = c + 1 < q.c ? c + 1 : 0)
          normalize(i * q.s, q.s, saved.of(c, c, q), y + i * q.s, streaming);
      });
    } else if (!split()) {
      parallel(threads, pools, grain(values), [&](int64_t begin, int64_t end) {
        if (blocks == 1 && values <= kFew) return forward_together(begin, end);
        for (int64_t p = begin; p < end; ++p) {
          Moments m;
          for (int64_t i = 0; i < blocks; ++i) {
            const Moments part = moments(x + start(p), block(i));
            m.merge(part.count, part.mean, part.m2);
          }
          saved.put(p, m, q);
          // Backwards: the last block is the likeliest to be in cache.
          for (int64_t i = blocks; y != nullptr && i-- > 0;) normalize(p, block(i));
        }
      });
    } else {
      Scratch<Moments> parts(pools * blocks);
      parallel(threads, pools * blocks, grain(kBlock), [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i)
          parts[i] = moments(x + start(i / blocks), block(i % blocks));
      });
      for (int64_t p = 0; p < pools; ++p) {
        Moments m;
        for (int64_t i = p * blocks; i < (p + 1) * blocks; ++i)
          m.merge(parts[i].count, parts[i].mean, parts[i].m2);
        saved.put(p, m, q);
      }
      if (y == nullptr) return;
      parallel(threads, pools * blocks, grain(kBlock), [&](int64_t begin, int64_t end) {
        for (int64_t i = end; i-- > begin;) normalize(i / blocks, block(i % blocks));
      });
    }
  }
};

}  // namespace normkit::NORMKIT_BUILD
