// Contiguous memory with more than one position: a pool is made of runs of S values.
//
// Batch and ghost pools: one run in each of M samples, C*S apart. Group pools: K neighbouring runs
// of one sample. A pool is visited again, to be normalized, while it is still in cache. Where
// there are fewer pools than threads can share, its blocks are shared out instead; the blocks and
// the order in which they are merged depend on the shape alone, so the result does too.
#pragma once

#include "parts.h"

namespace normkit::NORMKIT_BUILD {

template <class T, Act act> struct Runs {
  using A = Acc<T>;
  using V = Vec<A>;
  static constexpr int64_t L = lanes<A>;
  static constexpr int64_t kBlock = 4096;  // values: in the first-level cache
  static constexpr int64_t kFew = 512;     // values of a pool that is small
  static constexpr int kTogether = 16;     // such pools

  const Problem& q;
  const Threads& threads;
  const T *x, *residual, *dy, *saved_y;
  T *y, *dx, *dresidual;
  int64_t groups, members, runs, stride, per_run, run_rows, blocks, pools, ahead;
  bool past;
  Saved<A> saved;
  Activation<act, A> f;

  Runs(const Problem& q, const Threads& threads)
      : q(q), threads(threads), x((const T*)q.x), residual((const T*)q.residual),
        dy((const T*)q.dy), saved_y((const T*)q.saved_y), y((T*)q.y), dx((T*)q.dx),
        dresidual((T*)q.dresidual), saved(nullptr, 0), f(q.slope) {
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
    // Short runs that begin anywhere have too many lines that they share with their neighbours.
    past = q.past && sizeof(T) == sizeof(A) &&
           (q.s >= 2048 || q.s * static_cast<int64_t>(sizeof(T)) % 64 == 0);
    // What is wanted next, from what is read now: the same place in the next pool, where that
    // will still be in cache when its turn comes, else in the next run.
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
    int64_t rows = b.rows, length = b.length;
    const int64_t step = stride, next = ahead;
    if (step == length) length *= rows, rows = 1;
    const double n = static_cast<double>(rows * length), inverse = 1 / n;
    A mean = 0;
    if (q.centred) {
      V s[4] = {};
      for (int64_t r = 0; r < rows; ++r) {
        const T* row = p + r * step;
        sweep_four<A>(length, [&](int64_t i, auto part, int slot) __attribute__((always_inline)) {
          soon(row + i + next);
          s[slot] += load(row + i, part);
        });
      }
      mean = static_cast<A>(sum<A>(s) * inverse);
    }
    const V m = fill(mean);
    V d[4] = {}, dd[4] = {};
    for (int64_t r = 0; r < rows; ++r) {
      const T* row = p + r * step;
      sweep_four<A>(length, [&](int64_t i, auto part, int slot) __attribute__((always_inline)) {
        const V v = keep<A>(load(row + i, part) - m, part);
        d[slot] += v;
        dd[slot] += v * v;
      });
    }
    // The rounded mean leaves a rest; without centring there is none to take away.
    const double sum_d = q.centred ? sum<A>(d) : 0, left = sum_d * inverse;
    const double m2 = sum<A>(dd) - left * sum_d;
    return {n, static_cast<double>(mean) + left, m2 < 0 ? 0 : m2};
  }

  // ---- results ----

  // Where a block of many short runs goes first, so that it can go past the caches as whole lines.
  struct Staged {
    alignas(64) T room[kBlock + 64];
    T *to, *last;
    int64_t count;
    Staged(T* last, bool staged, int64_t count) : last(last), count(staged ? count : 0) {
      // As far from the beginning of a line as its place in memory is.
      to = staged ? room + reinterpret_cast<uintptr_t>(last) % 64 / sizeof(T) : last;
    }
    ~Staged() {
      if (count)
        sweep_after<A>(before_line(last), count, [&](int64_t i, auto part)
                       __attribute__((always_inline)) {
          result(last + i, load(to + i, part), part, true);
        });
    }
  };
  // Whether the runs of a block lie one behind the other and are too short to go one by one.
  bool staging(const Block& b) const {
    return q.past && !past && stride == q.s && b.rows > 1 && sizeof(T) == sizeof(A);
  }

  // ---- forward ----

  NORMKIT_INLINE void normalize(int64_t at, int64_t length, const Coefficients<A>& c, T* to,
                                bool past) const {
    const T* const from = x + at;
    const T* const add = residual ? residual + at : nullptr;
    const V hi = fill(c.hi), a = fill(c.a), b = fill(c.b);
    const auto g = f;
    const int64_t head = past ? before_line(to) : 0;
    if (add == nullptr)
      sweep_after<A>(head, length, [&](int64_t i, auto part) __attribute__((always_inline)) {
        result(to + i, g((load(from + i, part) - hi) * a + b), part, past);
      });
    else
      sweep_after<A>(head, length, [&](int64_t i, auto part) __attribute__((always_inline)) {
        const V z = (load(from + i, part) - hi) * a + b + load(add + i, part);
        result(to + i, g(z), part, past);
      });
  }

  void normalize(int64_t pool, const Block& b) const {
    const int64_t at = start(pool) + b.run * stride + b.at;
    Staged staged(y + at, staging(b), b.rows * b.length);
    Coefficients<A> c{};
    for (int64_t r = 0; r < b.rows; ++r) {
      if (r == 0 || members > 1) c = saved.of(index(pool, b.run + r), channel(pool, b.run + r), q);
      normalize(at + r * stride, b.length, c, staged.to + r * stride, past);
    }
  }

  // Small pools: their sums depend on nothing but themselves, so that many are under way at once.
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
    if (!q.own) {  // in the order of memory: nothing has to stay in cache
      parallel(threads, q.n * q.c, grain(q.s), [&](int64_t begin, int64_t end) {
        for (int64_t i = begin, c = begin % q.c; i < end; ++i, c = c + 1 < q.c ? c + 1 : 0)
          normalize(i * q.s, q.s, saved.of(c, c, q), y + i * q.s, past);
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
          // Backwards: what came last is surest to be in cache.
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

  // ---- backward ----

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
        sweep_four<A>(here, [&](int64_t i, auto part, int slot) __attribute__((always_inline)) {
          soon(px + i + next);
          soon(pg + i + next);
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
                bool past) const {
    const V hi = fill(c.hi), a = fill(c.a), b = fill(c.b);
    const V scale = fill(w.scale), slope = fill(w.slope), offset = fill(w.offset);
    const auto g = f;
    const T *px = x + at, *pg = dy + at;
    const T* pr = residual ? residual + at : nullptr;
    const T* py = saved_y ? saved_y + at : nullptr;
    T* const tr = dresidual ? dresidual + at : nullptr;
    const int64_t head = past && to ? before_line(to) : 0;
    const bool own = q.own;
    const bool both = past && to && tr && before_line(tr) == head;
    sweep_after<A>(head, length, [&](int64_t i, auto part) __attribute__((always_inline)) {
      const V d = load(px + i, part) - hi;
      const V v = back_through<way>(g, d, a, b, pg + i, pr ? pr + i : pr, py ? py + i : py, part);
      if (tr) result(tr + i, v, part, both);
      if (to) {
        V g1 = v * scale;
        // Given moments pass nothing on; not even a zero, which times infinity is no number.
        if (own) g1 += d * slope + offset;
        result(to + i, g1, part, past);
      }
    });
  }

  A gamma(int64_t c) const { return q.weight ? static_cast<const A*>(q.weight)[c] : A(1); }

  Slopes<A> slopes(int64_t pool, int64_t run, double g1, double g2) const {
    return {saved, index(pool, run), gamma(channel(pool, run)), g1, g2, q};
  }

  // Sums of a block; of each run's own where the runs of a pool are of several channels.
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
    // Where it takes the place of dy it is in cache already.
    const bool fresh = dx && dx != dy;
    Staged staged(dx ? dx + at : nullptr, fresh && staging(b), b.rows * b.length);
    for (int64_t r = 0; r < b.rows;) {
      const Coefficients<A> c = saved.of(index(pool, b.run + r), channel(pool, b.run + r), q);
      const Slopes<A> w = slopes(pool, b.run + r, g1, g2);
      for (const int64_t stop = members > 1 ? r + 1 : b.rows; r < stop; ++r)
        gradient<way>(at + r * stride, b.length, c, w, dx ? staged.to + r * stride : nullptr,
                      fresh && past);
    }
  }
  // From the sums of a pool's channels to the pool's means.
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
    const bool wants = q.dweight || q.dbias || q.own;
    const bool maps = dx || dresidual;
    Scratch<Sums> all(pools * members);
    for (int64_t i = 0; i < pools * members; ++i) all[i] = Sums{};
    if (!wants) {
      parallel(threads, q.n * q.c, grain(q.s), [&](int64_t begin, int64_t end) {
        for (int64_t i = begin, c = begin % q.c; i < end; ++i, c = c + 1 < q.c ? c + 1 : 0)
          gradient<way>(i * q.s, q.s, saved.of(c, c, q), Slopes<A>(saved, c, gamma(c), 0, 0, q),
                        dx ? dx + i * q.s : nullptr, past && dx != dy);
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
      // A block's sums apart from those of its neighbours, to be added in order.
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
