// Moments of columns: computed for blocks of rows, merged in order.
#pragma once

#include "columns_shape.h"

namespace normkit::NORMKIT_BUILD {

template <class T> struct ColumnsMoments : Columns<T> {
  using Base = Columns<T>;
  using A = typename Base::A;
  using V = typename Base::V;
  using Room = typename Base::Room;
  using Base::q, Base::x, Base::rows, Base::stride, Base::spread, Base::K, Base::members,
        Base::ahead, Base::fold, Base::width, Base::block_rows, Base::blocks, Base::per_chunk,
        Base::chunks, Base::saved, Base::in_block, Base::start, Base::index, Base::panels,
        Base::add, Base::clear, Base::condense, Base::fold_out, Base::spread_out;
  static constexpr int64_t L = Base::L;
  using Base::Base;

  void sum_rows(int64_t at, int64_t count, A* sums) const {
    const T* const from = x;
    const int64_t step = fold * stride, ahead = this->ahead;
    panels(at, count, [&](int64_t i, int64_t n, int64_t c, auto part, auto vectors) NORMKIT_LAMBDA {
      constexpr int N = decltype(vectors)::value;
      V s[N] = {};
      for (int64_t r = 0; r < n; ++r) {
        const T* const p = from + i + r * step;
        NORMKIT_UNROLL
        for (int j = 0; j < N; ++j) {
          prefetch(p + ahead + j * L);
          s[j] += load(p + j * L, part);
        }
      }
      NORMKIT_UNROLL
      for (int j = 0; j < N; ++j) add(sums + c + j * L, s[j], part);
    });
  }
  void deviations(int64_t at, int64_t count, const A* mean, A* sums, A* squares) const {
    const T* const from = x;
    const int64_t step = fold * stride;
    panels(at, count, [&](int64_t i, int64_t n, int64_t c, auto part, auto vectors) NORMKIT_LAMBDA {
      constexpr int N = decltype(vectors)::value;
      V m[N], d[N] = {}, dd[N] = {};
      NORMKIT_UNROLL
      for (int j = 0; j < N; ++j) m[j] = load(mean + c + j * L, part);
      for (int64_t r = 0; r < n; ++r) {
        const T* const p = from + i + r * step;
        NORMKIT_UNROLL
        for (int j = 0; j < N; ++j) {
          const V v = load(p + j * L, part) - m[j];
          d[j] += v, dd[j] += v * v;
        }
      }
      NORMKIT_UNROLL
      for (int j = 0; j < N; ++j)
        add(sums + c + j * L, d[j], part), add(squares + c + j * L, dd[j], part);
    });
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
  void chunk_moments(int64_t part, int64_t chunk, const Room& room, double* partials) const {
    const int64_t first = chunk * per_chunk, last = smaller(blocks, first + per_chunk);
    for (int64_t i = first; i < last; ++i)
      moments(start(part, i), in_block(i), (i - first) * block_rows, room, partials, partials + K);
  }

  // Merges the chunks and saves the statistics of a part's pools. partials: (chunks, 2, K).
  void finish(int64_t part, double* partials) const {
    double *mean = partials, *m2 = partials + K;
    for (int64_t i = 1; i < chunks; ++i) {
      const double n = static_cast<double>(rows_before(i) * spread);
      const double more = static_cast<double>(rows_before(i + 1) * spread) - n;
      const double share = more / (n + more), both = n * share;
      const double *mu = partials + 2 * K * i, *m = mu + K;
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
};

}  // namespace normkit::NORMKIT_BUILD
