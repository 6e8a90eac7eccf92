// Columns, backward: sums for each column first, then a second walk for the gradients.
#pragma once

#include "columns_shape.h"

namespace normkit::NORMKIT_BUILD {

template <class T, nk_act act> struct ColumnsBackward : Columns<T> {
  using Base = Columns<T>;
  using A = typename Base::A;
  using V = typename Base::V;
  using Room = typename Base::Room;
  using Table = typename Base::Table;
  using Base::q, Base::threads, Base::x, Base::residual, Base::dy, Base::saved_y, Base::dx,
        Base::dresidual, Base::C, Base::parts, Base::rows, Base::stride, Base::spread, Base::K,
        Base::members, Base::ahead, Base::fold, Base::width, Base::block_rows, Base::blocks,
        Base::per_chunk, Base::chunks, Base::saved, Base::in_block, Base::start, Base::channel,
        Base::index, Base::grain, Base::one_part_per_thread, Base::panels, Base::add, Base::clear,
        Base::condense, Base::fold_out, Base::spread_out, Base::coefficients, Base::gamma;
  static constexpr int64_t L = Base::L;

  Activation<act, A> f;

  ColumnsBackward(const Problem& q, const nk_threads& threads, int64_t channels = 0)
      : Base(q, threads, channels), f(q) {}

  // Sums of dz and dz*(x - hi) of each column of a block.
  template <Slope way>
  void sums(int64_t at, int64_t count, const Table& t, A* dz, A* dzx) const {
    const T *const px = x, *const pg = dy, *const pr = residual, *const py = saved_y;
    const auto g = f;
    const int64_t step = fold * stride, ahead = this->ahead;
    panels(at, count, [&](int64_t i, int64_t n, int64_t c, auto part, auto vectors) NORMKIT_LAMBDA {
      constexpr int N = decltype(vectors)::value;
      V hi[N], a[N], b[N], s[N] = {}, u[N] = {};
      NORMKIT_UNROLL
      for (int j = 0; j < N; ++j) {
        hi[j] = load(t.hi + c + j * L, part), a[j] = load(t.a + c + j * L, part);
        b[j] = load(t.b + c + j * L, part);
      }
      for (int64_t r = 0; r < n; ++r) {
        const int64_t o = i + r * step;
        NORMKIT_UNROLL
        for (int j = 0; j < N; ++j) {
          const int64_t k = o + j * L;
          prefetch(px + k + ahead);
          prefetch(pg + k + ahead);
          const V d = load(px + k, part) - hi[j];
          const V v = keep<A>(back_through<way>(g, d, a[j], b[j], pg + k, pr ? pr + k : pr,
                                                py ? py + k : py, part), part);
          s[j] += v, u[j] += v * d;
        }
      }
      NORMKIT_UNROLL
      for (int j = 0; j < N; ++j)
        add(dz + c + j * L, s[j], part), add(dzx + c + j * L, u[j], part);
    });
  }
  template <Slope way>
  void chunk_sums(int64_t part, int64_t chunk, const Table& t, const Room& room,
                  double* partials) const {
    for (int64_t k = 0; k < 2 * K; ++k) partials[k] = 0;
    const int64_t first = chunk * per_chunk, last = smaller(blocks, first + per_chunk);
    for (int64_t i = first; i < last; ++i) {
      clear(room.first, 2 * width);
      sums<way>(start(part, i), in_block(i), t, room.first, room.second);
      condense(room.first, room.one);
      condense(room.second, room.two);
      for (int64_t k = 0; k < 2 * K; ++k) partials[k] += room.one[k];
    }
  }

  // Adds the chunks of a part into the first, and subtracts what rounding took from the mean.
  void gather(int64_t part, double* partials) const {
    for (int64_t i = 1; i < chunks; ++i)
      for (int64_t k = 0; k < 2 * K; ++k) partials[k] += partials[2 * K * i + k];
    for (int64_t k = 0; k < K; ++k)
      partials[K + k] -= static_cast<double>(saved.lo[index(part, k)]) * partials[k];
  }
  void slopes(int64_t part, const double* dz, const Table& t) const {
    const double *dzx = dz + K, n = static_cast<double>(rows * spread * members);
    for (int64_t from = 0; from < K; from += members) {
      double g1 = 0, g2 = 0;
      for (int64_t k = from; !q.fixed_stats && k < from + members; ++k) {
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
    const bool computed = !q.fixed_stats;
    const bool streaming = q.streaming && to && to != pg && on_line(to + at, step);
    const bool both = streaming && tr && on_line(tr + at, step);
    panels(at, count, [&](int64_t i, int64_t n, int64_t c, auto part, auto vectors) NORMKIT_LAMBDA {
      constexpr int N = decltype(vectors)::value;
      V hi[N], a[N], b[N], scale[N], slope[N], offset[N];
      NORMKIT_UNROLL
      for (int j = 0; j < N; ++j) {
        hi[j] = load(t.hi + c + j * L, part), a[j] = load(t.a + c + j * L, part);
        b[j] = load(t.b + c + j * L, part), scale[j] = load(t.scale + c + j * L, part);
        slope[j] = load(t.slope + c + j * L, part), offset[j] = load(t.offset + c + j * L, part);
      }
      for (int64_t r = 0; r < n; ++r) {
        const int64_t o = i + r * step;
        NORMKIT_UNROLL
        for (int j = 0; j < N; ++j) {
          const int64_t k = o + j * L;
          const V d = load(px + k, part) - hi[j];
          const V v = back_through<way>(g, d, a[j], b[j], pg + k, pr ? pr + k : pr,
                                        py ? py + k : py, part);
          if (tr) result(tr + k, v, part, both);
          if (to) {
            V g1 = v * scale[j];
            // Fixed statistics pass no gradient on; not even a zero, as zero times infinity is NaN.
            if (computed) g1 += d * slope[j] + offset[j];
            result(to + k, g1, part, streaming);
          }
        }
      }
    });
  }

  void backward() const {
    by_slope<act>(q, [&](auto way) { backward_by<decltype(way)::slope>(); });
  }

  template <Slope way> void backward_by() const {
    const bool wants = q.dweight || q.dbias || !q.fixed_stats, maps = dx || dresidual;
    const int64_t each = chunks * 2 * K;
    const Scratch<double> partials(parts * each);
    if (!wants)
      for (int64_t i = 0; i < parts * each; ++i) partials[i] = 0;
    if (wants && one_part_per_thread()) {
      parallel(threads, parts, grain(rows * C), [&](int64_t begin, int64_t end) {
        const Table t(width);
        const Room room(width, K);
        for (int64_t p = begin; p < end; ++p) {
          double* const mine = &partials[p * each];
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
            chunk_sums<way>(of, i % chunks, t, room, &partials[2 * K * i]);
          }
        });
        for (int64_t p = 0; p < parts; ++p) gather(p, &partials[p * each]);
      }
      if (maps)
        parallel(threads, parts * blocks, grain(block_rows * C), [&](int64_t begin, int64_t end) {
          const Table t(width);
          int64_t of = -1;
          for (int64_t i = end; i-- > begin;) {
            if (i / blocks != of) {
              of = i / blocks;
              coefficients(of, t);
              slopes(of, &partials[of * each], t);
            }
            gradient<way>(start(of, i % blocks), in_block(i % blocks), t);
          }
        });
    }
    if (q.dweight || q.dbias) parameters(partials.data, each);
  }

  // dγ and dβ from the sums of all parts.
  void parameters(const double* partials, int64_t each) const {
    const Scratch<double> w(q.c), b(q.c);
    for (int64_t c = 0; c < q.c; ++c) w[c] = b[c] = 0;
    for (int64_t p = 0; p < parts; ++p) {
      const double *dz = partials + p * each, *dzx = dz + K;
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
