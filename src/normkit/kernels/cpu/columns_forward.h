// Columns, forward: moments first, then a second walk that normalizes.
#pragma once

#include "columns_moments.h"

namespace normkit::NORMKIT_BUILD {

template <class T, nk_act act> struct ColumnsForward : ColumnsMoments<T> {
  using Base = ColumnsMoments<T>;
  using A = typename Base::A;
  using V = typename Base::V;
  using Room = typename Base::Room;
  using Table = typename Base::Table;
  using Base::q, Base::threads, Base::x, Base::residual, Base::y, Base::C, Base::parts,
        Base::rows, Base::stride, Base::K, Base::fold, Base::width, Base::block_rows,
        Base::blocks, Base::per_chunk, Base::chunks, Base::in_block, Base::start, Base::grain,
        Base::one_part_per_thread, Base::panels, Base::coefficients, Base::chunk_moments,
        Base::finish;
  static constexpr int64_t L = Base::L;

  Activation<act, A> f;

  ColumnsForward(const Problem& q, const nk_threads& threads, int64_t channels = 0)
      : Base(q, threads, channels), f(q) {}

  void normalize(int64_t at, int64_t count, const Table& t) const {
    const T *const from = x, *const more = residual;
    T* const to = y;
    const auto g = f;
    const int64_t step = fold * stride;
    const bool streaming = q.streaming && on_line(to + at, step);
    panels(at, count, [&](int64_t i, int64_t n, int64_t c, auto part, auto vectors) NORMKIT_LAMBDA {
      constexpr int N = decltype(vectors)::value;
      V hi[N], a[N], b[N];
      NORMKIT_UNROLL
      for (int j = 0; j < N; ++j) {
        hi[j] = load(t.hi + c + j * L, part), a[j] = load(t.a + c + j * L, part);
        b[j] = load(t.b + c + j * L, part);
      }
      for (int64_t r = 0; r < n; ++r) {
        const int64_t o = i + r * step;
        NORMKIT_UNROLL
        for (int j = 0; j < N; ++j) {
          V z = (load(from + o + j * L, part) - hi[j]) * a[j] + b[j];
          if (more) z += load(more + o + j * L, part);
          result(to + o + j * L, g(z), part, streaming);
        }
      }
    });
  }

  void forward() const {
    if (q.fixed_stats) {
      normalize_all();
    } else if (one_part_per_thread()) {
      parallel(threads, parts, grain(rows * C), [&](int64_t begin, int64_t end) {
        const Scratch<double> partials(chunks * 2 * K);
        const Room room(width, K);
        const Table t(width);
        for (int64_t p = begin; p < end; ++p) {
          for (int64_t i = 0; i < chunks; ++i) chunk_moments(p, i, room, &partials[2 * K * i]);
          finish(p, partials.data);
          if (y == nullptr) continue;
          coefficients(p, t);
          for (int64_t i = blocks; i-- > 0;) normalize(start(p, i), in_block(i), t);
        }
      });
    } else {
      const Scratch<double> partials(parts * chunks * 2 * K);
      parallel(threads, parts * chunks, grain(per_chunk * block_rows * C),
               [&](int64_t begin, int64_t end) {
        const Room room(width, K);
        for (int64_t i = begin; i < end; ++i)
          chunk_moments(i / chunks, i % chunks, room, &partials[2 * K * i]);
      });
      for (int64_t p = 0; p < parts; ++p) finish(p, &partials[p * chunks * 2 * K]);
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
};

}  // namespace normkit::NORMKIT_BUILD
