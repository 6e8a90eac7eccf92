// Contiguous memory with more than one position: a pool is made of runs of S values.
//
// Batch and ghost pools: one run in each of M samples, C*S apart. Group pools: K neighbouring runs
// of one sample. A pool is visited again, to be normalized, while it is still in cache. Where
// there are fewer pools than threads can share, its blocks are shared out instead; the blocks and
// the order in which they are merged depend on the shape alone, so the result does too.
#pragma once

#include "work.h"

namespace normkit::NORMKIT_BUILD {

template <class T, Act act> struct Runs {
  using A = Acc<T>;
  using V = Vec<A>;
  static constexpr int64_t L = lanes<A>;
  static constexpr int64_t kBlock = 4096;  // values: in the first-level cache

  const Problem& q;
  const Threads& threads;
  const T *x, *residual, *dy, *saved_y;
  T *y, *dx, *dresidual;
  int64_t groups, members, runs, stride, per_run, run_rows, blocks, pools;
  Saved<A> saved;
  Activation<act, A> f;

  Runs(const Problem& q, const Threads& threads)
      : q(q), threads(threads), x((const T*)q.x), residual((const T*)q.residual),
        dy((const T*)q.dy), saved_y((const T*)q.saved_y), y((T*)q.y), dx((T*)q.dx),
        dresidual((T*)q.dresidual), saved(nullptr, 0) {
    const bool grouped = q.over == Over::group;
    groups = grouped ? q.groups : q.c;             // pools side by side
    members = grouped ? q.c / q.groups : 1;        // channels of a pool
    const int64_t parts = grouped ? q.n : q.over == Over::ghost ? q.groups : 1;
    runs = grouped ? members : q.n / parts;
    stride = grouped ? q.s : q.c * q.s;
    pools = parts * groups;
    per_run = ceil_div(q.s, kBlock);               // blocks of a run, or
    run_rows = per_run > 1 ? 1 : larger(1, kBlock / q.s);  // runs of a block
    blocks = per_run > 1 ? runs * per_run : ceil_div(runs, run_rows);
    saved = Saved<A>(q.stats, q.own ? pools : q.c);
    f.slope = static_cast<A>(q.slope);
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
    if (q.over == Over::group) return pool * members * q.s;
    return pool / groups * runs * stride + pool % groups * q.s;
  }
  NORMKIT_INLINE int64_t channel(int64_t pool, int64_t run) const {
    return q.over == Over::group ? pool % groups * members + run : pool % groups;
  }
  // Where the numbers that a pool is normalized with are.
  NORMKIT_INLINE int64_t index(int64_t pool, int64_t run) const {
    return q.own ? pool : channel(pool, run);
  }
  // Whether to share out blocks rather than pools.
  bool split() const {
    return threads.count > 1 && pools % threads.count != 0 && pools < 8 * threads.count &&
           pools * runs * q.s > kAlone;
  }
  int64_t grain(int64_t values) const { return larger(1, kAlone / larger(values, 1)); }

  // ---- moments ----

  Moments moments(const T* from, const Block& b) const {
    const T* p = from + b.run * stride + b.at;
    int64_t rows = b.rows, length = b.length, step = stride;
    if (step == length) length *= rows, rows = 1;
    const double n = static_cast<double>(rows * length);
    const int64_t whole = length / L * L, rest = length - whole;
    A mean = 0;
    if (q.centred) {
      V s0{}, s1{}, s2{}, s3{};
      for (int64_t r = 0; r < rows; ++r) {
        const T* row = p + r * step;
        if (r + 2 < rows) ahead(row + 2 * step, length);
        int64_t i = 0;
        for (; i + 4 * L <= whole; i += 4 * L) {
          s0 += load(row + i);
          s1 += load(row + i + L);
          s2 += load(row + i + 2 * L);
          s3 += load(row + i + 3 * L);
        }
        for (; i < whole; i += L) s0 += load(row + i);
        if (rest) s1 += load(row + i, rest);
      }
      mean = static_cast<A>(sum<A>((s0 + s1) + (s2 + s3)) / n);
    }
    const V m = fill(mean);
    V d1{}, d2{}, e1{}, e2{};
    for (int64_t r = 0; r < rows; ++r) {
      const T* row = p + r * step;
      int64_t i = 0;
      for (; i + 2 * L <= whole; i += 2 * L) {
        const V u = load(row + i) - m, v = load(row + i + L) - m;
        d1 += u, d2 += u * u;
        e1 += v, e2 += v * v;
      }
      for (; i < whole; i += L) {
        const V u = load(row + i) - m;
        d1 += u, d2 += u * u;
      }
      if (rest) {
        const V u = keep<A>(load(row + i, rest) - m, rest);
        e1 += u, e2 += u * u;
      }
    }
    // The rounded mean leaves a rest; without centring there is none to take away.
    const double left = q.centred ? sum<A>(d1 + e1) / n : 0, squares = sum<A>(d2 + e2);
    const double m2 = squares - left * left * n;
    return {n, static_cast<double>(mean) + left, m2 > 0 ? m2 : (m2 == m2 ? 0 : m2)};
  }

  static NORMKIT_INLINE void ahead(const T* p, int64_t length) {
    for (int64_t i = 0; i < length && i < 256; i += 64 / sizeof(T)) __builtin_prefetch(p + i);
  }

  // ---- forward ----

  NORMKIT_INLINE void normalize(int64_t at, int64_t length, const Coefficients<A>& c) const {
    const T* from = x + at;
    const T* add = residual ? residual + at : nullptr;
    T* to = y + at;
    const V hi = fill(c.hi), a = fill(c.a), b = fill(c.b);
    int64_t i = 0;
    if (add == nullptr) {
      for (; i + 2 * L <= length; i += 2 * L) {
        const V u = f((load(from + i) - hi) * a + b), v = f((load(from + i + L) - hi) * a + b);
        store(to + i, u);
        store(to + i + L, v);
      }
      for (; i + L <= length; i += L) store(to + i, f((load(from + i) - hi) * a + b));
      if (const int64_t k = length - i; k) store(to + i, f((load(from + i, k) - hi) * a + b), k);
    } else {
      for (; i + L <= length; i += L)
        store(to + i, f((load(from + i) - hi) * a + b + load(add + i)));
      if (const int64_t k = length - i; k)
        store(to + i, f((load(from + i, k) - hi) * a + b + load(add + i, k)), k);
    }
  }

  void normalize(int64_t pool, const Block& b) const {
    for (int64_t r = b.run; r < b.run + b.rows; ++r)
      normalize(start(pool) + r * stride + b.at, b.length,
                saved.of(index(pool, r), channel(pool, r), q));
  }

  void forward() const {
    const int64_t values = runs * q.s;
    if (!q.own) {  // in the order of memory: nothing has to stay in cache
      parallel(threads, q.n * q.c, grain(q.s), [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i)
          normalize(i * q.s, q.s, saved.of(i % q.c, i % q.c, q));
      });
    } else if (!split()) {
      parallel(threads, pools, grain(values), [&](int64_t begin, int64_t end) {
        for (int64_t p = begin; p < end; ++p) {
          Moments m;
          for (int64_t i = 0; i < blocks; ++i) {
            const Moments part = moments(x + start(p), block(i));
            m.merge(part.count, part.mean, part.m2);
          }
          saved.put(p, m, q);
          // Backwards: what came last is surest to be in cache.
          for (int64_t i = blocks; i-- > 0;) normalize(p, block(i));
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
      parallel(threads, pools * blocks, grain(kBlock), [&](int64_t begin, int64_t end) {
        for (int64_t i = end; i-- > begin;) normalize(i / blocks, block(i % blocks));
      });
    }
  }

  // ---- backward ----

  struct Sums { double dz = 0, dzx = 0; };  // of dz and dz*(x - hi)

  // Over `rows` runs that share their coefficients.
  Sums sums(int64_t at, int64_t rows, int64_t length, const Coefficients<A>& c) const {
    const V hi = fill(c.hi), a = fill(c.a), b = fill(c.b);
    // Sums of a few hundred values first, then sums of those: a long sum in float loses digits.
    V s{}, t{}, u{}, v{}, dz{}, dzx{};
    int64_t since = 0;
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t o = at + r * stride;
      const T *px = x + o, *pg = dy + o;
      const T* pr = residual ? residual + o : nullptr;
      const T* py = saved_y ? saved_y + o : nullptr;
      if (r + 2 < rows) ahead(px + 2 * stride, length), ahead(pg + 2 * stride, length);
      for (int64_t i = 0; i < length;) {
        const int64_t stop = smaller(length, i + 16 * L);
        since += stop - i;
        for (; i + 2 * L <= stop; i += 2 * L) {
          const V d = load(px + i) - hi, e = load(px + i + L) - hi;
          const V g = back_through<T, act>(f, d, a, b, pg + i, pr ? pr + i : pr, py ? py + i : py,
                                           kAll);
          const V h = back_through<T, act>(f, e, a, b, pg + i + L, pr ? pr + i + L : pr,
                                           py ? py + i + L : py, kAll);
          s += g, t += g * d;
          u += h, v += h * e;
        }
        for (; i < stop; i += L) {
          const int64_t k = stop - i < L ? stop - i : kAll;
          const V d = get(px + i, k) - hi;
          V g = back_through<T, act>(f, d, a, b, pg + i, pr ? pr + i : pr, py ? py + i : py, k);
          if (k != kAll) g = keep<A>(g, k);
          s += g, t += g * d;
        }
        i = stop;
        if (since >= 16 * L) {
          dz += s + u, dzx += t + v;
          s = t = u = v = V{};
          since = 0;
        }
      }
    }
    dz += s + u, dzx += t + v;
    return {sum<A>(dz), sum<A>(dzx)};
  }

  void gradient(int64_t at, int64_t length, const Coefficients<A>& c, const Slopes<A>& w) const {
    const V hi = fill(c.hi), a = fill(c.a), b = fill(c.b);
    const V scale = fill(w.scale), slope = fill(w.slope), offset = fill(w.offset);
    const T *px = x + at, *pg = dy + at;
    const T* pr = residual ? residual + at : nullptr;
    const T* py = saved_y ? saved_y + at : nullptr;
    for (int64_t i = 0; i < length; i += L) {
      const int64_t k = length - i < L ? length - i : kAll;
      const V d = get(px + i, k) - hi;
      const V g = back_through<T, act>(f, d, a, b, pg + i, pr ? pr + i : pr, py ? py + i : py, k);
      if (dresidual) put(dresidual + at + i, g, k);
      if (dx) put(dx + at + i, g * scale + (d * slope + offset), k);
    }
  }

  A gamma(int64_t c) const { return q.weight ? static_cast<const A*>(q.weight)[c] : A(1); }

  Slopes<A> slopes(int64_t pool, int64_t run, double g1, double g2) const {
    return {saved, index(pool, run), gamma(channel(pool, run)), g1, g2, q};
  }

  // Sums of a block; of each run's own where the runs of a pool are of several channels.
  NORMKIT_INLINE void add(int64_t pool, int64_t i, Sums* into) const {
    const Block b = block(i);
    const int64_t step = members > 1 ? 1 : b.rows;
    for (int64_t r = b.run; r < b.run + b.rows; r += step) {
      const Coefficients<A> c = saved.of(index(pool, r), channel(pool, r), q);
      const Sums part = sums(start(pool) + r * stride + b.at, step, b.length, c);
      Sums& to = into[members > 1 ? r : 0];
      to.dz += part.dz, to.dzx += part.dzx;
    }
  }
  void gradient(int64_t pool, int64_t i, double g1, double g2) const {
    const Block b = block(i);
    for (int64_t r = b.run; r < b.run + b.rows; ++r)
      gradient(start(pool) + r * stride + b.at, b.length,
               saved.of(index(pool, r), channel(pool, r), q), slopes(pool, r, g1, g2));
  }
  // From the sums of a pool's channels to the pool's means.
  NORMKIT_INLINE void means(int64_t pool, Sums* of, double& g1, double& g2) const {
    g1 = g2 = 0;
    for (int64_t k = 0; k < members; ++k) {
      of[k].dzx -= static_cast<double>(saved.lo[index(pool, k)]) * of[k].dz;
      g1 += of[k].dz * gamma(channel(pool, k));
      g2 += of[k].dzx * gamma(channel(pool, k));
    }
    const double n = static_cast<double>(runs * q.s);
    g1 /= n, g2 /= n;
  }

  void backward() const {
    const bool wants = q.dweight || q.dbias || q.own;
    const bool maps = dx || dresidual;
    Scratch<Sums> all(pools * members);
    for (int64_t i = 0; i < pools * members; ++i) all[i] = Sums{};
    if (!wants) {
      parallel(threads, q.n * q.c, grain(q.s), [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i)
          gradient(i * q.s, q.s, saved.of(i % q.c, i % q.c, q),
                   Slopes<A>(saved, i % q.c, gamma(i % q.c), 0, 0, q));
      });
      return;
    }
    if (!split()) {
      parallel(threads, pools, grain(runs * q.s), [&](int64_t begin, int64_t end) {
        for (int64_t p = begin; p < end; ++p) {
          double g1, g2;
          for (int64_t i = 0; i < blocks; ++i) add(p, i, &all[p * members]);
          means(p, &all[p * members], g1, g2);
          if (maps)
            for (int64_t i = blocks; i-- > 0;) gradient(p, i, g1, g2);
        }
      });
    } else {
      // A block's sums apart from those of its neighbours, to be added in order.
      const int64_t each = members > 1 ? members : 1;
      Scratch<Sums> parts(pools * blocks * each);
      for (int64_t i = 0; i < pools * blocks * each; ++i) parts[i] = Sums{};
      parallel(threads, pools * blocks, grain(kBlock), [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) add(i / blocks, i % blocks, &parts[i * each]);
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
            gradient(i / blocks, i % blocks, g[i / blocks * 2], g[i / blocks * 2 + 1]);
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
