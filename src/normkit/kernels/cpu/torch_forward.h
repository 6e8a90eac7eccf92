// The forward pass with its graph: what a call takes, the output, the buffers that it updates.
#pragma once

#include <ATen/record_function.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>
#include <vector>

#include "torch_node.h"

namespace normkit {

// How running statistics weigh the batches, numbered from 0. The names are fused.AVERAGES's.
#define NORMKIT_AVERAGES(X) \
  X(EXPONENTIAL, "exponential") X(CUMULATIVE, "cumulative") X(DEBIASED, "debiased")
#define NORMKIT_CONSTANT(name, text) name,
enum class Average : int { NORMKIT_AVERAGES(NORMKIT_CONSTANT) };
#undef NORMKIT_CONSTANT

// What a call computes from. Tensors that it does without are undefined.
struct Call {
  Options o{};
  Tensor x, weight, bias, residual;
  Tensor mean, var;                           // to normalize with, where these are fixed
  Tensor running_mean, running_var, tracked;  // to update: the averages, the count of batches
  double momentum = 0;
  Average average = Average::EXPONENTIAL;
  bool moments = false;                       // the caller wants mean and variance
};

inline bool takes_parameter(const Tensor& t, int64_t channels) {
  return !t.defined() ||
         (is_plain(t) && t.numel() == channels && type_of(t.scalar_type()).has_value());
}

inline bool takes_running(const Tensor& t, int64_t channels, at::ScalarType type) {
  // bfloat16 has the range of float32, so what fits the one fits the other.
  const bool fits = t.defined() && (t.scalar_type() == type || (t.scalar_type() == at::kBFloat16 &&
                                                                type == at::kFloat));
  return !t.defined() ||
         (takes_parameter(t, channels) && fits && t.is_contiguous() && !t.is_inference());
}

// Why the engine does not take the call, as a clause after "because", or null. Whether x is dense
// is not looked at: the caller can make it so.
inline const char* refusal(const Call& call) {
  const Tensor& x = call.x;
  const Options& o = call.o;
  if (!x.defined() || !is_plain(x)) return "the input is not a plain dense CPU tensor";
  if (!type_of(x.scalar_type())) return "they have no code for the input's type";
  if (x.numel() == 0) return "the input is empty";
  if (o.row == 0 && x.dim() < 2) return "the input has fewer than two axes";
  const int64_t channels = o.row > 0 ? o.row : x.size(1);
  for (const Tensor* t : {&call.weight, &call.bias, &call.mean, &call.var})
    if (!takes_parameter(*t, channels))
      return "a weight, bias or statistic is not a plain CPU tensor of one number per channel";
  const at::ScalarType acc = accumulator(x.scalar_type());
  for (const Tensor* t : {&call.running_mean, &call.running_var})
    if (!takes_running(*t, channels, acc))
      return "the running statistics are not contiguous, one per channel, in the type of the "
             "moments or bfloat16";
  const Tensor &count = call.tracked, &r = call.residual;
  if (count.defined() && !(is_plain(count) && count.scalar_type() == at::kLong &&
                           count.dim() == 0 && !count.is_inference()))
    return "num_batches_tracked is not a plain integer";
  if (r.defined() &&
      !(is_plain(r) && r.scalar_type() == x.scalar_type() && r.sizes() == x.sizes()))
    return "the residual is not a plain CPU tensor like the input";
  const nk_problem q = problem_of(x, o);
  return nk_pools(&q) > 0 ? nullptr : "the groups do not divide what they split";
}

// Whether images are nearer to channels-last than to contiguous, as normkit.kernels.call.layout has
// it.
inline bool is_nearly_last(const Tensor& x) {
  const bool images = x.dim() == 4 || x.dim() == 5;
  return images && !x.is_contiguous() &&
         ((x.stride(1) == 1 && x.size(1) > 1) || is_channels_last(x));
}

// The input as the engine walks over it, copied where it is not.
inline Tensor dense(const Tensor& x, int64_t row = 0) {
  if (is_dense(x, row)) return x;
  if (!is_nearly_last(x)) return x.contiguous();
  return x.contiguous(x.dim() == 4 ? at::MemoryFormat::ChannelsLast
                                   : at::MemoryFormat::ChannelsLast3d);
}

// The number of pools, or 0 where the engine does not take the call as it is.
inline int64_t takes(const Call& call) {
  if (refusal(call) || !is_dense(call.x, call.o.row)) return 0;
  const nk_problem q = problem_of(call.x, call.o);
  return nk_pools(&q);
}

// Moves a buffer by a share of the way to new moments, as normkit/nn/averages.py does.
inline void update_running(const Tensor& running, const void* value, double share, double factor) {
  if (running.scalar_type() == at::kBFloat16) {
    at::BFloat16* const r = running.mutable_data_ptr<at::BFloat16>();
    const float* const v = static_cast<const float*>(value);
    for (int64_t i = 0; i < running.numel(); ++i)
      r[i] = static_cast<float>(double(r[i]) * (1 - share) + double(v[i]) * factor * share);
  } else {
    nk_update_running(*type_of(running.scalar_type()), running.numel(), running.mutable_data_ptr(),
                      value, share, factor);
  }
  running.unsafeGetTensorImpl()->bump_version();
}

// Share of this batch in the averages, as normkit/nn/averages.py has it.
inline double share_of(const Call& call) {
  const double m = call.momentum;
  if (call.average == Average::EXPONENTIAL || m == 0) return m;
  const double t = static_cast<double>(*call.tracked.const_data_ptr<int64_t>() + 1);
  if (call.average == Average::CUMULATIVE) return 1 / t;
  if (m == 1) return 1;
  return std::min(1.0, m / -std::expm1(t * std::log1p(-m)));
}

// Mean and variance of the whole batch, in rows, from the stats of parts of equal size; undefined
// where twice the variance, or an average with it, may not fit.
template <class A> Tensor merged(const Tensor& stats, int64_t parts) {
  const int64_t channels = stats.size(1) / parts;
  Tensor whole = uninitialized({2, channels}, stats.scalar_type());
  const A* const rows = stats.const_data_ptr<A>();
  const A* const var = rows + 3 * stats.size(1);
  // The mean of a pool, with the remainder that its first row had no digits for.
  const auto mean = [&](int64_t k) { return double(rows[k]) + double(rows[stats.size(1) + k]); };
  const double share = 1 / static_cast<double>(parts);
  // Relative to the first part's mean, so that a common offset costs no digits.
  std::vector<double> offset(channels), square(channels);
  for (int64_t k = 0; k < stats.size(1); k += channels)
    for (int64_t c = 0; c < channels; ++c) offset[c] += (mean(k + c) - mean(c)) * share;
  for (int64_t k = 0; k < stats.size(1); k += channels)
    for (int64_t c = 0; c < channels; ++c) {
      const double d = mean(k + c) - mean(c) - offset[c];
      square[c] += (double(var[k + c]) + d * d) * share;
    }
  A* const to = whole.mutable_data_ptr<A>();
  for (int64_t c = 0; c < channels; ++c) {
    const double m = mean(c) + offset[c];
    if (!(std::abs(m) + square[c] < double(std::numeric_limits<A>::max()) / 2)) return {};
    to[c] = static_cast<A>(m), to[channels + c] = static_cast<A>(square[c]);
  }
  return whole;
}

// Last, when nothing can fail any more. The moments of the batch, the mean in the first row and the
// variance in the last, fit: see beyond and merged.
inline void update_buffers(const Call& call, const Tensor& moments) {
  if (call.running_mean.defined()) {
    const char* const rows = static_cast<const char*>(moments.const_data_ptr());
    const int64_t row = moments.size(1) * static_cast<int64_t>(moments.element_size());
    const double n = static_cast<double>(call.x.numel() / call.x.size(1));
    const double share = share_of(call);
    update_running(call.running_mean, rows, share, 1.0);
    update_running(call.running_var, rows + (moments.size(0) - 1) * row, share, n / (n - 1));
  }
  if (call.tracked.defined()) {
    ++*call.tracked.mutable_data_ptr<int64_t>();
    call.tracked.unsafeGetTensorImpl()->bump_version();
  }
}

// The stats of the moments that the call normalizes with.
inline void fixed_stats(const Call& call, const nk_problem& q, at::ScalarType acc) {
  Tensor copies[2];
  nk_fixed_stats(&q, parameter(call.mean, acc, copies[0]), parameter(call.var, acc, copies[1]));
}

// A pass of the engine, during which other Python threads run. PyTorch's dispatcher, where it calls
// an operation, has let them run already.
inline int64_t without_gil(int64_t (*pass)(const nk_problem*, const nk_threads*),
                           const nk_problem& q) {
  const nk_threads pool = torch_threads();
  if (!PyGILState_Check()) return pass(&q, &pool);
  PyThreadState* const state = PyEval_SaveThread();
  const int64_t status = pass(&q, &pool);
  PyEval_RestoreThread(state);
  return status;
}

// Whether squares went, or their sums could go, beyond the type that keeps them: 1/deviation is not
// a number, or close to zero, or so large that the variance had hardly any digits. Values of float16
// cannot do that. Nothing is wider than float64, in which the variance counts only if it is kept.
inline bool beyond(const Tensor& stats, int64_t pools, at::ScalarType type, bool updates) {
  if (type == at::kHalf) return false;
  if (stats.scalar_type() == at::kDouble) {
    const double* const rstd = stats.const_data_ptr<double>() + 2 * pools;
    return updates && std::any_of(rstd, rstd + pools, [](double r) { return r < 1e-150; });
  }
  const float* const rstd = stats.const_data_ptr<float>() + 2 * pools;
  return !std::all_of(rstd, rstd + pools, [](float r) { return r > 1e-15f && r < 1e15f; });
}

inline std::pair<Tensor, Tensor> compute(const Call& call);

// The same in float64, rounded to the type of the input at the end.
inline std::pair<Tensor, Tensor> compute_wide(const Call& call) {
  Call wide = call;
  wide.x = call.x.to(at::kDouble);
  if (call.residual.defined()) wide.residual = call.residual.to(at::kDouble);
  auto [y, stats] = compute(wide);
  return {y.to(call.x.scalar_type()), std::move(stats)};
}

// The output with its graph, and (3 or 4, pools) statistics; the fourth row is the variance.
// Nothing, and nothing written, where buffers are to be updated and their values may not fit.
inline std::pair<Tensor, Tensor> compute(const Call& call) {
  RECORD_FUNCTION("normkit::normalize", std::vector<c10::IValue>{});
  const Tensor &x = call.x, &weight = call.weight, &bias = call.bias, &residual = call.residual;
  const Options& o = call.o;
  const bool graph = at::GradMode::is_enabled() &&
                     torch::autograd::compute_requires_grad(x, weight, bias, residual);
  const bool updates = call.running_mean.defined();
  const bool is_wide = x.scalar_type() == at::kDouble;
  // Fixed statistics keep their range.
  if (o.fixed_stats && !is_wide && call.var.scalar_type() == at::kDouble) return compute_wide(call);
  nk_problem q = problem_of(x, o);
  Tensor y, stats;
  bool exceeds = false;
  {
    at::AutoDispatchBelowADInplaceOrView below;
    const at::ScalarType acc = accumulator(x.scalar_type());
    const int64_t p = nk_pools(&q);
    const bool wants_var = !o.fixed_stats && (call.moments || updates);
    y = uninitialized_like(x);
    stats = uninitialized({wants_var ? 4 : 3, p}, acc);
    Tensor w, b;
    q.weight = parameter(weight, acc, w), q.bias = parameter(bias, acc, b);
    const Tensor r = residual.defined() ? residual.contiguous(format(x)) : Tensor();
    q.residual = pointer(r);
    q.stats = writable(stats), q.y = writable(y);
    if (o.fixed_stats) fixed_stats(call, q, acc);
    if (wants_var)
      q.var = static_cast<char*>(q.stats) + 3 * p * static_cast<int64_t>(stats.element_size());
    check(without_gil(nk_forward, q));
    exceeds = !o.fixed_stats && beyond(stats, p, x.scalar_type(), updates);
  }
  if (exceeds && updates) return {};
  Tensor whole = stats;
  if (updates && o.pool == NK_GHOST) {
    at::AutoDispatchBelowADInplaceOrView below;
    whole = stats.scalar_type() == at::kDouble ? merged<double>(stats, o.groups)
                                               : merged<float>(stats, o.groups);
    if (!whole.defined()) return {};
  }
  if (exceeds) return compute_wide(call);
  if (graph) {
    auto node = make_node<NormalizeBackward>();
    node->set_next_edges(torch::autograd::collect_next_edges(x, weight, bias, residual));
    node->options_ = o;
    node->stats_ = stats;
    node->x_ = SavedVariable(x, false);
    node->weight_ = SavedVariable(weight, false);
    // The next layer keeps the output anyway, but perhaps nothing keeps the residual.
    const bool saves_other = residual.defined() && !no_activation(o);
    node->other_is_output_ = saves_other && output_gives_slope(o);
    if (node->other_is_output_ || no_activation(o)) {
      if (bias.defined()) node->unused_bias_ = bias.detach();
    } else {
      node->bias_ = SavedVariable(bias, false);
    }
    torch::autograd::set_history(y, node);
    if (saves_other)
      node->other_ = SavedVariable(node->other_is_output_ ? y : residual, node->other_is_output_);
  }
  update_buffers(call, whole);
  return {std::move(y), std::move(stats)};
}

}  // namespace normkit
