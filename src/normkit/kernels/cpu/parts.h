// Shared by all walks: whole and partial vectors under one name, and the sums for γ and β.
#pragma once

#include "work.h"

namespace normkit::NORMKIT_BUILD {

// How much of a vector lies inside the data.
struct Whole {};
struct Part { int64_t count; };
// A number of vectors, as a compile-time constant.
template <int n> struct Count { static constexpr int value = n; };

template <class T> NORMKIT_INLINE Vec<Acc<T>> load(const T* p, Whole) { return load(p); }
template <class T> NORMKIT_INLINE Vec<Acc<T>> load(const T* p, Part k) { return load(p, k.count); }
template <class T> NORMKIT_INLINE void store(T* p, Vec<Acc<T>> v, Whole) { store(p, v); }
template <class T> NORMKIT_INLINE void store(T* p, Vec<Acc<T>> v, Part k) { store(p, v, k.count); }
template <class A> NORMKIT_INLINE Vec<A> keep(Vec<A> v, Whole) { return v; }
template <class A> NORMKIT_INLINE Vec<A> keep(Vec<A> v, Part k) { return keep<A>(v, k.count); }

// Stores a result, past the caches if `streaming`.
template <class T>
NORMKIT_INLINE void result(T* p, Vec<Acc<T>> v, Whole, bool streaming) {
  if (streaming) store_streaming(p, v);
  else store(p, v);
}
template <class T> NORMKIT_INLINE void result(T* p, Vec<Acc<T>> v, Part k, bool) { store(p, v, k); }

// Number of values before the first address that a streaming store can write to.
template <class T> NORMKIT_INLINE int64_t before_line(const T* p) {
  if constexpr (sizeof(T) != sizeof(Acc<T>)) return 0;  // store_streaming is an ordinary store
  const uintptr_t over = reinterpret_cast<uintptr_t>(p) % NORMKIT_WIDTH;
  return over ? static_cast<int64_t>((NORMKIT_WIDTH - over) / sizeof(T)) : 0;
}
template <class T> NORMKIT_INLINE bool on_line(const T* p, int64_t step) {
  return reinterpret_cast<uintptr_t>(p) % NORMKIT_WIDTH == 0 &&
         step * static_cast<int64_t>(sizeof(T)) % NORMKIT_WIDTH == 0;
}

// f(i, part) for the vectors that cover [0, count).
template <class A, class F> NORMKIT_INLINE void sweep(int64_t count, const F& f) {
  int64_t i = 0;
  for (; i + lanes<A> <= count; i += lanes<A>) f(i, Whole{});
  if (i < count) f(i, Part{count - i});
}

// The same, with the first `head` values as a partial vector of their own.
template <class A, class F>
NORMKIT_INLINE void sweep_after(int64_t head, int64_t count, const F& f) {
  if (head) f(0, Part{head < count ? head : count});
  int64_t i = head;
  for (; i + lanes<A> <= count; i += lanes<A>) f(i, Whole{});
  if (i < count) f(i, Part{count - i});
}

// The same for sums: f(i, part, slot), where the slot, below four, says which of several to add
// to, so that one addition need not wait for the last.
template <class A, class F> NORMKIT_INLINE void sweep_four(int64_t count, const F& f) {
  constexpr int64_t w = lanes<A>;
  int64_t i = 0;
  for (; i + 4 * w <= count; i += 4 * w) {
    f(i, Whole{}, 0);
    f(i + w, Whole{}, 1);
    f(i + 2 * w, Whole{}, 2);
    f(i + 3 * w, Whole{}, 3);
  }
  for (; i + w <= count; i += w) f(i, Whole{}, 0);
  if (i < count) f(i, Part{count - i}, 1);
}

template <class A> NORMKIT_INLINE double sum(const Vec<A> (&v)[4]) {
  return sum<A>((v[0] + v[1]) + (v[2] + v[3]));
}

// How act' is computed: not at all, from the output, or from z recomputed.
enum class Slope { none, output, again };

// act'(z) * dy of a vector, which the pointers point at. z = d * a + b + residual.
template <Slope slope, class T, nk_act act, class Size>
NORMKIT_INLINE Vec<Acc<T>> back_through(const Activation<act, Acc<T>>& f, Vec<Acc<T>> d,
                                        Vec<Acc<T>> a, Vec<Acc<T>> b, const T* dy,
                                        const T* residual, const T* saved_y, Size part) {
  const Vec<Acc<T>> g = load(dy, part);
  if constexpr (slope == Slope::none) {
    return g;
  } else if constexpr (slope == Slope::output) {
    return f.backward(g, load(saved_y, part));
  } else {
    Vec<Acc<T>> z = d * a + b;
    if (residual) z += load(residual, part);
    return f.backward(g, z);
  }
}

// run(Known<slope>) with the slope that fits the problem.
template <Slope s> struct Known { static constexpr Slope slope = s; };
template <nk_act act, class Do> NORMKIT_INLINE void by_slope(const Problem& q, const Do& run) {
  if constexpr (act == NK_LINEAR) {
    if (q.act == NK_LINEAR && q.slope == 1) return run(Known<Slope::none>{});
    if (q.saved_y) return run(Known<Slope::output>{});
  }
  run(Known<Slope::again>{});
}

// Prefetches memory; an address beyond the data does no harm.
NORMKIT_INLINE void prefetch(const void* p) { __builtin_prefetch(p, 0, 2); }

// The sums for γ and β: a (2, c) table per block of the work. Blocks follow from the shape alone
// and their tables are added in order, so the result does not depend on the number of threads.
struct Totals {
  int64_t c, pieces, piece, per, blocks;
  Scratch<double> sums;

