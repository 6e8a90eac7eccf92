// The kernels of one build: compiled once for each NORMKIT_BUILD, with the flags of that machine.
#include "across.h"
#include "columns.h"
#include "kernels.h"
#include "rows.h"
#include "runs.h"

namespace normkit::NORMKIT_BUILD {

// Which walk suits the memory: contiguous or channels-last, pooled across samples or within one.
template <class T, Act act, class Do>
void choose(const Problem& q, const Threads& threads, const Do& run) {
  if (q.own && q.over == Over::position) {
    if (q.last || q.s == 1) return run(Rows<T, act>{q, threads});
    return run(Across<T, act>{q, threads});
  }
  if (q.own && q.over == Over::group && q.s == 1) return run(Rows<T, act>{q, threads});
  if (q.last || q.s == 1) return run(Columns<T, act>(q, threads));
  if (const int64_t channels = Columns<T, act>::strip(q))
    return run(Columns<T, act>(q, threads, channels));
  return run(Runs<T, act>(q, threads));
}

template <class T, class Do> void choose(const Problem& q, const Threads& threads, const Do& run) {
  switch (q.act) {
    case Act::linear: return choose<T, Act::linear>(q, threads, run);
    case Act::silu: return choose<T, Act::silu>(q, threads, run);
    case Act::gelu: return choose<T, Act::gelu>(q, threads, run);
  }
}

template <class Do> void choose(const Problem& q, const Threads& threads, const Do& run) {
  switch (q.type) {
    case Type::f32: return choose<float>(q, threads, run);
    case Type::f64: return choose<double>(q, threads, run);
    case Type::bf16: return choose<bf16>(q, threads, run);
    case Type::f16: return choose<f16>(q, threads, run);
  }
}

void forward(const Problem& q, const Threads& threads) {
  choose(q, threads, [](auto&& kernel) { kernel.forward(); });
}
void backward(const Problem& q, const Threads& threads) {
  choose(q, threads, [](auto&& kernel) { kernel.backward(); });
}

}  // namespace normkit::NORMKIT_BUILD
