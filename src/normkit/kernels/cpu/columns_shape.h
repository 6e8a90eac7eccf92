// Pools that are columns of a matrix with R rows; neighbouring columns may share moments.
//
// Channels last in memory, (N, C) included. Batch: one matrix of N*S rows. Ghost: one for each
// part. Group: one for each sample, K columns to a pool. And contiguous memory with few positions,
// where S columns are one channel: the matrix of N rows is cut into strips that stay in cache.
//
// The shape alone decides how the matrix is cut into blocks of rows. A block is read twice for its
// moments while it is in cache, and the blocks are merged in order. A second walk normalizes,
// backwards, since the last block is still in cache. Within a block, a panel of a few rows is walked
// tile by tile; a tile is as many vectors side by side as the registers hold. So memory is read in
// order, and a column's coefficients are loaded once per panel.
//
// With few columns vectors would be half empty, so `fold` rows are treated as one row of fold*C
// columns.
//
// This file has the geometry; columns_moments.h, columns_forward.h and columns_backward.h the rest.
#pragma once

#include "parts.h"

namespace normkit::NORMKIT_BUILD {

template <class T> struct Columns {
  using A = Acc<T>;
  using V = Vec<A>;
  static constexpr int64_t L = lanes<A>;
  static constexpr int64_t kBlock = 65536;     // values: in the second-level cache
  static constexpr int64_t kPanel = 16;        // rows
  static constexpr int64_t kChunks = 64;       // partial sums kept for a part, at most
  static constexpr int kTile = NORMKIT_WIDTH == 64 ? 4 : 2;  // vectors

  const Problem& q;
  const nk_threads& threads;
  const T *x, *residual, *dy, *saved_y;
  T *y, *dx, *dresidual;
  int64_t C;        // columns of a part
  int64_t parts, part_step;
  int64_t rows, stride;
  int64_t spread;   // columns of a channel
  int64_t K;        // channels of a part
  int64_t members;  // channels of a pool
  int64_t per_part; // channels between the starts of two parts; 0: all start at the first
  int64_t ahead;    // values between what is read now and what to prefetch
  int64_t pools, fold, width, block_rows, blocks, per_chunk, chunks;
  Saved<A> saved;

  // The widest strip of a contiguous (N, C, S) that pays, in channels; or 0.
  static int64_t strip(const Problem& q) {
    if (q.channels_last || q.s == 1 || q.s > 256 || q.n < 8) return 0;
    if (!q.fixed_stats && q.pool != NK_BATCH) return 0;
    // As wide as fits the cache with all that is read and written, but at least a few lines.
    for (int64_t k = smaller(q.c, 2048 / q.s); k > 0; --k) {
      if (q.c % k != 0) continue;
      if (k * q.s < 16 * L) break;
      if (k * q.s * q.n <= kBlock / 2 || k * q.s < 32 * L) return k;
    }
    return 0;
  }

  Columns(const Problem& q, const nk_threads& threads, int64_t channels = 0)
      : q(q), threads(threads), x((const T*)q.x), residual((const T*)q.residual),
        dy((const T*)q.dy), saved_y((const T*)q.saved_y), y((T*)q.y), dx((T*)q.dx),
        dresidual((T*)q.dresidual), saved(nullptr, 0) {
    const bool strips = channels > 0;
    spread = strips ? q.s : 1;
    C = strips ? channels * q.s : q.c;
    stride = strips ? q.c * q.s : q.c;
    parts = strips ? q.c / channels
                   : q.fixed_stats || q.pool == NK_BATCH ? 1 : q.pool == NK_GHOST ? q.groups : q.n;
    rows = strips ? q.n : q.n / parts * q.s;
    part_step = strips ? C : rows * C;
    per_part = strips ? channels : 0;
    K = C / spread;
    members = !q.fixed_stats && q.pool == NK_GROUP ? K / q.groups : 1;
    pools = parts * (K / members);
    // Rows that lie apart cannot be folded.
    fold = 1;
    while (stride == C && fold < kTile * L && (fold * C % L != 0 || fold * C < kTile * L) &&
           C < 8 * L)
      ++fold;
    if (fold * C % L != 0 || fold > rows) fold = 1;
    width = fold * C;
    ahead = strips ? C : kPanel * fold * stride;
    // Enough blocks for several threads, where threads pay and the parts are too few.
    const int64_t all = rows * C;
    const int64_t values = strips || all <= kAlone
                               ? smaller(kBlock, all)
                               : smaller(kBlock, larger(kBlock / 4, all / 16));
    block_rows = larger(fold, values / C / fold * fold);
    blocks = ceil_div(rows, block_rows);
    per_chunk = ceil_div(blocks, kChunks);
    chunks = ceil_div(blocks, per_chunk);
    saved = Saved<A>(q.stats, !q.fixed_stats ? pools : q.c);
  }

  NORMKIT_INLINE int64_t in_block(int64_t i) const {
    return smaller(block_rows, rows - i * block_rows);
  }
  NORMKIT_INLINE int64_t start(int64_t part, int64_t i) const {
    return part * part_step + i * block_rows * stride;
  }
  NORMKIT_INLINE int64_t channel(int64_t part, int64_t k) const { return part * per_part + k; }
  // Where a channel's statistics are.
  NORMKIT_INLINE int64_t index(int64_t part, int64_t k) const {
    if (q.fixed_stats) return channel(part, k);
    return part * (K / members) + (members == 1 ? k : k / members);
  }
  int64_t grain(int64_t values) const { return larger(1, kAlone / larger(values, 1)); }

  // Whether each thread takes whole parts: there are enough of them, or there is one thread.
  bool one_part_per_thread() const {
    if (threads.count == 1 || q.n * q.c * q.s <= kAlone) return true;
    return parts >= threads.count && (parts % threads.count == 0 || parts >= 8 * threads.count);
  }

  // ---- a walk over `count` rows: each(at, rows, column, size, vectors) for every tile ----

  template <class Each>
  NORMKIT_INLINE void panels(int64_t at, int64_t count, const Each& each) const {
    const int64_t whole = count / fold;
    for (int64_t r = 0; r < whole; r += kPanel)
      tiles(at + r * fold * stride, smaller(kPanel, whole - r), width, each);
    // The rest of the folded rows is one short row.
    if (const int64_t rest = count % fold * C) tiles(at + whole * width, 1, rest, each);
  }
  template <class Each>
  NORMKIT_INLINE void tiles(int64_t at, int64_t count, int64_t length, const Each& each) const {
    int64_t c = 0;
    for (; c + kTile * L <= length; c += kTile * L) each(at + c, count, c, Whole{}, Count<kTile>{});
    for (; c + L <= length; c += L) each(at + c, count, c, Whole{}, Count<1>{});
    if (c < length) each(at + c, count, c, Part{length - c}, Count<1>{});
  }

  // ---- sums of a block ----

  // Sums of a few rows first, then sums of those: a long sum in float loses digits.
  template <class Size> static NORMKIT_INLINE void add(A* to, V v, Size part) {
    store(to, load(to, part) + v, part);
  }

  // Room for the sums of a block: of its columns, then of its channels.
  struct Room {
    Scratch<A> all;
    Scratch<double> sums;
    A *mean, *first, *second;
    double *one, *two;
    Room(int64_t width, int64_t channels)
        : all(3 * width), sums(2 * channels), mean(all.data), first(mean + width),
          second(first + width), one(sums.data), two(one + channels) {}
  };
  static void clear(A* p, int64_t count) {
    for (int64_t i = 0; i < count; ++i) p[i] = 0;
  }
  // Adds up columns to the sums of channels.
  void condense(A* wide, double* to) const {
    for (int64_t j = C; j < width; j += C)
      for (int64_t c = 0; c < C; ++c) wide[c] += wide[j + c];
    if (spread == 1) {
      for (int64_t c = 0; c < C; ++c) to[c] = wide[c];
      return;
    }
    for (int64_t k = 0; k < K; ++k) {
      V s[4] = {};
      const A* const from = wide + k * spread;
      sweep_four<A>(spread, [&](int64_t i, auto part, int slot) NORMKIT_LAMBDA {
        s[slot] += load(from + i, part);
      });
      to[k] = sum<A>(s);
    }
  }
  // Copies the first C columns to the folded ones.
  void fold_out(A* narrow) const {
    for (int64_t c = C; c < width; ++c) narrow[c] = narrow[c - C];
  }
  NORMKIT_INLINE void spread_out(A* columns, int64_t k, A value) const {
    A* const to = columns + k * spread;
    for (int64_t j = 0; j < spread; ++j) to[j] = value;
  }

  // ---- what a column is normalized with, folded: vectors of coefficients ----

  struct Table {
    Scratch<A> all;
    A *hi, *a, *b, *scale, *slope, *offset;
    explicit Table(int64_t width)
        : all(6 * width), hi(all.data), a(hi + width), b(a + width), scale(b + width),
          slope(scale + width), offset(slope + width) {}
  };
  void coefficients(int64_t part, const Table& t) const {
    for (int64_t k = 0; k < K; ++k) {
      const Coefficients<A> values = saved.of(index(part, k), channel(part, k), q);
      spread_out(t.hi, k, values.hi), spread_out(t.a, k, values.a), spread_out(t.b, k, values.b);
    }
    fold_out(t.hi), fold_out(t.a), fold_out(t.b);
  }
  NORMKIT_INLINE A gamma(int64_t channel) const {
    return q.weight ? static_cast<const A*>(q.weight)[channel] : A(1);
  }
};

}  // namespace normkit::NORMKIT_BUILD
