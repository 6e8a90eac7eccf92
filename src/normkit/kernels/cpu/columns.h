// Pools that are columns of a matrix: R rows, each column with moments of its own or sharing them
// with its neighbours.
//
// Channels last in memory, (N, C) included. Batch: one matrix of N*S rows. Ghost: one for each
// part. Group: one for each sample, K columns to a pool. And contiguous memory with few positions,
// where S columns are one channel: the matrix of N rows is cut into strips that stay in cache.
//
// The matrix is cut into blocks of rows by its shape alone; a block is visited twice for its
// moments while it is in cache, the blocks are merged in order, and a second walk over the matrix,
// backwards, since what came last is still in cache, normalizes. Within a block a panel of a few
// rows is walked tile by tile, a tile being as many vectors side by side as there are registers
// for, so that memory is read in its order and what a column needs is loaded once a panel.
//
// Few columns would leave vectors half empty, so `fold` rows are seen as one row of fold*C columns.
#pragma once

#include "parts.h"

namespace normkit::NORMKIT_BUILD {

template <class T, Act act> struct Columns {
  using A = Acc<T>;
  using V = Vec<A>;
  static constexpr int64_t L = lanes<A>;
  static constexpr int64_t kBlock = 65536;     // values: in the second-level cache
  static constexpr int64_t kPanel = 16;        // rows
  static constexpr int64_t kChunks = 64;       // partial sums kept for a part, at most
  static constexpr int kTile = NORMKIT_WIDTH == 64 ? 4 : 2;  // vectors

  const Problem& q;
  const Threads& threads;
  const T *x, *residual, *dy, *saved_y;
  T *y, *dx, *dresidual;
  int64_t C;        // columns of a part
  int64_t parts, part_step;
  int64_t rows, stride;
  int64_t spread;   // columns of a channel
  int64_t K;        // channels of a part
  int64_t members;  // channels of a pool
  int64_t per_part; // channels that a part begins after the one before; 0: all begin at the first
  int64_t ahead;    // values between what is read now and what is wanted next
  int64_t pools, fold, width, block_rows, blocks, per_chunk, chunks;
  Saved<A> saved;
  Activation<act, A> f;

  // The widest strip of a contiguous (N, C, S) that pays, in channels; or 0.
  static int64_t strip(const Problem& q) {
    if (q.last || q.s == 1 || q.s > 256 || q.n < 8 || (q.own && q.over != Over::batch)) return 0;
    // As wide as stays in cache with all that is read and written; but not below a few lines.
    for (int64_t k = smaller(q.c, 2048 / q.s); k > 0; --k) {
      if (q.c % k != 0) continue;
      if (k * q.s < 16 * L) break;
      if (k * q.s * q.n <= kBlock / 2 || k * q.s < 32 * L) return k;
    }
    return 0;
  }

  Columns(const Problem& q, const Threads& threads, int64_t channels = 0)
      : q(q), threads(threads), x((const T*)q.x), residual((const T*)q.residual),
        dy((const T*)q.dy), saved_y((const T*)q.saved_y), y((T*)q.y), dx((T*)q.dx),
        dresidual((T*)q.dresidual), saved(nullptr, 0), f(q.slope) {
    const bool strips = channels > 0;
    spread = strips ? q.s : 1;
    C = strips ? channels * q.s : q.c;
    stride = strips ? q.c * q.s : q.c;
    parts = strips ? q.c / channels
                   : !q.own || q.over == Over::batch ? 1 : q.over == Over::ghost ? q.groups : q.n;
    rows = strips ? q.n : q.n / parts * q.s;
    part_step = strips ? C : rows * C;
    per_part = strips ? channels : 0;
    K = C / spread;
    members = q.own && q.over == Over::group ? K / q.groups : 1;
    pools = parts * (K / members);
    // Rows that lie apart cannot be folded.
    fold = 1;
    while (stride == C && fold < kTile * L && (fold * C % L != 0 || fold * C < kTile * L) &&
           C < 8 * L)
      ++fold;
    if (fold * C % L != 0 || fold > rows) fold = 1;
    width = fold * C;
    ahead = strips ? C : kPanel * fold * stride;
    // Blocks enough for several threads, where those pay and there are not parts enough.
    const int64_t all = rows * C;
    const int64_t values = strips || all <= kAlone
                               ? smaller(kBlock, all)
                               : smaller(kBlock, larger(kBlock / 4, all / 16));
    block_rows = larger(fold, values / C / fold * fold);
    blocks = ceil_div(rows, block_rows);
    per_chunk = ceil_div(blocks, kChunks);
    chunks = ceil_div(blocks, per_chunk);
    saved = Saved<A>(q.stats, q.own ? pools : q.c);
  }

  NORMKIT_INLINE int64_t in_block(int64_t i) const {
    return smaller(block_rows, rows - i * block_rows);
  }
  NORMKIT_INLINE int64_t start(int64_t part, int64_t i) const {
    return part * part_step + i * block_rows * stride;
  }
  NORMKIT_INLINE int64_t channel(int64_t part, int64_t k) const { return part * per_part + k; }
  // Of the numbers that a channel is normalized with.
  NORMKIT_INLINE int64_t index(int64_t part, int64_t k) const {
    return q.own ? part * (K / members) + (members == 1 ? k : k / members) : channel(part, k);
  }
  int64_t grain(int64_t values) const { return larger(1, kAlone / larger(values, 1)); }

  // ---- a walk over `count` rows: each(at, rows, column, size, vectors) for every tile ----

  template <class Each>
  NORMKIT_INLINE void panels(int64_t at, int64_t count, const Each& each) const {
    const int64_t whole = count / fold;
    for (int64_t r = 0; r < whole; r += kPanel)
      tiles(at + r * fold * stride, smaller(kPanel, whole - r), width, each);
    // What is left over of folded rows is one short row.
    if (const int64_t rest = count % fold * C) tiles(at + whole * width, 1, rest, each);
  }
  template <class Each>
  NORMKIT_INLINE void tiles(int64_t at, int64_t count, int64_t length, const Each& each) const {
    int64_t c = 0;
    for (; c + kTile * L <= length; c += kTile * L) each(at + c, count, c, Whole{}, Count<kTile>{});
    for (; c + L <= length; c += L) each(at + c, count, c, Whole{}, Count<1>{});
    if (c < length) each(at + c, count, c, Part{length - c}, Count<1>{});
  }

  // ---- moments ----

  // Sums of a few rows first, then sums of those: a long sum in float loses digits.
  template <class Size> static NORMKIT_INLINE void add(A* to, V v, Size part) { store(to, load(to, part) + v, part); }

  void sum_rows(int64_t at, int64_t count, A* sums) const {
    const T* const from = x;
    const int64_t step = fold * stride, ahead = this->ahead;
    panels(at, count, [&](int64_t i, int64_t n, int64_t c, auto part, auto vectors)
                          __attribute__((always_inline)) {
      constexpr int N = decltype(vectors)::value;
      V s[N] = {};
      for (int64_t r = 0; r < n; ++r) {
        const T* const p = from + i + r * step;
#pragma GCC unroll 4
        for (int j = 0; j < N; ++j) {
          soon(p + ahead + j * L);
          s[j] += load(p + j * L, part);
        }
      }
#pragma GCC unroll 4
      for (int j = 0; j < N; ++j) add(sums + c + j * L, s[j], part);
    });
  }
  void deviations(int64_t at, int64_t count, const A* mean, A* sums, A* squares) const {
    const T* const from = x;
    const int64_t step = fold * stride;
    panels(at, count, [&](int64_t i, int64_t n, int64_t c, auto part, auto vectors)
                          __attribute__((always_inline)) {
      constexpr int N = decltype(vectors)::value;
      V m[N], d[N] = {}, dd[N] = {};
#pragma GCC unroll 4
      for (int j = 0; j < N; ++j) m[j] = load(mean + c + j * L, part);
      for (int64_t r = 0; r < n; ++r) {
        const T* const p = from + i + r * step;
#pragma GCC unroll 4
        for (int j = 0; j < N; ++j) {
          const V v = load(p + j * L, part) - m[j];
          d[j] += v, dd[j] += v * v;
        }
      }
#pragma GCC unroll 4
      for (int j = 0; j < N; ++j)
        add(sums + c + j * L, d[j], part), add(squares + c + j * L, dd[j], part);
    });
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
  // From columns to the sums of channels.
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
      sweep_four<A>(spread, [&](int64_t i, auto part, int slot) __attribute__((always_inline)) {
        s[slot] += load(from + i, part);
      });
      to[k] = sum<A>(s);
    }
  }
  // From the first columns to all that stand for the same.
  void fold_out(A* narrow) const {
    for (int64_t c = C; c < width; ++c) narrow[c] = narrow[c - C];
  }
  NORMKIT_INLINE void spread_out(A* columns, int64_t k, A value) const {
    A* const to = columns + k * spread;
    for (int64_t j = 0; j < spread; ++j) to[j] = value;
  }

