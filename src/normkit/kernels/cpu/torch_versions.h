// What differs between the releases of torch that the extension compiles with, from 2.6 on: each
// item with the release and the reason. No other file asks for a release.
// Its counterpart in Python is normkit/compat.py.
#pragma once

#include <torch/csrc/autograd/function.h>
#include <torch/version.h>

#define NORMKIT_TORCH_SINCE(minor) \
  (TORCH_VERSION_MAJOR > 2 || (TORCH_VERSION_MAJOR == 2 && TORCH_VERSION_MINOR >= (minor)))

#if NORMKIT_TORCH_SINCE(10)
#include <torch/csrc/stable/c/shim.h>
#else
#include <ATen/Parallel.h>
#endif

#include "engine.h"

namespace normkit {

// ---- 2.10: torch's threads behind a C function ----

// Before, its loop is a template over OpenMP. setup.py compiles it with OpenMP where it can and never
// links an OpenMP of its own: the calls go to the runtime that torch has loaded, and to its threads.
inline nk_threads torch_threads() {
#if NORMKIT_TORCH_SINCE(10)
  uint32_t count = 1;
  torch_get_num_threads(&count);
  return {[](int64_t count, int64_t grain, nk_body body, void* context) -> int {
            return torch_parallel_for(0, count, grain, body, context);
          },
          static_cast<int64_t>(count)};
#else
  return {[](int64_t count, int64_t grain, nk_body body, void* context) -> int {
            at::parallel_for(0, count, grain, [body, context](int64_t begin, int64_t end) {
              body(begin, end, context);
            });
            return 0;
          },
          static_cast<int64_t>(at::get_num_threads())};
#endif
}

// ---- 2.13: nodes of the graph count their owners themselves ----

template <class N> auto make_node() {
#if NORMKIT_TORCH_SINCE(13)
  return c10::make_intrusive<N>();
#else
  // deleteNode releases a long graph node by node, where destructors would call each other.
  return std::shared_ptr<N>(new N(), torch::autograd::deleteNode);
#endif
}

// ---- 2.7: compiled autograd records nodes as calls of a function on packed values ----

// Before, it runs a node on stand-ins for its tensors, as tracing does, and the node may change.
#define NORMKIT_PACKED_NODES NORMKIT_TORCH_SINCE(7)
#if NORMKIT_PACKED_NODES
#define NORMKIT_COLLECTING const override
#else
#define NORMKIT_COLLECTING override
#endif

}  // namespace normkit
