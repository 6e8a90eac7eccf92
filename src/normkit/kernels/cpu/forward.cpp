// The forward pass of one build: compiled once for each NORMKIT_BUILD, with its flags.
#include "builds.h"
#include "choose.h"
#include "columns_forward.h"
#include "runs_forward.h"

namespace normkit::NORMKIT_BUILD {

void forward(const Problem& q, const nk_threads& threads) {
  Walks<ColumnsForward, RunsForward>::choose(q, threads, [](auto&& walk) { walk.forward(); });
}

}  // namespace normkit::NORMKIT_BUILD
