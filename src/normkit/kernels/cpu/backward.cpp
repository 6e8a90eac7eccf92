// The backward pass of one build: compiled once for each NORMKIT_BUILD, with its flags.
#include "builds.h"
#include "choose.h"
#include "columns_backward.h"
#include "runs_backward.h"

namespace normkit::NORMKIT_BUILD {

void backward(const Problem& q, const nk_threads& threads) {
  Walks<ColumnsBackward, RunsBackward>::choose(q, threads, [](auto&& walk) { walk.backward(); });
}

}  // namespace normkit::NORMKIT_BUILD
