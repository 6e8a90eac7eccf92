// The node of PyTorch's graph: what it saves, its gradients, and compiled autograd.
//
// Written in C++ because a Python autograd function costs more than a whole small layer
// (docs/log.md). It binds to one release of torch; torch_versions.h has what differs.
#pragma once

#include <Python.h>

#include <torch/csrc/Exceptions.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/csrc/autograd/python_variable.h>
#include <torch/csrc/autograd/saved_variable.h>
#include <torch/csrc/dynamo/compiled_autograd.h>

#include <array>
#include <mutex>
#include <string>
#include <vector>

#include "torch_tensors.h"

namespace normkit {

using torch::autograd::CompiledNodeArgs;
using torch::autograd::SavedVariable;
using torch::autograd::SwapSavedVariables;
using torch::autograd::variable_list;

// Computes the gradients with operations that can be differentiated again; fused.py sets it.
inline PyObject* differentiable = nullptr;

// What a backward pass computes from, besides dy. Tensors that it does without are undefined.
struct BackwardInputs {
  Options o{};
  Tensor x, weight, bias, other, stats;  // other: the output where that gives act', or the residual
  bool other_is_output = false;
  std::array<bool, 4> needs{};           // gradients of x, weight, bias, residual
};

inline Tensor of_type(const Tensor& gradient, const Tensor& parameter) {
  const at::ScalarType type = parameter.scalar_type();
  return gradient.scalar_type() == type ? gradient : gradient.to(type);
}

inline variable_list gradients(const BackwardInputs& in, Tensor dy) {
  const auto& [o, unpacked, weight, bias, other, stats, other_is_output, needs] = in;
  // A hook on saved tensors may hand back another layout; it must not hand back another tensor.
  const Tensor x = is_dense(unpacked, o.row) ? unpacked : unpacked.contiguous();
  TORCH_CHECK(is_plain(x) && x.sizes() == dy.sizes() &&
                  accumulator(x.scalar_type()) == stats.scalar_type() &&
                  (!other.defined() || (is_plain(other) && other.sizes() == x.sizes() &&
                                        other.scalar_type() == x.scalar_type())),
              "normkit: a hook on saved tensors handed back a tensor of another shape or type "
              "(x is ",
              x.scalar_type(), x.sizes(), ", its gradient ", dy.scalar_type(), dy.sizes(), ")");
  // Written over dy where nothing else refers to it: one tensor less to allocate and to pass over.
  const bool owns_dy = dy.use_count() == 1 && dy.storage().use_count() == 1;
  if (dy.scalar_type() != x.scalar_type()) dy = dy.to(x.scalar_type());
  const Tensor received = dy;
  dy = dy.contiguous(format(x));
  const bool private_dy = owns_dy || !dy.is_same(received);

  nk_problem q = problem_of(x, o);
  const at::ScalarType acc = accumulator(x.scalar_type());
  Tensor w, b;
  q.weight = parameter(weight, acc, w), q.bias = parameter(bias, acc, b);
  q.stats = writable(stats), q.dy = pointer(dy);
  const Tensor other_laid_out = other.defined() ? other.contiguous(format(x)) : Tensor();
  (other_is_output ? q.saved_y : q.residual) = pointer(other_laid_out);
  Tensor dx, dresidual, dw, db;
  const bool passes = needs[3] && no_activation(o);
  const bool overwrites = private_dy && !passes && dy.strides() == x.strides();
  if (needs[0]) dx = overwrites ? dy : uninitialized_like(x);
  if (needs[3]) dresidual = passes ? dy : uninitialized_like(x);
  if (needs[1] && weight.defined()) dw = uninitialized(weight.sizes(), acc);
  if (needs[2] && bias.defined()) db = uninitialized(bias.sizes(), acc);
  q.dx = writable(dx), q.dweight = writable(dw), q.dbias = writable(db);
  q.dresidual = passes ? nullptr : writable(dresidual);
  const nk_threads pool = torch_threads();
  check(nk_backward(&q, &pool));
  variable_list result(4);
  result[0] = dx;
  if (dw.defined()) result[1] = of_type(dw, weight);
  if (db.defined()) result[2] = of_type(db, bias);
  result[3] = dresidual;
  return result;
}

inline variable_list differentiable_gradients(const BackwardInputs& in, const Tensor& dy) {
  const Options& o = in.o;
  const auto truth = [](bool value) { return value ? Py_True : Py_False; };
  const auto& needs = in.needs;
  PyGILState_STATE state = PyGILState_Ensure();
  variable_list result(4);
  PyObject* tuple = PyObject_CallFunction(
      differentiable, "NNNNNNNO(OOOO)(iLdidOL)", THPVariable_Wrap(dy), THPVariable_Wrap(in.x),
      THPVariable_Wrap(in.other_is_output ? in.other : Tensor()), THPVariable_Wrap(in.weight),
      THPVariable_Wrap(in.bias), THPVariable_Wrap(in.other_is_output ? Tensor() : in.other),
      THPVariable_Wrap(in.stats), truth(!o.fixed_stats), truth(needs[0]), truth(needs[1]),
      truth(needs[2]), truth(needs[3]), static_cast<int>(o.pool),
      static_cast<long long>(o.groups), o.eps, static_cast<int>(o.act), o.slope, truth(o.centred),
      static_cast<long long>(o.row));
  if (tuple == nullptr) {
    python_error error;
    error.persist();
    PyGILState_Release(state);
    throw std::move(error);
  }
  for (Py_ssize_t i = 0; i < 4; ++i) {
    PyObject* item = PySequence_GetItem(tuple, i);
    if (item != nullptr && item != Py_None) result[i] = THPVariable_Unpack(item);
    Py_XDECREF(item);
  }
  Py_DECREF(tuple);
  PyGILState_Release(state);
  return result;
}

struct NormalizeBackward : public torch::autograd::Node {
  SavedVariable x_, weight_, bias_, other_;
  Tensor unused_bias_;  // the bias where only its shape matters, so that it may change meanwhile
  bool other_is_output_ = false;
  Tensor stats_;
  Options options_{};
  bool released_ = false;

