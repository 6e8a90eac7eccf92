// Contiguous memory with more than one position: a pool is made of runs of S values.
//
// Batch and ghost pools: one run in each of M samples, C*S apart. Group pools: K neighbouring runs
// of one sample. A pool is normalized while it is still in cache. Where there are too few pools for
// the threads, they share the blocks of a pool instead; the blocks and the order in which they are
// merged depend on the shape alone, so the result does too.
//
// This file has the geometry and what both passes use; runs_forward.h and runs_backward.h the rest.
#pragma once

#include "parts.h"

namespace normkit::NORMKIT_BUILD {

template <class T> struct Runs {
  using A = Acc<T>;
  using V = Vec<A>;
  static constexpr int64_t L = lanes<A>;
  static constexpr int64_t kBlock = 4096;  // values: in the first-level cache
  static constexpr int64_t kFew = 512;     // values of a small pool, at most
  static constexpr int kTogether = 16;     // small pools processed together

  const Problem& q;
  const nk_threads& threads;
  const T *x, *residual, *dy, *saved_y;
  T *y, *dx, *dresidual;
  int64_t groups, members, runs, stride, per_run, run_rows, blocks, pools, ahead;
  bool streaming;
  Saved<A> saved;

  Runs(const Problem& q, const nk_threads& threads)
      : q(q), threads(threads), x((const T*)q.x), residual((const T*)q.residual),
        dy((const T*)q.dy), saved_y((const T*)q.saved_y), y((T*)q.y), dx((T*)q.dx),
        dresidual((T*)q.dresidual), saved(nullptr, 0) {
    const bool grouped = q.pool == NK_GROUP;
    groups = grouped ? q.groups : q.c;             // pools side by side
    members = grouped ? q.c / q.groups : 1;        // channels of a pool
    const int64_t parts = grouped ? q.n : q.pool == NK_GHOST ? q.groups : 1;
    runs = grouped ? members : q.n / parts;
    stride = grouped ? q.s : q.c * q.s;
    pools = parts * groups;
    per_run = ceil_div(q.s, kBlock);               // blocks of a run, or
    run_rows = per_run > 1 ? 1 : larger(1, kBlock / q.s);  // runs of a block
    blocks = per_run > 1 ? runs * per_run : ceil_div(runs, run_rows);
    saved = Saved<A>(q.stats, !q.fixed_stats ? pools : q.c);
    // Short runs that are not aligned share too many lines with their neighbours.
    streaming = q.streaming && sizeof(T) == sizeof(A) &&
           (q.s >= 2048 || q.s * static_cast<int64_t>(sizeof(T)) % 64 == 0);
    // What to prefetch, relative to what is read now: the same place in the next pool, if it will
    // still be in cache when it is needed, else in the next run.
    ahead = runs * q.s * static_cast<int64_t>(sizeof(T)) <= (1 << 18) ? members * q.s : stride;
  }

  struct Block { int64_t run, rows, at, length; };  // rows runs from `run`, values [at, at+length)

  NORMKIT_INLINE Block block(int64_t i) const {
    if (per_run > 1) {
      const int64_t at = i % per_run * kBlock;
      return {i / per_run, 1, at, smaller(kBlock, q.s - at)};
    }
    return {i * run_rows, smaller(run_rows, runs - i * run_rows), 0, q.s};
  }
  NORMKIT_INLINE int64_t start(int64_t pool) const {
    if (q.pool == NK_GROUP) return pool * members * q.s;
    return pool / groups * runs * stride + pool % groups * q.s;
  }
  NORMKIT_INLINE int64_t channel(int64_t pool, int64_t run) const {
    return q.pool == NK_GROUP ? pool % groups * members + run : pool % groups;
  }
  // Where a pool's statistics are.
  NORMKIT_INLINE int64_t index(int64_t pool, int64_t run) const {
    return !q.fixed_stats ? pool : channel(pool, run);
  }
  // Whether threads share blocks rather than pools.
  bool split() const {
    return threads.count > 1 && pools % threads.count != 0 && pools < 8 * threads.count &&
           pools * runs * q.s > kAlone;
  }
  int64_t grain(int64_t values) const { return larger(1, kAlone / larger(values, 1)); }

  // A buffer for a block of many short runs, so that streaming stores write whole lines of it.
  struct Staged {
    alignas(64) T room[kBlock + 64];
    T *to, *last;
    int64_t count;
    Staged(T* last, bool staged, int64_t count) : last(last), count(staged ? count : 0) {
      // With the same offset within a line as the destination.
      to = staged ? room + reinterpret_cast<uintptr_t>(last) % 64 / sizeof(T) : last;
    }
    ~Staged() {
      if (count)
        sweep_after<A>(before_line(last), count, [&](int64_t i, auto part) NORMKIT_LAMBDA {
          result(last + i, load(to + i, part), part, true);
        });
    }
  };
  // Whether the runs of a block are adjacent and too short to be streamed one by one.
  bool staging(const Block& b) const {
    return q.streaming && !streaming && stride == q.s && b.rows > 1 && sizeof(T) == sizeof(A);
  }
};

}  // namespace normkit::NORMKIT_BUILD
