// An output computed again: what its node keeps beside tensors, and the same pass without a graph.
#pragma once

#include "torch_layer.h"

namespace normkit {

// kept(y) -> (stats, pool, groups, eps, act, slope, centred, fixed_stats, row) of the node that y is
// the output of, or None where it is of no such node.
inline PyObject* kept(PyObject*, PyObject* y) {
  HANDLE_TH_ERRORS
  Tensor output;
  if (!read(y, output) || !output.defined()) Py_RETURN_NONE;
  const auto* const node = dynamic_cast<NormalizeBackward*>(output.grad_fn().get());
  if (node == nullptr || !node->stats_.defined()) Py_RETURN_NONE;
  const Options& o = node->options_;
  return Py_BuildValue("NiLdidNNL", THPVariable_Wrap(node->stats_), static_cast<int>(o.pool),
                       static_cast<long long>(o.groups), o.eps, static_cast<int>(o.act), o.slope,
                       PyBool_FromLong(o.centred), PyBool_FromLong(o.fixed_stats),
                       static_cast<long long>(o.row));
  END_HANDLE_TH_ERRORS
}

// again(x, weight, bias, residual, stats, ..., row) -> y, equal to the last bit. Moments of channels
// are read from stats, so that nothing is summed; those of other pools are summed again, as the first
// pass did, from values that it has to read in any case.
inline PyObject* again(PyObject*, PyObject* const* args, Py_ssize_t count) {
  HANDLE_TH_ERRORS
  TORCH_CHECK(count == 13, "again takes 13 arguments, ", count, " given");
  Call call;
  Options& o = call.o;
  Tensor stats;
  const bool read_all = read(args[0], call.x) && read(args[1], call.weight) &&
                        read(args[2], call.bias) && read(args[3], call.residual) &&
                        read(args[4], stats);
  o.pool = static_cast<nk_pool>(PyLong_AsLong(args[5])), o.groups = PyLong_AsLongLong(args[6]);
  o.eps = PyFloat_AsDouble(args[7]), o.act = static_cast<nk_act>(PyLong_AsLong(args[8]));
  o.slope = PyFloat_AsDouble(args[9]), o.centred = args[10] == Py_True;
  o.fixed_stats = args[11] == Py_True, o.row = PyLong_AsLongLong(args[12]);
  if (PyErr_Occurred()) throw python_error();
  TORCH_CHECK(read_all && stats.defined() && takes(call),
              "normkit: a tensor that the output is computed from again is of another kind");
  at::NoGradGuard none;
  at::AutoDispatchBelowADInplaceOrView below;
  o.fixed_stats = o.fixed_stats || o.pool == NK_BATCH;
  nk_problem q = problem_of(call.x, o);
  const at::ScalarType acc = accumulator(call.x.scalar_type());
  const int64_t pools = nk_pools(&q);
  TORCH_CHECK(stats.scalar_type() == acc && stats.dim() == 2 && stats.size(1) == pools &&
                  stats.is_contiguous(),
              "normkit: moments of another type or size");
  const Tensor sums = o.fixed_stats ? stats : uninitialized({3, pools}, acc);
  const Tensor y = uninitialized_like(call.x);
  Tensor w, b;
  q.weight = parameter(call.weight, acc, w), q.bias = parameter(call.bias, acc, b);
  const Tensor r = call.residual.defined() ? call.residual.contiguous(format(call.x)) : Tensor();
  q.residual = pointer(r), q.stats = writable(sums), q.y = writable(y);
  check(without_gil(nk_forward, q));
  return THPVariable_Wrap(y);
  END_HANDLE_TH_ERRORS
}

}  // namespace normkit
