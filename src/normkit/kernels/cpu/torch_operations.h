// The kernels as operations of PyTorch's dispatcher, which a compiled graph calls. Their schemas,
// shapes and gradients are registered in normkit/kernels/operations.py; there PyTorch keeps the
// graph. In C++ because the way into Python costs more than a small layer.
#pragma once

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>
#include <torch/library.h>

#include <cmath>
#include <optional>
#include <tuple>

#include "torch_layer.h"

namespace normkit {

inline Options options(int64_t pool, int64_t groups, double eps, int64_t act, double slope,
                       bool centred) {
  return {static_cast<nk_pool>(pool), groups, eps, static_cast<nk_act>(act), slope, centred,
          /*fixed_stats*/ false, /*row*/ 0};
}

// The moments of an input without values, for which the engine is not asked.
inline Tensor moments_of_empty(const Tensor& x, const Options& o) {
  int64_t pools = 0;
  switch (o.pool) {
    case NK_BATCH: pools = x.size(1); break;
    case NK_GHOST: pools = o.groups * x.size(1); break;
    case NK_GROUP: pools = x.size(0) * o.groups; break;
    case NK_POSITION: pools = x.size(0) * c10::multiply_integers(x.sizes().slice(2)); break;
  }
  Tensor stats = at::zeros({4, pools}, x.options().dtype(accumulator(x.scalar_type())));
  stats[2].fill_(1 / std::sqrt(o.eps));
  return stats;
}

using Optional = std::optional<Tensor>;
using Result = std::tuple<Tensor, Tensor>;

inline Call call_of(const Tensor& x, const Optional& weight, const Optional& bias,
                    const Optional& residual, const Options& o) {
  Call call;
  call.o = o, call.x = x, call.moments = true;
  call.weight = weight.value_or(Tensor()), call.bias = bias.value_or(Tensor());
  call.residual = residual.value_or(Tensor());
  return call;
}

// y, and the moments (4, pools): mean, what rounding took from it, 1/deviation, biased variance.
inline Result normalize_forward(const Tensor& x, const Optional& weight, const Optional& bias,
                                const Optional& residual, int64_t pool, int64_t groups, double eps,
                                int64_t act, double slope, bool centred) {
  at::NoGradGuard none;
  const Options o = options(pool, groups, eps, act, slope, centred);
  const Call call = call_of(dense(x), weight, bias, residual, o);
  if (x.numel() == 0) return {at::empty_like(call.x), moments_of_empty(x, o)};
  const char* const why = refusal(call);
  TORCH_CHECK(why == nullptr, "normkit::normalize: ", why);
  auto [y, stats] = compute(call);
  return {std::move(y), stats.to(accumulator(x.scalar_type()))};
}

// The moments alone, of a pool over the batch or a group.
inline Tensor normalize_moments(const Tensor& x, int64_t pool, int64_t groups, double eps) {
  at::NoGradGuard none;
  const Options o = options(pool, groups, eps, NK_LINEAR, 1.0, true);
  const Call call = call_of(dense(x), {}, {}, {}, o);
  if (x.numel() == 0) return moments_of_empty(x, o);
  const char* const why = refusal(call);
  TORCH_CHECK(why == nullptr, "normkit::normalize_moments: ", why);
  nk_problem q = problem_of(call.x, o);
  const int64_t pools = nk_pools(&q);
  Tensor stats = uninitialized({4, pools}, accumulator(x.scalar_type()));
  q.stats = writable(stats);
  q.var = static_cast<char*>(q.stats) + 3 * pools * static_cast<int64_t>(stats.element_size());
  const int64_t status = without_gil(nk_moments, q);
  // A group of channels without positions is a row, which is normalized as it is read.
  if (status == NK_UNSUPPORTED) return compute(call).second.to(stats.scalar_type());
  check(status);
  return stats;
}

// The same with its graph: the kernels' own node, or where something observes the operations the two
// here, put together in Python.
inline Result normalize_operation(const Tensor& x, const Optional& weight, const Optional& bias,
                                  const Optional& residual, int64_t pool, int64_t groups,
                                  double eps, int64_t act, double slope, bool centred) {
  if (!observed()) {
    const Options o = options(pool, groups, eps, act, slope, centred);
    const Call call = call_of(x, weight, bias, residual, o);
    if (takes(call)) {
      auto [y, stats] = compute(call);
      return {std::move(y), stats.to(accumulator(x.scalar_type()))};
    }
  }
  static const auto traced = c10::Dispatcher::singleton()
                                 .findSchemaOrThrow("normkit::normalize_traced", "")
                                 .typed<decltype(normalize_operation)>();
  return traced.call(x, weight, bias, residual, pool, groups, eps, act, slope, centred);
}

// The gradients of x, weight, bias and residual; without values where the bit of needs is not set.
inline std::tuple<Tensor, Tensor, Tensor, Tensor> normalize_backward(
    const Tensor& dy, const Tensor& x, const Optional& weight, const Optional& bias,
    const Optional& other, const Tensor& stats, bool other_is_output, int64_t needs, int64_t pool,
    int64_t groups, double eps, int64_t act, double slope, bool centred) {
  at::NoGradGuard none;
  BackwardInputs in{options(pool, groups, eps, act, slope, centred),
                    dense(x),
                    weight.value_or(Tensor()),
                    bias.value_or(Tensor()),
                    other.value_or(Tensor()),
                    stats,
                    other_is_output,
                    {}};
  for (size_t i = 0; i < 4; ++i) in.needs[i] = (needs >> i & 1) != 0;
  variable_list results(4);
  if (x.numel() == 0) {
    if (in.needs[0]) results[0] = at::empty_like(in.x);
    if (in.needs[1]) results[1] = at::zeros_like(in.weight);
    if (in.needs[2]) results[2] = at::zeros_like(in.bias);
    if (in.needs[3]) results[3] = at::empty_like(in.x);
  } else {
    results = gradients(in, dy);
  }
  for (Tensor& t : results)
    if (!t.defined()) t = at::empty({0}, x.options());
  return {results[0], results[1], results[2], results[3]};
}

TORCH_LIBRARY_IMPL(normkit, CPU, library) {
  library.impl("normalize_forward", normalize_forward);
  library.impl("normalize_moments", normalize_moments);
  library.impl("normalize_backward", normalize_backward);
}
TORCH_LIBRARY_IMPL(normkit, CompositeImplicitAutograd, library) {
  library.impl("normalize", normalize_operation);
}

}  // namespace normkit
