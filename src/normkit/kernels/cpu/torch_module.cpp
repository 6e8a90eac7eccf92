// The extension module: what Python calls. All that knows PyTorch is in the torch_*.h included
// here, compiled as one unit; the engine is a library of its own, which knows neither.

// Without it torch's headers declare all of its operations, which takes a third of the time to
// compile. Those that are not methods of a tensor need an include of their own, <ATen/ops/NAME.h>.
#define AT_PER_OPERATOR_HEADERS
#include "torch_again.h"
#include "torch_operations.h"

namespace normkit {
namespace {

// The arguments of refuses and normalize: x, weight, bias, residual, mean, var, pool, groups, eps,
// act, slope, centred, running_mean, running_var, momentum, moments. Returns why they are none that
// the engine may see, or null.
const char* parse(PyObject* const* args, Py_ssize_t count, Call& call) {
  TORCH_CHECK(count == 16, "Expected 16 arguments; received ", count, ".");
  Options& o = call.o;
  o.pool = static_cast<nk_pool>(PyLong_AsLong(args[6]));
  o.groups = PyLong_AsLongLong(args[7]);
  o.eps = PyFloat_AsDouble(args[8]);
  o.act = static_cast<nk_act>(PyLong_AsLong(args[9]));
  o.slope = PyFloat_AsDouble(args[10]);
  o.centred = args[11] == Py_True;
  o.fixed_stats = args[4] != Py_None;
  call.momentum = PyFloat_AsDouble(args[14]);
  call.moments = args[15] == Py_True;
  if (PyErr_Occurred()) throw python_error();
  if (observed()) return "a mode or transform around the call observes its operations";
  if (!read(args[0], call.x)) return "the input is of a subclass of Tensor";
  if (read(args[1], call.weight) && read(args[2], call.bias) && read(args[3], call.residual) &&
      read(args[4], call.mean) && read(args[5], call.var) && read(args[12], call.running_mean) &&
      read(args[13], call.running_var))
    return nullptr;
  return "a weight, bias, residual or statistic is of a subclass of Tensor";
}

// refuses(...) -> why normalize(...) returns None for x made dense, as a clause; or None.
PyObject* refuses(PyObject*, PyObject* const* args, Py_ssize_t count) {
  HANDLE_TH_ERRORS
  Call call;
  const char* reason = parse(args, count, call);
  if (reason == nullptr) reason = refusal(call);
  if (reason == nullptr) Py_RETURN_NONE;
  return PyUnicode_FromString(reason);
  END_HANDLE_TH_ERRORS
}

// normalize(...) -> y, or (y, mean, var) where moments are asked for or the buffers have been left to
// the caller since the moments may not fit, or None where the engine does not take the call.
PyObject* normalize(PyObject*, PyObject* const* args, Py_ssize_t count) {
  HANDLE_TH_ERRORS
  Call call;
  if (parse(args, count, call) != nullptr || !takes(call)) Py_RETURN_NONE;

  auto [y, stats] = compute(call);
  if (!y.defined()) {
    call.running_mean = call.running_var = Tensor();
    call.moments = true;
    std::tie(y, stats) = compute(call);
  }
  if (!call.moments) return THPVariable_Wrap(std::move(y));
  Tensor mean, var;
  if (!call.o.fixed_stats) {
    // With what rounding took from it: where the means of parts are merged, their differences count.
    mean = stats[0].to(at::kDouble).add(stats[1]), var = stats[3];
  }
  return Py_BuildValue("NNN", THPVariable_Wrap(y), THPVariable_Wrap(mean), THPVariable_Wrap(var));
  END_HANDLE_TH_ERRORS
}

// moments(x, pool, groups) -> (4, pools): mean, what rounding took from it, 1/deviation, biased
// variance; or None where the engine does not take the call. Reads x and writes nothing else.
PyObject* moments(PyObject*, PyObject* const* args, Py_ssize_t count) {
  HANDLE_TH_ERRORS
  TORCH_CHECK(count == 3, "moments takes 3 arguments, ", count, " given");
  Call call;
  call.o = {static_cast<nk_pool>(PyLong_AsLong(args[1])), PyLong_AsLongLong(args[2]), 0.0,
            NK_LINEAR, 1.0, true, false, 0};
  if (PyErr_Occurred()) throw python_error();
  if (observed() || !read(args[0], call.x) || !takes(call)) Py_RETURN_NONE;
  nk_problem q = problem_of(call.x, call.o);
  Tensor stats;
  {
    at::AutoDispatchBelowADInplaceOrView below;
    const int64_t p = nk_pools(&q);
    stats = uninitialized({4, p}, accumulator(call.x.scalar_type()));
    q.stats = writable(stats);
    q.var = static_cast<char*>(q.stats) + 3 * p * static_cast<int64_t>(stats.element_size());
    const int64_t status = without_gil(nk_moments, q);
    if (status == NK_UNSUPPORTED) Py_RETURN_NONE;
    check(status);
  }
  return THPVariable_Wrap(std::move(stats));
  END_HANDLE_TH_ERRORS
}

// ---- builds ----

PyObject* use(PyObject*, PyObject* name) {
  const char* const build = PyUnicode_AsUTF8(name);
  if (build == nullptr) return nullptr;
  if (nk_use(build) == NK_OK) Py_RETURN_NONE;
  PyErr_Format(PyExc_ValueError, "Expected a build that this machine can run; received '%s'.",
               build);
  return nullptr;
}
PyObject* in_use(PyObject*, PyObject*) { return PyUnicode_FromString(nk_build_in_use()); }
PyObject* assume_cache(PyObject*, PyObject* bytes) {
  const long long size = PyLong_AsLongLong(bytes);
  if (size == -1 && PyErr_Occurred()) return nullptr;
  return PyLong_FromLongLong(nk_assume_cache(size));
}

PyObject* set_differentiable(PyObject*, PyObject* function) {
  Py_INCREF(function);
  Py_XSETREF(differentiable, function);
  Py_RETURN_NONE;
}

// ---- what Python says too, for the test that compares ----

// Whether a call would have to be seen through, or is not of dense CPU values.
PyObject* observes(PyObject*, PyObject* x) {
  Tensor tensor;
  const bool taken = !observed() && read(x, tensor) && tensor.defined() && is_plain(tensor);
  return PyBool_FromLong(!taken);
}
PyObject* recomputing(PyObject*, PyObject*) { return PyBool_FromLong(in_backward()); }

PyObject* table(PyObject*, PyObject*) {
#define NORMKIT_NAME(constant, name) name,
#define NORMKIT_STATS_NAME(name) #name,
  const auto tuple = [](std::initializer_list<const char*> names) {
    PyObject* const result = PyTuple_New(static_cast<Py_ssize_t>(names.size()));
    Py_ssize_t i = 0;
    for (const char* name : names) PyTuple_SET_ITEM(result, i++, PyUnicode_FromString(name));
    return result;
  };
  const char* const types[] = {NK_TYPES(NORMKIT_NAME)};
  PyObject *const accumulators = PyDict_New(), *const epsilons = PyDict_New();
  int type = 0;
  for (const char* name : types) {
    PyObject* const accumulator = PyUnicode_FromString(types[nk_accumulator(nk_type(type))]);
    PyObject* const epsilon = PyFloat_FromDouble(nk_epsilon(nk_type(type++)));
    PyDict_SetItemString(accumulators, name, accumulator), Py_DECREF(accumulator);
    PyDict_SetItemString(epsilons, name, epsilon), Py_DECREF(epsilon);
  }
  return Py_BuildValue(
      "{sNsNsNsNsNsNsNs{sLsLsLsL}}", "types", tuple({NK_TYPES(NORMKIT_NAME)}), "pools",
      tuple({NK_POOLS(NORMKIT_NAME)}), "acts", tuple({NK_ACTS(NORMKIT_NAME)}), "stats",
      tuple({NORMKIT_LAYER_STATS(NORMKIT_STATS_NAME)}), "averages",
      tuple({NORMKIT_AVERAGES(NORMKIT_NAME)}), "accumulator", accumulators, "epsilon",
      epsilons, "signature", "centred", static_cast<long long>(kCentred), "rows",
      static_cast<long long>(kRows), "ranks", static_cast<long long>(kRanks), "most_rank",
      static_cast<long long>(kMostRank));
#undef NORMKIT_NAME
#undef NORMKIT_STATS_NAME
}

// ---- the module ----

template <class F> PyCFunction fast(F function) {
  return reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(function));
}
PyMethodDef methods[] = {
    {"refuses", fast(refuses), METH_FASTCALL, "Why normalize returns None, or None."},
    {"normalize", fast(normalize), METH_FASTCALL,
     "Normalize by the fused kernels, or return None."},
    {"moments", fast(moments), METH_FASTCALL, "Mean and variance alone, or None."},
    {"layer", fast(layer), METH_FASTCALL, "All of a layer's forward pass, or None."},
    {"kept", kept, METH_O, "What the node of an output keeps beside tensors, or None."},
    {"again", fast(again), METH_FASTCALL, "An output computed again, without a graph."},
    {"use", use, METH_O, "Choose a build by name."},
    {"assume_cache", assume_cache, METH_O, "Assume a size of the last cache; return the old one."},
    {"in_use", in_use, METH_NOARGS, "Name of the build in use."},
    {"set_differentiable", set_differentiable, METH_O,
     "Set what computes the gradients where they are to be differentiated again."},
    {"observes", observes, METH_O, "Whether the call has to be left to PyTorch's operations."},
    {"recomputing", recomputing, METH_NOARGS, "Whether a backward pass is running."},
    {"table", table, METH_NOARGS, "Names, numbers and rules that Python repeats."},
    {nullptr, nullptr, 0, nullptr}};
PyModuleDef module = {PyModuleDef_HEAD_INIT, "_cpu", "Fused normalization on a CPU.", -1, methods,
                      nullptr, nullptr, nullptr, nullptr};

}  // namespace
}  // namespace normkit

PyMODINIT_FUNC PyInit__cpu() {
  if (nk_interface() != NK_INTERFACE) {
    PyErr_SetString(PyExc_ImportError, "the engine beside it is of another build");
    return nullptr;
  }
  PyObject* const m = PyModule_Create(&normkit::module);
  if (m == nullptr) return nullptr;
  PyModule_AddStringConstant(m, "torch_version", NORMKIT_TORCH);
  PyObject* const names = PyList_New(0);
  for (const char* const* build = nk_builds(); *build; ++build) {
    PyObject* const name = PyUnicode_FromString(*build);
    PyList_Append(names, name), Py_DECREF(name);
  }
  PyModule_AddObject(m, "builds", PyList_AsTuple(names));
  Py_DECREF(names);
  return m;
}
