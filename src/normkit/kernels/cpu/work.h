// Temporary memory, parallel loops, moments that merge, and the statistics of a pool.
#pragma once

#include <cstdint>
#include <cstdlib>

#include "activation.h"
#include "problem.h"
#include "simd.h"

namespace normkit::NORMKIT_BUILD {

NORMKIT_INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
NORMKIT_INLINE int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }
NORMKIT_INLINE int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Below this many values one thread is faster than waking the others.
constexpr int64_t kAlone = 32768;

template <class E> struct Scratch {
  E* data;
  explicit Scratch(int64_t count)
      : data(static_cast<E*>(std::aligned_alloc(
            64, (static_cast<size_t>(larger(count, 1)) * sizeof(E) + 63) / 64 * 64))) {
    if (data == nullptr) throw NoMemory{count * static_cast<int64_t>(sizeof(E))};
  }
  ~Scratch() { std::free(data); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  NORMKIT_INLINE E& operator[](int64_t i) const { return data[i]; }
};

// f(begin, end) over parts of [0, count), on several threads where that pays. No exception passes
// through the caller's loop: memory that a part lacked is reported once all parts are done.
template <class F>
void parallel(const nk_threads& threads, int64_t count, int64_t grain, const F& f) {
  if (count <= grain || threads.count <= 1) {
    if (count > 0) f(int64_t{0}, count), fence();
    return;
  }
  struct Work {
    const F& f;
    int64_t missing;
  } work{f, 0};
  const int failed = threads.run(
      count, grain,
      [](int64_t begin, int64_t end, void* context) {
        Work& work = *static_cast<Work*>(context);
        try {
          work.f(begin, end);
          fence();
        } catch (const NoMemory& e) {
          __atomic_store_n(&work.missing, e.bytes, __ATOMIC_RELAXED);
        }
      },
      &work);
  if (work.missing != 0) throw NoMemory{work.missing};
  if (failed != 0) throw ThreadsFailed{};
}

// Chan, Golub & LeVeque 1979, as in normkit/core/moments.py.
struct Moments {
  double count = 0, mean = 0, m2 = 0;
  NORMKIT_INLINE void merge(double n, double mu, double m) {
    if (n == 0) return;
    if (count == 0) {
      count = n, mean = mu, m2 = m;
      return;
    }
    const double total = count + n, d = mu - mean;
    mean += d * (n / total);
    m2 += m + d * d * (count * n / total);
    count = total;
  }
};

// Coefficients that normalize one pool, or one channel of it.
template <class A> struct Coefficients {
  A hi, a, b;  // z = (x - hi) * a + b
};

// The three numbers that are saved for a pool.
template <class A> struct Saved {
  A *hi, *lo, *rstd;
  Saved(void* stats, int64_t pools)
      : hi(static_cast<A*>(stats)), lo(hi + pools), rstd(hi + 2 * pools) {}

  NORMKIT_INLINE void put(int64_t i, const Moments& m, const Problem& q) const {
    const double mean = q.centred ? m.mean : 0, var = m.count > 0 ? m.m2 * (1 / m.count) : 0;
    hi[i] = static_cast<A>(mean);
    lo[i] = static_cast<A>(mean - static_cast<double>(hi[i]));
    rstd[i] = static_cast<A>(1.0 / __builtin_sqrt(var + q.eps));
    if (q.var != nullptr) static_cast<A*>(q.var)[i] = static_cast<A>(var);
  }
  // The same for `count` pools of equal size, at most N: all their square roots together take little
  // longer than one.
  template <int N>
  NORMKIT_INLINE void put_all(int64_t from, int64_t count, const double (&mean)[N],
                              const double (&m2)[N], double values, const Problem& q) const {
    A h[N], l[N], r[N], v[N];
    const double inverse = values > 0 ? 1 / values : 0, eps = q.eps;
    for (int i = 0; i < N; ++i) {
      const double biased = m2[i] * inverse;
      h[i] = static_cast<A>(mean[i]);
      l[i] = static_cast<A>(mean[i] - static_cast<double>(h[i]));
      v[i] = static_cast<A>(biased);
      r[i] = static_cast<A>(1.0 / __builtin_sqrt(biased + eps));
    }
    for (int64_t i = 0; i < count; ++i) {
      hi[from + i] = q.centred ? h[i] : A(0), lo[from + i] = q.centred ? l[i] : A(0);
      rstd[from + i] = r[i];
      if (q.var != nullptr) static_cast<A*>(q.var)[from + i] = v[i];
    }
  }
  NORMKIT_INLINE Coefficients<A> of(int64_t i, int64_t channel, const Problem& q) const {
    const A gamma = q.weight ? static_cast<const A*>(q.weight)[channel] : A(1);
    const A beta = q.bias ? static_cast<const A*>(q.bias)[channel] : A(0);
    const A a = rstd[i] * gamma;
    return {hi[i], a, beta - lo[i] * a};
  }
};

// dx = scale * dz + slope * (x - hi) + offset
template <class A> struct Slopes {
  A scale, slope, offset;
  // g1, g2: the pool's means of gamma*dz and gamma*dz*(x - mean).
  NORMKIT_INLINE Slopes(const Saved<A>& s, int64_t i, A gamma, double g1, double g2,
                        const Problem& q) {
    const double r = s.rstd[i];
    scale = s.rstd[i] * gamma;
    // r*g2 first: r cubed alone underflows for deviations of 1e13 and more.
    const double k = !q.fixed_stats ? (r * g2) * r * -r : 0.0;
    slope = static_cast<A>(k);
    offset = static_cast<A>((!q.fixed_stats && q.centred ? -r * g1 : 0.0) - k * s.lo[i]);
  }
};

}  // namespace normkit::NORMKIT_BUILD