  std::string name() const override { return "NormalizeBackward"; }

  void release_variables() override {
    std::lock_guard<std::mutex> lock(mutex_);
    x_.reset_data(), weight_.reset_data(), bias_.reset_data(), other_.reset_data();
    unused_bias_.reset(), stats_.reset();
    released_ = true;
  }

  variable_list apply(variable_list&& grads) override {
    std::lock_guard<std::mutex> lock(mutex_);
    if (!grads[0].defined()) return variable_list(4);
    TORCH_CHECK(!released_, torch::autograd::ERR_BACKWARD_TWICE);
    Tensor dy = std::move(grads[0]);
    const BackwardInputs in = unpack();
    // PyTorch's operations handle what is batched, negated, of a subclass or with a tangent.
    const bool fused = !at::GradMode::is_enabled() && !observed() && is_plain(dy);
    return fused ? gradients(in, std::move(dy)) : differentiable_gradients(in, dy);
  }

  // Compiled autograd keeps the node as one opaque call where it can.
  void compiled_args(CompiledNodeArgs& args) NORMKIT_COLLECTING {
    TORCH_CHECK(!released_, torch::autograd::ERR_BACKWARD_TWICE);
    for (const SavedVariable* saved : {&x_, &weight_, &bias_}) args.collect(*saved, false);
    args.collect(other_, other_is_output_);
    args.collect(unused_bias_), args.collect(stats_);
    args.collect(other_is_output_), args.collect(options_.centred);
    args.collect(options_.fixed_stats);
    for (int64_t number : numbers(options_)) args.collect(number);
    args.collect(options_.eps), args.collect(options_.slope);
  }