  // Adds a block to the moments of `before` rows: means and squared deviations, K each.
  void moments(int64_t at, int64_t count, int64_t before, const Room& room, double* mean,
               double* m2) const {
    const double n = static_cast<double>(count * spread);
    clear(room.mean, 3 * width);
    if (q.centred) {
      sum_rows(at, count, room.mean);
      condense(room.mean, room.one);
      if (spread == 1)
        for (int64_t k = 0; k < K; ++k) room.mean[k] = static_cast<A>(room.one[k] / n);
      else
        for (int64_t k = 0; k < K; ++k)
          spread_out(room.mean, k, static_cast<A>(room.one[k] / n));
      fold_out(room.mean);
    }
    deviations(at, count, room.mean, room.first, room.second);
    condense(room.first, room.one);
    condense(room.second, room.two);
    const double inverse = q.centred ? 1 / n : 0, so_far = static_cast<double>(before * spread);
    const double share = n / (n + so_far), both = share * so_far;
    const double *d = room.one, *dd = room.two;
    for (int64_t k = 0; k < K; ++k) {
      const double left = d[k] * inverse, rest = dd[k] - left * d[k];
      const double middle = room.mean[k * spread] + left, within = rest < 0 ? 0 : rest;
      const double further = before ? middle - mean[k] : 0;
      mean[k] = before ? mean[k] + further * share : middle;
      m2[k] = before ? m2[k] + within + further * further * both : within;
    }
  }
  int64_t rows_before(int64_t chunk) const { return smaller(rows, chunk * per_chunk * block_rows); }
  void chunk_moments(int64_t part, int64_t chunk, const Room& room, double* found) const {
    const int64_t first = chunk * per_chunk, last = smaller(blocks, first + per_chunk);
    for (int64_t i = first; i < last; ++i)
      moments(start(part, i), in_block(i), (i - first) * block_rows, room, found, found + K);
  }

