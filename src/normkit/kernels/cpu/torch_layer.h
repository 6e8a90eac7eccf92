// The whole forward pass of a usual layer in one call from Python: its dictionaries, its checks.
#pragma once

#include <torch/csrc/autograd/graph_task.h>

#include "torch_forward.h"

namespace normkit {

// What part a layer's running statistics play, numbered from 0. The names are fused.Stats's.
#define NORMKIT_LAYER_STATS(X) X(NONE) X(UPDATE) X(FIXED)
#define NORMKIT_CONSTANT(name) name,
enum class LayerStats : int { NORMKIT_LAYER_STATS(NORMKIT_CONSTANT) };
#undef NORMKIT_CONSTANT

// Bits of the signature that all layers of a class share, above the pool's two. fused.signature
// makes it.
constexpr int64_t kPool = 3, kCentred = 4, kRows = 8, kRanks = 16;
constexpr int64_t kMostRank = 32;

// Whether a backward pass is running in this thread.
inline bool in_backward() { return torch::autograd::get_current_graph_task_id() != -1; }

// False where o is neither a tensor, exactly, nor None.
inline bool read(PyObject* o, Tensor& tensor) {
  if (o == nullptr) return false;
  if (o == Py_None) return true;
  if (!THPVariable_CheckExact(o)) return false;
  tensor = THPVariable_Unpack(o);
  return true;
}

// Layers keep tensors in dictionaries. A tensor elsewhere, such as a parametrized weight, is not
// found and so refused.
inline bool find(PyObject* holder, PyObject* name, Tensor& tensor) {
  PyObject* item = PyDict_GetItemWithError(holder, name);
  if (item == nullptr && PyErr_Occurred()) PyErr_Clear();
  return read(item, tensor);
}
inline bool is_holder(PyObject* o) { return PyDict_CheckExact(o) || PyODict_CheckExact(o); }

inline bool find_stats(PyObject* buffers, LayerStats stats, bool updated, Call& call) {
  static PyObject* const mean = PyUnicode_InternFromString("running_mean");
  static PyObject* const var = PyUnicode_InternFromString("running_var");
  static PyObject* const tracked = PyUnicode_InternFromString("num_batches_tracked");
  if (buffers == Py_None) return stats == LayerStats::NONE;
  Tensor m, v;
  if (!is_holder(buffers) || !find(buffers, mean, m) || !find(buffers, var, v)) return false;
  // Both or neither, and only where the layer says so.
  if (m.defined() != (stats != LayerStats::NONE) || v.defined() != m.defined()) return false;
  if (stats == LayerStats::FIXED) {
    call.mean = std::move(m), call.var = std::move(v);
  } else if (stats == LayerStats::UPDATE) {
    // A checkpointed layer runs again within the backward pass, but each batch updates once:
    // Layer.updates_stats in normkit/nn/layer.py.
    const bool recomputed = updated && in_backward();
    if (!find(buffers, tracked, call.tracked)) return false;
    if (recomputed)
      call.tracked.reset();
    else
      call.running_mean = std::move(m), call.running_var = std::move(v);
  }
  return true;
}

inline bool is_size(PyObject* o, int64_t size) {
  int overflow = 0;  // then the number is -1
  return PyLong_CheckExact(o) && PyLong_AsLongLongAndOverflow(o, &overflow) == size;
}

// How many values are in a row where x is (*, shape), or 0 where it is not.
inline int64_t row_of(const Tensor& x, PyObject* shape) {
  if (!PyTuple_CheckExact(shape)) return 0;
  const int64_t axes = PyTuple_GET_SIZE(shape), before = x.dim() - axes;
  int64_t row = 1;
  if (axes == 0 || before < 0) return 0;
  for (int64_t i = 0; i < axes; ++i) {
    if (!is_size(PyTuple_GET_ITEM(shape, i), x.size(before + i))) return 0;
    row *= x.size(before + i);
  }
  return row;
}

// layer(x, residual, parameters, buffers, signature, groups, shape, eps, act, slope, stats,
//       momentum, stats_updated, average) -> y, or None where anything is unusual: nothing has been
// written in that case, and the layer takes the slow path, which raises the proper errors.
//
// signature: pool + 4 * centred + 8 * rows + 16 * (1 << rank, for each rank that the layer takes).
// groups: None for one for each channel. shape: of rows; otherwise the number of channels or None.
// momentum: None makes every average cumulative.
inline PyObject* layer(PyObject*, PyObject* const* args, Py_ssize_t count) {
  HANDLE_TH_ERRORS
  TORCH_CHECK(count == 14, "layer takes 14 arguments, ", count, " given");
  Call call;
  Options& o = call.o;
  const Tensor& x = call.x;
  if (observed() || !read(args[0], call.x) || !x.defined() || !is_plain(x)) Py_RETURN_NONE;

  const int64_t signature = PyLong_AsLongLong(args[4]);
  const int64_t rank = x.dim();
  if (rank > kMostRank || !(signature / kRanks >> rank & 1)) Py_RETURN_NONE;
  o.act = static_cast<nk_act>(PyLong_AsLong(args[8])), o.slope = PyFloat_AsDouble(args[9]);
  const LayerStats stats = static_cast<LayerStats>(PyLong_AsLong(args[10]));
  o.fixed_stats = stats == LayerStats::FIXED, o.centred = (signature & kCentred) != 0;
  // Fixed statistics are per channel.
  o.pool = o.fixed_stats ? NK_BATCH : static_cast<nk_pool>(signature & kPool);
  o.groups = args[5] == Py_None ? 0 : PyLong_AsLongLong(args[5]);
  if (PyErr_Occurred()) {  // the slow path reports what is not a number
    PyErr_Clear();
    Py_RETURN_NONE;
  }

  PyObject *const shape = args[6], *const eps = args[7], *const momentum = args[11];
  if (signature & kRows) {
    if ((o.row = row_of(x, shape)) == 0) Py_RETURN_NONE;
  } else if (rank < 2 || (shape != Py_None && !is_size(shape, x.size(1)))) {
    Py_RETURN_NONE;
  }
  if (args[5] == Py_None) o.groups = o.row > 0 ? o.row : x.size(1);

  if (PyFloat_CheckExact(eps)) {
    o.eps = PyFloat_AS_DOUBLE(eps);
  } else if (eps == Py_None && !o.centred) {
    const std::optional<nk_type> type = type_of(x.scalar_type());
    if (!type) Py_RETURN_NONE;
    o.eps = nk_epsilon(*type);
  }
  if (!(o.eps > 0)) Py_RETURN_NONE;
  if (stats == LayerStats::UPDATE) {
    call.average = static_cast<Average>(PyLong_AsLong(args[13]));
    if (momentum == Py_None)
      call.average = Average::CUMULATIVE, call.momentum = 1;
    else if (PyFloat_CheckExact(momentum) || PyLong_CheckExact(momentum))
      call.momentum = PyFloat_AsDouble(momentum);
    else
      Py_RETURN_NONE;
    if (PyErr_Occurred()) {  // an integer beyond every float
      PyErr_Clear();
      Py_RETURN_NONE;
    }
    if (call.average == Average::DEBIASED && !(call.momentum >= 0 && call.momentum <= 1))
      Py_RETURN_NONE;
  }

  static PyObject* const weight = PyUnicode_InternFromString("weight");
  static PyObject* const bias = PyUnicode_InternFromString("bias");
  if (!is_holder(args[2]) || !find(args[2], weight, call.weight) || !read(args[1], call.residual))
    Py_RETURN_NONE;
  // RMS normalization has no bias.
  if (o.centred && !find(args[2], bias, call.bias)) Py_RETURN_NONE;
  if (!find_stats(args[3], stats, args[12] == Py_True, call)) Py_RETURN_NONE;
  if (call.average != Average::EXPONENTIAL && call.running_mean.defined() && !call.tracked.defined())
    Py_RETURN_NONE;
  if (refusal(call)) Py_RETURN_NONE;
  // Of a copy the output is contiguous, as PyTorch's is; RMS normalization may keep its strides.
  if (o.row > 0 && !x.is_contiguous() && (!o.centred || is_nearly_last(x))) Py_RETURN_NONE;
  call.x = dense(call.x, o.row);
  const nk_problem q = problem_of(x, o);
  // A single value has no variance.
  if (!o.fixed_stats && nk_pools(&q) == x.numel()) Py_RETURN_NONE;
  Tensor y = compute(call).first;
  if (!y.defined()) Py_RETURN_NONE;
  return THPVariable_Wrap(std::move(y));
  END_HANDLE_TH_ERRORS
}

}  // namespace normkit
