// Channels last in memory, (N, C) included: a pool is made of columns of a matrix of R rows.
//
// Batch: one matrix of N*S rows. Ghost: one for each part. Group: one for each sample, K columns
// to a pool. The matrix is cut into blocks of rows by its shape alone; a block is visited twice
// for its moments while it is in cache, the blocks are merged in order, and a second walk over
// the matrix, backwards, since what came last is still in cache, normalizes.
//
// Few columns would leave vectors half empty, so `fold` rows are seen as one row of fold*C columns.
#pragma once

#include "work.h"

namespace normkit::NORMKIT_BUILD {

template <class T, Act act> struct Columns {
  using A = Acc<T>;
  using V = Vec<A>;
  static constexpr int64_t L = lanes<A>;
  static constexpr int64_t kBlock = 32768;    // values: in the second-level cache
  static constexpr int kTile = NORMKIT_WIDTH == 64 ? 4 : 2;  // vectors side by side in registers

  const Problem& q;
  const Threads& threads;
  const T *x, *residual, *dy, *saved_y;
  T *y, *dx, *dresidual;
  int64_t C, parts, rows, members, pools, fold, width, block_rows, blocks;
  Saved<A> saved;
  Activation<act, A> f;

  Columns(const Problem& q, const Threads& threads)
      : q(q), threads(threads), x((const T*)q.x), residual((const T*)q.residual),
        dy((const T*)q.dy), saved_y((const T*)q.saved_y), y((T*)q.y), dx((T*)q.dx),
        dresidual((T*)q.dresidual), C(q.c), saved(nullptr, 0) {
    parts = !q.own || q.over == Over::batch ? 1 : q.over == Over::ghost ? q.groups : q.n;
    rows = q.n / parts * q.s;
    members = q.own && q.over == Over::group ? C / q.groups : 1;
    pools = parts * (C / members);
    fold = 1;
    while (fold < L && C < 8 * L && fold * C % L != 0) ++fold;
    if (fold * C % L != 0 || fold > rows) fold = 1;
    width = fold * C;
    block_rows = larger(fold, kBlock / C / fold * fold);
    blocks = ceil_div(rows, block_rows);
    saved = Saved<A>(q.stats, q.own ? pools : C);
    f.slope = static_cast<A>(q.slope);
  }

  NORMKIT_INLINE int64_t in_block(int64_t i) const {
    return smaller(block_rows, rows - i * block_rows);
  }
  NORMKIT_INLINE int64_t start(int64_t part, int64_t i) const {
    return (part * rows + i * block_rows) * C;
  }
  NORMKIT_INLINE int64_t pool(int64_t part, int64_t c) const {
    return part * (C / members) + c / members;
  }
  int64_t grain(int64_t values) const { return larger(1, kAlone / larger(values, 1)); }

  // ---- columns of a block: `body(tile, column, k, row0, rows)` ----

  // Adds up `N` vectors of each row, for all tiles of the folded matrix; what is left over of
  // the rows is one short row. `each(at, k, state)` takes one vector into the state.
  template <int N, class State, class Each, class Done>
  NORMKIT_INLINE void tile(int64_t at, int64_t count, int64_t column, int64_t k, const Each& each,
                           const Done& done) const {
    // Sums of a few rows first, then sums of those: a long sum in float loses digits.
    State state[N]{}, total[N]{};
    const int64_t whole = count / fold, rest = count % fold * C;
    for (int j = 0; j < N; ++j) each.begin(state[j], column + j * L, k);
    for (int64_t r = 0; r < whole;) {
      for (const int64_t stop = smaller(r + 16, whole); r < stop; ++r)
        for (int j = 0; j < N; ++j) each(state[j], at + r * width + column + j * L, k);
      for (int j = 0; j < N; ++j) state[j].move_to(total[j]);
    }
    for (int j = 0; j < N; ++j)
      if (const int64_t left = rest - (column + j * L); left > 0)
        each(state[j], at + whole * width + column + j * L, left < L ? left : k);
    for (int j = 0; j < N; ++j) {
      state[j].move_to(total[j]);
      done(total[j], column + j * L, k);
    }
  }
  template <class State, class Each, class Done>
  void columns(int64_t at, int64_t count, const Each& each, const Done& done) const {
    int64_t column = 0;
    for (; column + kTile * L <= width; column += kTile * L)
      tile<kTile, State>(at, count, column, kAll, each, done);
    for (; column + L <= width; column += L) tile<1, State>(at, count, column, kAll, each, done);
    if (column < width) tile<1, State>(at, count, column, width - column, each, done);
  }

  // ---- moments ----

  struct One {
    V s;
    NORMKIT_INLINE void move_to(One& t) { t.s += s, s = V{}; }
  };
  struct Sum {
    const T* x;
    NORMKIT_INLINE void begin(One&, int64_t, int64_t) const {}
    NORMKIT_INLINE void operator()(One& o, int64_t i, int64_t k) const { o.s += get(x + i, k); }
  };
  struct Two {
    V m, d, dd;
    NORMKIT_INLINE void move_to(Two& t) { t.d += d, t.dd += dd, d = dd = V{}; }
  };
  struct Deviations {
    const T* x;
    const A* mean;
    NORMKIT_INLINE void begin(Two& o, int64_t c, int64_t k) const { o.m = get(mean + c, k); }
    NORMKIT_INLINE void operator()(Two& o, int64_t i, int64_t k) const {
      V d = get(x + i, k) - o.m;
      if (k != kAll) d = keep<A>(d, k);
      o.d += d, o.dd += d * d;
    }
  };

  // Mean and squared deviations of each column of a block, C each.
  void moments(int64_t at, int64_t count, double* mean, double* m2) const {
    Scratch<A> s(3 * width);
    A *mu = s.data, *d = mu + width, *dd = d + width;
    const double n = static_cast<double>(count);
    if (q.centred) {
      columns<One>(at, count, Sum{x}, [&](const One& o, int64_t c, int64_t k) {
        put(d + c, o.s, k);
      });
      folded(d, mean);
      for (int64_t c = 0; c < C; ++c) mu[c] = static_cast<A>(mean[c] / n);
    } else {
      for (int64_t c = 0; c < C; ++c) mu[c] = 0;
    }
    for (int64_t c = C; c < width; ++c) mu[c] = mu[c - C];
    columns<Two>(at, count, Deviations{x, mu}, [&](const Two& o, int64_t c, int64_t k) {
      put(d + c, o.d, k);
      put(dd + c, o.dd, k);
    });
    folded(d, mean);
    folded(dd, m2);
    for (int64_t c = 0; c < C; ++c) {
      const double left = q.centred ? mean[c] / n : 0, rest = m2[c] - left * left * n;
      mean[c] = static_cast<double>(mu[c]) + left;
      m2[c] = rest < 0 ? 0 : rest;
    }
  }
  void folded(const A* wide, double* to) const {
    for (int64_t c = 0; c < C; ++c) to[c] = wide[c];
    for (int64_t j = C; j < width; j += C)
      for (int64_t c = 0; c < C; ++c) to[c] += wide[j + c];
  }

  // From the blocks' columns to what is saved for the pools of a part. mean, m2: (blocks, 2, C).
  void finish(int64_t part, double* found) const {
    double *mean = found, *m2 = found + C;
    double n = static_cast<double>(in_block(0));
    for (int64_t i = 1; i < blocks; ++i) {
      const double more = static_cast<double>(in_block(i)), total = n + more;
      const double share = more / total, both = n * share;
      const double *mu = found + 2 * C * i, *m = mu + C;
      for (int64_t c = 0; c < C; ++c) {
        const double d = mu[c] - mean[c];
        mean[c] += d * share;
        m2[c] += m[c] + d * d * both;
      }
      n = total;
    }
    for (int64_t c = 0; c < C; c += members) {
      Moments m;
      for (int64_t k = 0; k < members; ++k) m.merge(n, mean[c + k], m2[c + k]);
      saved.put(pool(part, c), m, q);
    }
  }

  // ---- what a column is normalized with, folded: vectors of coefficients ----

  struct Table {
    Scratch<A> all;
    A *hi, *a, *b, *scale, *slope, *offset;
    Table(int64_t width)
        : all(6 * width), hi(all.data), a(hi + width), b(a + width), scale(b + width),
          slope(scale + width), offset(slope + width) {}
  };
  void coefficients(int64_t part, const Table& t) const {
    for (int64_t c = 0; c < C; ++c) {
      const Coefficients<A> k = saved.of(pool(part, c), c, q);
      t.hi[c] = k.hi, t.a[c] = k.a, t.b[c] = k.b;
    }
    for (int64_t c = C; c < width; ++c)
      t.hi[c] = t.hi[c - C], t.a[c] = t.a[c - C], t.b[c] = t.b[c - C];
  }
  A gamma(int64_t c) const { return q.weight ? static_cast<const A*>(q.weight)[c] : A(1); }

  // Runs over `count` rows, a vector at a time: step(value, column, k).
  template <class Step> NORMKIT_INLINE void walk(int64_t at, int64_t count, const Step& step) const {
    const int64_t whole = width / L * L;
    for (int64_t left = count * C; left > 0; left -= width, at += width) {
      const int64_t here = smaller(left, width), full = smaller(whole, here / L * L);
      int64_t c = 0;
      for (; c < full; c += L) step(at + c, c, kAll);
      if (c < here) step(at + c, c, here - c);
    }
  }

  void normalize(int64_t at, int64_t count, const Table& t) const {
    if (residual)
      walk(at, count, [&](int64_t i, int64_t c, int64_t k) {
        const V z = (get(x + i, k) - get(t.hi + c, k)) * get(t.a + c, k) + get(t.b + c, k);
        put(y + i, f(z + get(residual + i, k)), k);
      });
    else
      walk(at, count, [&](int64_t i, int64_t c, int64_t k) {
        const V z = (get(x + i, k) - get(t.hi + c, k)) * get(t.a + c, k) + get(t.b + c, k);
        put(y + i, f(z), k);
      });
  }

  // One part at a time in one thread, where there are parts enough or nothing to share.
  bool apart() const {
    if (threads.count == 1 || q.n * C * q.s <= kAlone) return true;
    return parts >= threads.count && (parts % threads.count == 0 || parts >= 8 * threads.count);
  }

  void forward() const {
    if (!q.own) {
      Table t(width);
      coefficients(0, t);
      parallel(threads, blocks, grain(kBlock), [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) normalize(start(0, i), in_block(i), t);
      });
    } else if (apart()) {
      parallel(threads, parts, grain(rows * C), [&](int64_t begin, int64_t end) {
        Scratch<double> found(blocks * 2 * C);
        Table t(width);
        for (int64_t p = begin; p < end; ++p) {
          for (int64_t i = 0; i < blocks; ++i)
            moments(start(p, i), in_block(i), &found[2 * C * i], &found[2 * C * i + C]);
          finish(p, found.data);
          coefficients(p, t);
          for (int64_t i = blocks; i-- > 0;) normalize(start(p, i), in_block(i), t);
        }
      });
    } else {
      Scratch<double> found(parts * blocks * 2 * C);
      parallel(threads, parts * blocks, grain(kBlock), [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i)
          moments(start(i / blocks, i % blocks), in_block(i % blocks), &found[2 * C * i],
                  &found[2 * C * i + C]);
      });
      for (int64_t p = 0; p < parts; ++p) finish(p, &found[p * blocks * 2 * C]);
      parallel(threads, parts * blocks, grain(kBlock), [&](int64_t begin, int64_t end) {
        Table t(width);
        int64_t of = -1;
        for (int64_t i = end; i-- > begin;) {
          if (i / blocks != of) coefficients(of = i / blocks, t);
          normalize(start(of, i % blocks), in_block(i % blocks), t);
        }
      });
    }
  }

  // ---- backward ----

  struct Grad {
    V hi, a, b, s, t;
    NORMKIT_INLINE void move_to(Grad& to) { to.s += s, to.t += t, s = t = V{}; }
  };
  struct Sums {
    const Columns& of;
    const Table& table;
    NORMKIT_INLINE void begin(Grad& g, int64_t c, int64_t k) const {
      g.hi = get(table.hi + c, k), g.a = get(table.a + c, k), g.b = get(table.b + c, k);
    }
    NORMKIT_INLINE void operator()(Grad& g, int64_t i, int64_t k) const {
      const V d = get(of.x + i, k) - g.hi;
      V z = back_through<T, act>(of.f, d, g.a, g.b, of.dy + i,
                                 of.residual ? of.residual + i : nullptr,
                                 of.saved_y ? of.saved_y + i : nullptr, k);
      if (k != kAll) z = keep<A>(z, k);
      g.s += z, g.t += z * d;
    }
  };

  // Sums of dz and dz*(x - hi) of each column of a block, C each.
  void sums(int64_t at, int64_t count, const Table& t, double* dz, double* dzx) const {
    Scratch<A> s(2 * width);
    A* u = s.data + width;
    columns<Grad>(at, count, Sums{*this, t}, [&](const Grad& g, int64_t c, int64_t k) {
      put(s.data + c, g.s, k);
      put(u + c, g.t, k);
    });
    folded(s.data, dz);
    folded(u, dzx);
  }

  // Adds the blocks of a part into the first, takes the mean out, and fills in the slopes.
  void slopes(int64_t part, double* found, const Table* t) const {
    double *dz = found, *dzx = found + C;
    for (int64_t i = 1; i < blocks; ++i)
      for (int64_t c = 0; c < 2 * C; ++c) dz[c] += found[2 * C * i + c];
    for (int64_t c = 0; c < C; ++c)
      dzx[c] -= static_cast<double>(saved.lo[pool(part, c)]) * dz[c];
    if (t) slopes_of(part, dz, dzx, *t);
  }
  void slopes_of(int64_t part, const double* dz, const double* dzx, const Table& t) const {
    const double n = static_cast<double>(rows * members);
    for (int64_t c = 0; c < C; c += members) {
      double g1 = 0, g2 = 0;
      for (int64_t k = c; q.own && k < c + members; ++k)
        g1 += dz[k] * gamma(k), g2 += dzx[k] * gamma(k);
      for (int64_t k = c; k < c + members; ++k) {
        const Slopes<A> w(saved, pool(part, k), gamma(k), g1 / n, g2 / n, q);
        t.scale[k] = w.scale, t.slope[k] = w.slope, t.offset[k] = w.offset;
      }
    }
    for (int64_t c = C; c < width; ++c)
      t.scale[c] = t.scale[c - C], t.slope[c] = t.slope[c - C], t.offset[c] = t.offset[c - C];
  }

  void gradient(int64_t at, int64_t count, const Table& t) const {
    walk(at, count, [&](int64_t i, int64_t c, int64_t k) {
      const V d = get(x + i, k) - get(t.hi + c, k);
      const V g = back_through<T, act>(f, d, get(t.a + c, k), get(t.b + c, k), dy + i,
                                       residual ? residual + i : nullptr,
                                       saved_y ? saved_y + i : nullptr, k);
      if (dresidual) put(dresidual + i, g, k);
      if (dx)
        put(dx + i,
            g * get(t.scale + c, k) + (d * get(t.slope + c, k) + get(t.offset + c, k)), k);
    });
  }

  void backward() const {
    const bool wants = q.dweight || q.dbias || q.own, maps = dx || dresidual;
    Scratch<double> found(parts * blocks * 2 * C);
    const int64_t each = blocks * 2 * C;
    if (!wants) for (int64_t i = 0; i < 2 * C; ++i) found[i] = 0;
    if (wants && apart()) {
      parallel(threads, parts, grain(rows * C), [&](int64_t begin, int64_t end) {
        Table t(width);
        for (int64_t p = begin; p < end; ++p) {
          coefficients(p, t);
          for (int64_t i = 0; i < blocks; ++i)
            sums(start(p, i), in_block(i), t, &found[p * each + 2 * C * i],
                 &found[p * each + 2 * C * i + C]);
          slopes(p, &found[p * each], &t);
          if (maps)
            for (int64_t i = blocks; i-- > 0;) gradient(start(p, i), in_block(i), t);
        }
      });
    } else {
      if (wants) {
        parallel(threads, parts * blocks, grain(kBlock), [&](int64_t begin, int64_t end) {
          Table t(width);
          int64_t of = -1;
          for (int64_t i = begin; i < end; ++i) {
            if (i / blocks != of) coefficients(of = i / blocks, t);
            sums(start(of, i % blocks), in_block(i % blocks), t, &found[2 * C * i],
                 &found[2 * C * i + C]);
          }
        });
        for (int64_t p = 0; p < parts; ++p) slopes(p, &found[p * each], nullptr);
      }
      if (maps)
        parallel(threads, parts * blocks, grain(kBlock), [&](int64_t begin, int64_t end) {
          Table t(width);
          int64_t of = -1;
          for (int64_t i = end; i-- > begin;) {
            if (i / blocks != of) {
              of = i / blocks;
              coefficients(of, t);
              slopes_of(of, &found[of * each], &found[of * each + C], t);
            }
            gradient(start(of, i % blocks), in_block(i % blocks), t);
          }
        });
    }
    for (int64_t c = 0; (q.dweight || q.dbias) && c < C; ++c) {
      double w = 0, b = 0;
      for (int64_t p = 0; p < parts; ++p) {
        w += found[p * each + C + c] * saved.rstd[pool(p, c)];
        b += found[p * each + c];
      }
      if (q.dweight) static_cast<A*>(q.dweight)[c] = static_cast<A>(w);
      if (q.dbias) static_cast<A*>(q.dbias)[c] = static_cast<A>(b);
    }
  }
};

}  // namespace normkit::NORMKIT_BUILD