  // From the chunks' channels to what is saved for the pools of a part. found: (chunks, 2, K).
  void finish(int64_t part, double* found) const {
    double *mean = found, *m2 = found + K;
    for (int64_t i = 1; i < chunks; ++i) {
      const double n = static_cast<double>(rows_before(i) * spread);
      const double more = static_cast<double>(rows_before(i + 1) * spread) - n;
      const double share = more / (n + more), both = n * share;
      const double *mu = found + 2 * K * i, *m = mu + K;
      for (int64_t k = 0; k < K; ++k) {
        const double d = mu[k] - mean[k];
        mean[k] += d * share;
        m2[k] += m[k] + d * d * both;
      }
    }
    const double n = static_cast<double>(rows * spread);
    for (int64_t k = 0; k < K;) {
      const int64_t to = index(part, k);
      Moments m;
      for (const int64_t stop = k + members; k < stop; ++k) m.merge(n, mean[k], m2[k]);
      saved.put(to, m, q);
    }
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
      const Coefficients<A> found = saved.of(index(part, k), channel(part, k), q);
      spread_out(t.hi, k, found.hi), spread_out(t.a, k, found.a), spread_out(t.b, k, found.b);
    }
    fold_out(t.hi), fold_out(t.a), fold_out(t.b);
  }
  NORMKIT_INLINE A gamma(int64_t channel) const {
    return q.weight ? static_cast<const A*>(q.weight)[channel] : A(1);
  }

  void normalize(int64_t at, int64_t count, const Table& t) const {
    const T *const from = x, *const more = residual;
    T* const to = y;
    const auto g = f;
    const int64_t step = fold * stride;
    const bool past = q.past && on_line(to + at, step);
    panels(at, count, [&](int64_t i, int64_t n, int64_t c, auto part, auto vectors)
                          __attribute__((always_inline)) {
      constexpr int N = decltype(vectors)::value;
      V hi[N], a[N], b[N];
#pragma GCC unroll 4
      for (int j = 0; j < N; ++j) {
        hi[j] = load(t.hi + c + j * L, part), a[j] = load(t.a + c + j * L, part);
        b[j] = load(t.b + c + j * L, part);
      }
      for (int64_t r = 0; r < n; ++r) {
        const int64_t o = i + r * step;
#pragma GCC unroll 4
        for (int j = 0; j < N; ++j) {
          V z = (load(from + o + j * L, part) - hi[j]) * a[j] + b[j];
          if (more) z += load(more + o + j * L, part);
          result(to + o + j * L, g(z), part, past);
        }
      }
    });
  }

  // One part at a time in one thread, where there are parts enough or nothing to share.
  bool apart() const {
    if (threads.count == 1 || q.n * q.c * q.s <= kAlone) return true;
    return parts >= threads.count && (parts % threads.count == 0 || parts >= 8 * threads.count);
  }

  void forward() const {
    if (!q.own) {
      normalize_all();
    } else if (apart()) {
      parallel(threads, parts, grain(rows * C), [&](int64_t begin, int64_t end) {
        const Scratch<double> found(chunks * 2 * K);
        const Room room(width, K);
        const Table t(width);
        for (int64_t p = begin; p < end; ++p) {
          for (int64_t i = 0; i < chunks; ++i) chunk_moments(p, i, room, &found[2 * K * i]);
          finish(p, found.data);
          if (y == nullptr) continue;
          coefficients(p, t);
          for (int64_t i = blocks; i-- > 0;) normalize(start(p, i), in_block(i), t);
        }
      });
    } else {
      const Scratch<double> found(parts * chunks * 2 * K);
      parallel(threads, parts * chunks, grain(per_chunk * block_rows * C),
               [&](int64_t begin, int64_t end) {
        const Room room(width, K);
        for (int64_t i = begin; i < end; ++i)
          chunk_moments(i / chunks, i % chunks, room, &found[2 * K * i]);
      });
      for (int64_t p = 0; p < parts; ++p) finish(p, &found[p * chunks * 2 * K]);
      if (y != nullptr) normalize_all();
    }
  }
  void normalize_all() const {
    parallel(threads, parts * blocks, grain(block_rows * C), [&](int64_t begin, int64_t end) {
      const Table t(width);
      int64_t of = -1;
      for (int64_t i = end; i-- > begin;) {
        if (i / blocks != of) coefficients(of = i / blocks, t);
        normalize(start(of, i % blocks), in_block(i % blocks), t);
      }
    });
  }

  // ---- backward ----

  // Sums of dz and dz*(x - hi) of each column of a block.
  template <Slope way>
  void sums(int64_t at, int64_t count, const Table& t, A* dz, A* dzx) const {
    const T *const px = x, *const pg = dy, *const pr = residual, *const py = saved_y;
    const auto g = f;
    const int64_t step = fold * stride, ahead = this->ahead;
    panels(at, count, [&](int64_t i, int64_t n, int64_t c, auto part, auto vectors)
                          __attribute__((always_inline)) {
      constexpr int N = decltype(vectors)::value;
      V hi[N], a[N], b[N], s[N] = {}, u[N] = {};
#pragma GCC unroll 4
      for (int j = 0; j < N; ++j) {
        hi[j] = load(t.hi + c + j * L, part), a[j] = load(t.a + c + j * L, part);
        b[j] = load(t.b + c + j * L, part);
      }
      for (int64_t r = 0; r < n; ++r) {
        const int64_t o = i + r * step;
#pragma GCC unroll 4
        for (int j = 0; j < N; ++j) {
          const int64_t k = o + j * L;
          soon(px + k + ahead);
          soon(pg + k + ahead);
          const V d = load(px + k, part) - hi[j];
          const V v = keep<A>(back_through<way>(g, d, a[j], b[j], pg + k, pr ? pr + k : pr,
                                                py ? py + k : py, part), part);
          s[j] += v, u[j] += v * d;
        }
      }
#pragma GCC unroll 4
      for (int j = 0; j < N; ++j)
        add(dz + c + j * L, s[j], part), add(dzx + c + j * L, u[j], part);
    });
  }
  template <Slope way>
  void chunk_sums(int64_t part, int64_t chunk, const Table& t, const Room& room,
                  double* found) const {
    for (int64_t k = 0; k < 2 * K; ++k) found[k] = 0;
    const int64_t first = chunk * per_chunk, last = smaller(blocks, first + per_chunk);
    for (int64_t i = first; i < last; ++i) {
      clear(room.first, 2 * width);
      sums<way>(start(part, i), in_block(i), t, room.first, room.second);
      condense(room.first, room.one);
      condense(room.second, room.two);
      for (int64_t k = 0; k < 2 * K; ++k) found[k] += room.one[k];
    }
  }

  // Adds the chunks of a part into the first, and takes the mean out.
  void gather(int64_t part, double* found) const {
    for (int64_t i = 1; i < chunks; ++i)
      for (int64_t k = 0; k < 2 * K; ++k) found[k] += found[2 * K * i + k];
    for (int64_t k = 0; k < K; ++k)
      found[K + k] -= static_cast<double>(saved.lo[index(part, k)]) * found[k];
  }
  void slopes(int64_t part, const double* dz, const Table& t) const {
    const double *dzx = dz + K, n = static_cast<double>(rows * spread * members);
    for (int64_t from = 0; from < K; from += members) {
      double g1 = 0, g2 = 0;
      for (int64_t k = from; q.own && k < from + members; ++k) {
        const double w = gamma(channel(part, k));
        g1 += dz[k] * w, g2 += dzx[k] * w;
      }
      for (int64_t k = from; k < from + members; ++k) {
        const Slopes<A> w(saved, index(part, k), gamma(channel(part, k)), g1 / n, g2 / n, q);
        spread_out(t.scale, k, w.scale), spread_out(t.slope, k, w.slope);
        spread_out(t.offset, k, w.offset);
      }
    }
    fold_out(t.scale), fold_out(t.slope), fold_out(t.offset);
  }

  template <Slope way> void gradient(int64_t at, int64_t count, const Table& t) const {
    const T *const px = x, *const pg = dy, *const pr = residual, *const py = saved_y;
    T *const to = dx, *const tr = dresidual;
    const auto g = f;
    const int64_t step = fold * stride;
    const bool own = q.own, past = q.past && to && to != pg && on_line(to + at, step);
    const bool both = past && tr && on_line(tr + at, step);
    panels(at, count, [&](int64_t i, int64_t n, int64_t c, auto part, auto vectors)
                          __attribute__((always_inline)) {
      constexpr int N = decltype(vectors)::value;
      V hi[N], a[N], b[N], scale[N], slope[N], offset[N];
#pragma GCC unroll 4
      for (int j = 0; j < N; ++j) {
        hi[j] = load(t.hi + c + j * L, part), a[j] = load(t.a + c + j * L, part);
        b[j] = load(t.b + c + j * L, part), scale[j] = load(t.scale + c + j * L, part);
        slope[j] = load(t.slope + c + j * L, part), offset[j] = load(t.offset + c + j * L, part);
      }
      for (int64_t r = 0; r < n; ++r) {
        const int64_t o = i + r * step;
#pragma GCC unroll 4
        for (int j = 0; j < N; ++j) {
          const int64_t k = o + j * L;
          const V d = load(px + k, part) - hi[j];
          const V v = back_through<way>(g, d, a[j], b[j], pg + k, pr ? pr + k : pr,
                                        py ? py + k : py, part);
          if (tr) result(tr + k, v, part, both);
          if (to) {
            V g1 = v * scale[j];
            // Given moments pass nothing on; not even a zero, which times infinity is no number.
            if (own) g1 += d * slope[j] + offset[j];
            result(to + k, g1, part, past);
          }
        }
      }
    });
  }

  void backward() const {
    by_slope<act>(q, [&](auto way) { backward_by<decltype(way)::slope>(); });
  }

  template <Slope way> void backward_by() const {
    const bool wants = q.dweight || q.dbias || q.own, maps = dx || dresidual;
    const int64_t each = chunks * 2 * K;
    const Scratch<double> found(parts * each);
    if (!wants)
      for (int64_t i = 0; i < parts * each; ++i) found[i] = 0;
    if (wants && apart()) {
      parallel(threads, parts, grain(rows * C), [&](int64_t begin, int64_t end) {
        const Table t(width);
        const Room room(width, K);
        for (int64_t p = begin; p < end; ++p) {
          double* const mine = &found[p * each];
          coefficients(p, t);
          for (int64_t i = 0; i < chunks; ++i) chunk_sums<way>(p, i, t, room, mine + 2 * K * i);
          gather(p, mine);
          if (!maps) continue;
          slopes(p, mine, t);
          for (int64_t i = blocks; i-- > 0;) gradient<way>(start(p, i), in_block(i), t);
        }
      });
    } else {
      if (wants) {
        parallel(threads, parts * chunks, grain(per_chunk * block_rows * C),
                 [&](int64_t begin, int64_t end) {
          const Table t(width);
          const Room room(width, K);
          int64_t of = -1;
          for (int64_t i = begin; i < end; ++i) {
            if (i / chunks != of) coefficients(of = i / chunks, t);
            chunk_sums<way>(of, i % chunks, t, room, &found[2 * K * i]);
          }
        });
        for (int64_t p = 0; p < parts; ++p) gather(p, &found[p * each]);
      }
      if (maps)
        parallel(threads, parts * blocks, grain(block_rows * C), [&](int64_t begin, int64_t end) {
          const Table t(width);
          int64_t of = -1;
          for (int64_t i = end; i-- > begin;) {
            if (i / blocks != of) {
              of = i / blocks;
              coefficients(of, t);
              slopes(of, &found[of * each], t);
            }
            gradient<way>(start(of, i % blocks), in_block(i % blocks), t);
          }
        });
    }
    if (q.dweight || q.dbias) parameters(found.data, each);
  }

  // dγ and dβ from the sums of all parts.
  void parameters(const double* found, int64_t each) const {
    const Scratch<double> w(q.c), b(q.c);
    for (int64_t c = 0; c < q.c; ++c) w[c] = b[c] = 0;
    for (int64_t p = 0; p < parts; ++p) {
      const double *dz = found + p * each, *dzx = dz + K;
      for (int64_t k = 0; k < K; ++k) {
        w[channel(p, k)] += dzx[k] * saved.rstd[index(p, k)];
        b[channel(p, k)] += dz[k];
      }
    }
    for (int64_t c = 0; c < q.c; ++c) {
      if (q.dweight) static_cast<A*>(q.dweight)[c] = static_cast<A>(w[c]);
      if (q.dbias) static_cast<A*>(q.dbias)[c] = static_cast<A>(b[c]);
    }
  }
};

}  // namespace normkit::NORMKIT_BUILD
