// Chooses the walk for a problem, and instantiates it for its type and activation.
#pragma once

#include "across.h"
#include "rows.h"

namespace normkit::NORMKIT_BUILD {

// Parametrized by the walks whose two passes are separate classes. choose calls run(walk) with the
// walk that suits the memory, contiguous or channels-last, and the pool, across samples or within.
template <template <class, nk_act> class Columns, template <class, nk_act> class Runs>
struct Walks {
  template <class T, nk_act act, class Do>
  static void choose(const Problem& q, const nk_threads& threads, const Do& run) {
    if (!q.fixed_stats && q.pool == NK_POSITION) {
      if (q.channels_last || q.s == 1) return run(Rows<T, act>{q, threads});
      return run(Across<T, act>{q, threads});
    }
    if (!q.fixed_stats && q.pool == NK_GROUP && q.s == 1) return run(Rows<T, act>{q, threads});
    if (q.channels_last || q.s == 1) return run(Columns<T, act>(q, threads));
    if (const int64_t channels = Columns<T, act>::strip(q))
      return run(Columns<T, act>(q, threads, channels));
    return run(Runs<T, act>(q, threads));
  }

  template <class T, class Do>
  static void choose(const Problem& q, const nk_threads& threads, const Do& run) {
    switch (q.act) {
      case NK_LINEAR:
      case NK_RELU6: return choose<T, NK_LINEAR>(q, threads, run);
      case NK_SILU: return choose<T, NK_SILU>(q, threads, run);
      case NK_GELU: return choose<T, NK_GELU>(q, threads, run);
    }
  }

  template <class Do>
  static void choose(const Problem& q, const nk_threads& threads, const Do& run) {
    switch (q.type) {
      case NK_F32: return choose<float>(q, threads, run);
      case NK_F64: return choose<double>(q, threads, run);
      case NK_BF16: return choose<bf16>(q, threads, run);
      case NK_F16: return choose<f16>(q, threads, run);
    }
  }
};

}  // namespace normkit::NORMKIT_BUILD