  // For `pieces` pieces of work on `piece` values each. The number of blocks is limited so that the
  // tables take a few megabytes.
  Totals(bool wanted, int64_t c, int64_t pieces, int64_t piece)
      : c(c), pieces(pieces), piece(larger(piece, 1)),
        per(larger(ceil_div(kAlone / 2, larger(piece, 1)),
                   ceil_div(pieces, larger(4, smaller(128, (1 << 18) / larger(c, 1)))))),
        blocks(ceil_div(pieces, per)), sums(wanted ? 2 * c * blocks : 0) {}

  int64_t grain() const { return ceil_div(kAlone, per * piece); }
  int64_t begin(int64_t block) const { return block * per; }
  int64_t end(int64_t block) const { return smaller(pieces, (block + 1) * per); }
  double* of(int64_t block) { return sums.data + 2 * c * block; }

  template <class A> void finish(const nk_threads& threads, void* dweight, void* dbias) {
    A* const out[] = {static_cast<A*>(dweight), static_cast<A*>(dbias)};
    parallel(threads, c, larger(256, kAlone / larger(blocks, 1)),
             [&](int64_t begin, int64_t end) {
      constexpr int64_t width = 64;
      for (int which = 0; which < 2; ++which) {
        if (!out[which]) continue;
        for (int64_t i = begin; i < end; i += width) {
          const int64_t k = smaller(width, end - i);
          double total[width] = {};
          for (int64_t block = 0; block < blocks; ++block) {
            const double* from = of(block) + which * c + i;
            for (int64_t j = 0; j < k; ++j) total[j] += from[j];
          }
          for (int64_t j = 0; j < k; ++j) out[which][i + j] = static_cast<A>(total[j]);
        }
      }
    });
  }
};

// γ or β, or c copies of its neutral value where there is none.
template <class A> struct Parameter {
  Scratch<A> filler;
  const A* data;

  Parameter(const void* pointer, int64_t c, A value)
      : filler(pointer ? 0 : c), data(pointer ? static_cast<const A*>(pointer) : filler.data) {
    if (!pointer)
      for (int64_t i = 0; i < c; ++i) filler.data[i] = value;
  }
};

}  // namespace normkit::NORMKIT_BUILD