  variable_list apply_with_saved(const variable_list& grads, SwapSavedVariables& saved) override {
    for (SavedVariable* v : {&x_, &weight_, &bias_, &other_}) saved.before(*v);
    saved.before(unused_bias_), saved.before(stats_);
    variable_list result = recorded(grads, saved);
    for (SavedVariable* v : {&x_, &weight_, &bias_, &other_}) saved.after(*v);
    saved.after(unused_bias_), saved.after(stats_);
    return result;
  }

 private:
#if NORMKIT_PACKED_NODES
  variable_list recorded(const variable_list& grads, SwapSavedVariables& saved) {
    namespace compiled = torch::dynamo::autograd;
    const BackwardInputs in = unpack();
    compiled::PackedArgs args;
    for (const Tensor* t : {&in.x, &in.weight, &in.bias, &in.other, &in.stats})
      args.pack(*t);
    args.pack(std::vector<bool>(in.needs.begin(), in.needs.end()));
    args.pack(in.other_is_output), args.pack(in.o.centred), args.pack(in.o.fixed_stats);
    for (int64_t number : numbers(in.o)) args.pack(number);
    args.pack(in.o.eps), args.pack(in.o.slope);
    std::vector<at::TypePtr> schema;
    for (const c10::IValue& v : args.vec())
      schema.push_back(v.isTensor() ? at::TypePtr(at::TensorType::get()) : v.type());
    const auto& compiler = compiled::getPyCompilerInterface();
    const std::string bound = compiler->bind_function(
        saved.get_py_compiler(), name(), from_packed, schema, /*is_custom_function*/ true,
        /*is_traceable*/ false);
    return compiler->call_function(
        saved.get_py_compiler(), "apply_functional", bound, grads, args.vec(),
        compiled::IValuePacker<std::vector<std::optional<torch::autograd::InputMetadata>>>::pack(
            compiled::get_input_metadata(next_edges())));
  }

  static variable_list from_packed(const variable_list& grads,
                                   const std::vector<c10::IValue>& values) {
    if (!grads[0].defined()) return variable_list(4);
    torch::dynamo::autograd::PackedArgs args(values);
    BackwardInputs in;
    for (Tensor* t : {&in.x, &in.weight, &in.bias, &in.other, &in.stats})
      *t = args.unpack<Tensor>();
    const std::vector<bool> needs = args.unpack<std::vector<bool>>();
    std::copy(needs.begin(), needs.end(), in.needs.begin());
    in.other_is_output = args.unpack<bool>(), in.o.centred = args.unpack<bool>();
    in.o.fixed_stats = args.unpack<bool>();
    in.o.pool = static_cast<nk_pool>(args.unpack<int64_t>());
    in.o.groups = args.unpack<int64_t>();
    in.o.act = static_cast<nk_act>(args.unpack<int64_t>());
    in.o.row = args.unpack<int64_t>();
    in.o.eps = args.unpack<double>(), in.o.slope = args.unpack<double>();
    at::NoGradGuard none;
    return gradients(in, grads[0]);
  }
#else
  variable_list recorded(const variable_list& grads, SwapSavedVariables&) {
    return apply(variable_list(grads));
  }
#endif

  BackwardInputs unpack() {
    BackwardInputs in{options_,
                      x_.unpack(),
                      weight_.unpack(),
                      unused_bias_.defined() ? unused_bias_ : bias_.unpack(),
                      other_is_output_ ? other_.unpack(getptr()) : other_.unpack(),
                      stats_,
                      other_is_output_,
                      {}};
    for (size_t i = 0; i < 4; ++i) in.needs[i] = task_should_compute_output(i);
    return in;
  }

  static std::array<int64_t, 4> numbers(const Options& o) {
    return {static_cast<int64_t>(o.pool), o.groups, static_cast<int64_t>(o.act), o.row};
  }
};

}  // namespace normkit
