// From Python to the kernels and through autograd: the only file here that knows PyTorch.
//
// A node of PyTorch's own graph, because a Python autograd function costs more than a small layer
// takes in all (docs/log.md). Whatever this does not take, it refuses by returning None, and the
// caller goes another way.
#include <Python.h>

#include <ATen/ATen.h>
#include <ATen/record_function.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <torch/csrc/Exceptions.h>
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/csrc/autograd/python_variable.h>
#include <torch/csrc/autograd/saved_variable.h>
#include <torch/csrc/stable/c/shim.h>

#ifdef __linux__
#include <sys/mman.h>
#include <unistd.h>
#endif

#include <array>
#include <atomic>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "kernels.h"

namespace normkit {
namespace {

using at::Tensor;
using torch::autograd::SavedVariable;
using torch::autograd::variable_list;

// ---- which build ----

using Kernel = void (*)(const Problem&, const Threads&);
struct Build {
  const char* name;
  bool runs;
  Kernel forward, backward;
};

const std::vector<Build>& builds() {
  static const std::vector<Build> all = [] {
    std::vector<Build> found;
#ifdef NORMKIT_HAS_AVX512
    found.push_back({"avx512",
                     __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq"),
                     avx512::forward, avx512::backward});
#endif
#ifdef NORMKIT_HAS_AVX2
    found.push_back({"avx2", __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                                 __builtin_cpu_supports("f16c"),
                     avx2::forward, avx2::backward});
#endif
    found.push_back({"plain", true, plain::forward, plain::backward});
    return found;
  }();
  return all;
}

const Build* best() {
  for (const Build& b : builds())
    if (b.runs) return &b;
  return nullptr;  // not reached: plain runs
}
std::atomic<const Build*> chosen{nullptr};
const Build& build() {
  const Build* b = chosen.load(std::memory_order_relaxed);
  if (b == nullptr) chosen.store(b = best());
  return *b;
}

// ---- threads: PyTorch's own ----

Threads threads() {
  uint32_t count = 1;
  torch_get_num_threads(&count);
  return {[](int64_t count, int64_t grain, Body body, void* context) {
            if (torch_parallel_for(0, count, grain, body, context) != 0)
              throw std::runtime_error("normkit: a parallel loop failed");
          },
          static_cast<int64_t>(count)};
}

// ---- a call ----

struct Options {
  Over over;
  int64_t groups;
  double eps;
  Act act;
  double slope;
  bool centred, own;
};

bool tells(const Options& o) { return o.act == Act::linear && o.slope >= 0; }
bool no_activation(const Options& o) { return o.act == Act::linear && o.slope == 1; }

at::ScalarType accumulator(at::ScalarType t) { return t == at::kDouble ? at::kDouble : at::kFloat; }

std::optional<Type> type_of(at::ScalarType t) {
  switch (t) {
    case at::kFloat: return Type::f32;
    case at::kDouble: return Type::f64;
    case at::kBFloat16: return Type::bf16;
    case at::kHalf: return Type::f16;
    default: return std::nullopt;
  }
}

bool is_last(const Tensor& x) {
  if (x.is_contiguous()) return false;
  return x.dim() == 4 ? x.is_contiguous(at::MemoryFormat::ChannelsLast)
                      : x.dim() == 5 && x.is_contiguous(at::MemoryFormat::ChannelsLast3d);
}
at::MemoryFormat format(const Tensor& x) {
  if (!is_last(x)) return at::MemoryFormat::Contiguous;
  return x.dim() == 4 ? at::MemoryFormat::ChannelsLast : at::MemoryFormat::ChannelsLast3d;
}

// gamma or beta as the kernels read it.
Tensor as_parameter(const Tensor& t, const Tensor& x) {
  if (!t.defined()) return t;
  return t.detach().to(accumulator(x.scalar_type())).contiguous();
}
const void* pointer(const Tensor& t) { return t.defined() ? t.const_data_ptr() : nullptr; }
void* written(const Tensor& t) { return t.defined() ? t.mutable_data_ptr() : nullptr; }

// A tensor like x, to be written over entirely.
//
// glibc asks the system for a large block each time and gives it back each time; the first touch of
// each 4 KB page then costs more than what is computed on it. Where the system has larger pages on
// request, this requests them for what lies wholly inside the block.
Tensor unwritten(const Tensor& x) {
  Tensor y = at::empty_like(x);
#ifdef __linux__
  constexpr uintptr_t large = uintptr_t{1} << 21;
  if (y.nbytes() >= 2 * large) {
    const uintptr_t begin = reinterpret_cast<uintptr_t>(y.mutable_data_ptr());
    const uintptr_t from = (begin + large - 1) / large * large;
    const uintptr_t to = (begin + y.nbytes()) / large * large;
    if (to > from) madvise(reinterpret_cast<void*>(from), to - from, MADV_HUGEPAGE);
  }
#endif
  return y;
}

// Bytes of the last cache before memory.
int64_t last_cache() {
  static const int64_t bytes = [] {
    int64_t found = 0;
#if defined(__linux__) && defined(_SC_LEVEL3_CACHE_SIZE)
    found = sysconf(_SC_LEVEL3_CACHE_SIZE);
    if (found <= 0) found = sysconf(_SC_LEVEL2_CACHE_SIZE);
#endif
    return found > 0 ? found : int64_t{32} << 20;
  }();
  return bytes;
}

// Whether to write so many tensors like x past the caches: the next operation reads what this one
// wrote, and of tensors that take more than half of the last cache little would be left.
bool past_caches(const Tensor& x, int64_t tensors) {
  return static_cast<int64_t>(x.nbytes()) * tensors > last_cache() / 8;
}

Problem problem(const Tensor& x, const Options& o) {
  Problem q{};
  q.n = x.size(0), q.c = x.size(1), q.s = q.n > 0 && q.c > 0 ? x.numel() / (q.n * q.c) : 0;
  q.over = o.over, q.groups = o.groups, q.last = is_last(x) && q.s > 1;
  q.centred = o.centred, q.own = o.own, q.eps = o.eps, q.act = o.act, q.slope = o.slope;
  q.type = *type_of(x.scalar_type());
  q.x = pointer(x);
  return q;
}

int64_t pools(const Problem& q) {
  if (!q.own) return q.c;
  switch (q.over) {
    case Over::batch: return q.c;
    case Over::ghost: return q.groups * q.c;
    case Over::group: return q.n * q.groups;
    case Over::position: return q.n * q.s;
  }
  return 0;
}

// ---- backward ----

PyObject* differentiable = nullptr;  // the gradients as a function that can be differentiated

struct NormalizeBackward : public torch::autograd::Node {
  SavedVariable x_, weight_, bias_, other_;  // other: the residual, or the output in its place
  bool has_weight = false, has_bias = false, has_residual = false;
  bool keeps_residual = false, keeps_output = false;
  Tensor stats;
  Options options{};

  std::string name() const override { return "NormalizeBackward"; }

  void release_variables() override {
    std::lock_guard<std::mutex> lock(mutex_);
    x_.reset_data(), weight_.reset_data(), bias_.reset_data(), other_.reset_data();
    stats.reset();
    released = true;
  }
  bool released = false;

  variable_list apply(variable_list&& grads) override {
    std::lock_guard<std::mutex> lock(mutex_);
    variable_list found(4);
    if (!grads[0].defined()) return found;
    TORCH_CHECK(!released, torch::autograd::ERR_BACKWARD_TWICE);
    Tensor dy = std::move(grads[0]);
    const Tensor x = x_.unpack();
    const Tensor weight = has_weight ? weight_.unpack() : Tensor();
    const Tensor bias = has_bias ? bias_.unpack() : Tensor();
    const Tensor other = keeps_output     ? other_.unpack(getptr())
                         : keeps_residual ? other_.unpack()
                                          : Tensor();
    std::array<bool, 4> needs{};
    for (size_t i = 0; i < 4; ++i) needs[i] = task_should_compute_output(i);
    if (at::GradMode::is_enabled()) return twice(dy, x, weight, bias, other, needs);

    // Written over dy where nobody else can see it: one tensor less to allocate and to pass over.
    const bool own_dy = dy.use_count() == 1 && dy.storage().use_count() == 1;
    if (dy.scalar_type() != x.scalar_type()) dy = dy.to(x.scalar_type());
    const Tensor kept = dy;
    dy = dy.contiguous(format(x));
    const bool fresh = own_dy || !dy.is_same(kept);

    Problem q = problem(x, options);
    const Tensor w = as_parameter(weight, x), b = as_parameter(bias, x);
    q.weight = pointer(w), q.bias = pointer(b), q.stats = written(stats);
    q.dy = pointer(dy);
    if (keeps_output) q.saved_y = pointer(other);
    const Tensor residual = keeps_residual ? other.contiguous(format(x)) : Tensor();
    q.residual = pointer(residual);
    Tensor dx, dresidual, dw, db;
    const bool passes = needs[3] && no_activation(options);
    if (needs[0])
      dx = fresh && !passes && dy.strides() == x.strides() ? dy : unwritten(x);
    if (needs[3]) dresidual = passes ? dy : unwritten(x);
    const auto small = x.options().dtype(accumulator(x.scalar_type()));
    if (needs[1] && has_weight) dw = at::empty({q.c}, small);
    if (needs[2] && has_bias) db = at::empty({q.c}, small);
    q.dx = written(dx), q.dweight = written(dw), q.dbias = written(db);
    q.dresidual = passes ? nullptr : written(dresidual);
    q.past = past_caches(x, 2 + (dx.defined() && !dx.is_same(dy)) + other.defined() +
                                (dresidual.defined() && !passes));
    build().backward(q, threads());
    found[0] = dx;
    if (dw.defined()) found[1] = like(dw, weight);
    if (db.defined()) found[2] = like(db, bias);
    found[3] = dresidual;
    return found;
  }

 private:
  static Tensor like(const Tensor& gradient, const Tensor& parameter) {
    const Tensor g = gradient.dim() == parameter.dim() ? gradient : gradient.view(parameter.sizes());
    return g.scalar_type() == parameter.scalar_type() ? g : g.to(parameter.scalar_type());
  }

  variable_list twice(const Tensor& dy, const Tensor& x, const Tensor& weight, const Tensor& bias,
                      const Tensor& other, const std::array<bool, 4>& needs) const {
    PyGILState_STATE state = PyGILState_Ensure();
    variable_list found(4);
    PyObject* result = PyObject_CallFunction(
        differentiable, "NNNNNNNO(OOOO)(iLdidO)", THPVariable_Wrap(dy), THPVariable_Wrap(x),
        THPVariable_Wrap(keeps_output ? other : Tensor()), THPVariable_Wrap(weight),
        THPVariable_Wrap(bias), THPVariable_Wrap(keeps_residual ? other : Tensor()),
        THPVariable_Wrap(stats), options.own ? Py_True : Py_False, needs[0] ? Py_True : Py_False,
        needs[1] ? Py_True : Py_False, needs[2] ? Py_True : Py_False, needs[3] ? Py_True : Py_False,
        static_cast<int>(options.over), static_cast<long long>(options.groups), options.eps,
        static_cast<int>(options.act), options.slope, options.centred ? Py_True : Py_False);
    if (result == nullptr) {
      python_error error;
      error.persist();
      PyGILState_Release(state);
      throw std::move(error);
    }
    for (Py_ssize_t i = 0; i < 4; ++i) {
      PyObject* item = PySequence_GetItem(result, i);
      if (item != nullptr && item != Py_None) found[i] = THPVariable_Unpack(item);
      Py_XDECREF(item);
    }
    Py_DECREF(result);
    PyGILState_Release(state);
    return found;
  }
};

// ---- forward ----

// A tensor, nothing, or what we do not take.
struct Argument {
  Tensor tensor;
  bool fits = true;
  explicit Argument(PyObject* o) {
    if (o == Py_None) return;
    fits = THPVariable_CheckExact(o);
    if (fits) tensor = THPVariable_Unpack(o);
  }
};

// Whether something around the call has to see the operations: a transform, a mode, a tracer.
bool watched() {
  constexpr c10::DispatchKeySet keys({
      c10::DispatchKey::FuncTorchDynamicLayerFrontMode,
      c10::DispatchKey::FuncTorchDynamicLayerBackMode, c10::DispatchKey::Python,
      c10::DispatchKey::PythonDispatcher, c10::DispatchKey::Tracer});
  return c10::impl::tls_local_dispatch_key_set().included_.has_any(keys);
}

bool plain_cpu(const Tensor& t) {
  return t.device().is_cpu() && t.layout() == at::kStrided && !t.is_nested() && !t.is_neg() &&
         !t._fw_grad(0).defined();
}

bool takes_parameter(const Tensor& t, const Tensor& x) {
  return !t.defined() ||
         (plain_cpu(t) && t.numel() == x.size(1) && type_of(t.scalar_type()).has_value());
}

bool takes(const Tensor& x, const Options& o) {
  if (!x.defined() || !plain_cpu(x) || x.dim() < 2 || x.numel() == 0) return false;
  if (!type_of(x.scalar_type()) || (!x.is_contiguous() && !is_last(x))) return false;
  if (o.over == Over::ghost) return o.groups > 0 && x.size(0) % o.groups == 0;
  return o.over != Over::group || (o.groups > 0 && x.size(1) % o.groups == 0);
}

void step_towards(const Tensor& running, const Tensor& value, double share, double factor) {
  AT_DISPATCH_FLOATING_TYPES(running.scalar_type(), "normkit::running", [&] {
    scalar_t* r = running.mutable_data_ptr<scalar_t>();
    const scalar_t* v = value.const_data_ptr<scalar_t>();
    // Weighed, not r + (v - r) * share: normkit/nn/averages.py says why.
    for (int64_t i = 0; i < value.numel(); ++i)
      r[i] = static_cast<scalar_t>(r[i] * (1 - share) + v[i] * factor * share);
  });
  running.unsafeGetTensorImpl()->bump_version();
}

// normalize(x, weight, bias, residual, mean, var, over, groups, eps, act, slope, centred,
//           running_mean, running_var, momentum, moments) -> y, or (y, mean, var) where moments
// are asked for, or None where this is not for us.
PyObject* normalize(PyObject*, PyObject* const* args, Py_ssize_t count) {
  HANDLE_TH_ERRORS
  TORCH_CHECK(count == 16, "normalize takes 16 arguments, ", count, " given");
  Options o{};
  o.over = static_cast<Over>(PyLong_AsLong(args[6]));
  o.groups = PyLong_AsLongLong(args[7]);
  o.eps = PyFloat_AsDouble(args[8]);
  o.act = static_cast<Act>(PyLong_AsLong(args[9]));
  o.slope = PyFloat_AsDouble(args[10]);
  o.centred = args[11] == Py_True;
  o.own = args[4] == Py_None;
  const double momentum = PyFloat_AsDouble(args[14]);
  const bool moments = args[15] == Py_True;
  if (PyErr_Occurred()) throw python_error();

  if (watched()) Py_RETURN_NONE;
  const Argument ax(args[0]), aw(args[1]), ab(args[2]), ar(args[3]), am(args[4]), av(args[5]),
      arm(args[12]), arv(args[13]);
  if (!(ax.fits && aw.fits && ab.fits && ar.fits && am.fits && av.fits && arm.fits && arv.fits))
    Py_RETURN_NONE;
  const Tensor &x = ax.tensor, &weight = aw.tensor, &bias = ab.tensor;
  if (!takes(x, o) || !takes_parameter(weight, x) || !takes_parameter(bias, x) ||
      !takes_parameter(am.tensor, x) || !takes_parameter(av.tensor, x))
    Py_RETURN_NONE;
  const at::ScalarType acc = accumulator(x.scalar_type());
  for (const Tensor* t : {&arm.tensor, &arv.tensor})
    if (t->defined() && !(takes_parameter(*t, x) && t->scalar_type() == acc && t->is_contiguous()))
      Py_RETURN_NONE;
  if (ar.tensor.defined() &&
      !(plain_cpu(ar.tensor) && ar.tensor.scalar_type() == x.scalar_type() &&
        ar.tensor.sizes() == x.sizes()))
    Py_RETURN_NONE;

  RECORD_FUNCTION("normkit::normalize", std::vector<c10::IValue>{});
  Tensor y, stats;
  const bool graph = at::GradMode::is_enabled() &&
                     torch::autograd::compute_requires_grad(x, weight, bias, ar.tensor);
  Problem q = problem(x, o);
  {
    at::AutoDispatchBelowADInplaceOrView below;
    const int64_t p = pools(q);
    const bool wants_var = o.own && (moments || arm.tensor.defined());
    stats = at::empty({wants_var ? 4 : 3, p}, x.options().dtype(acc));
    y = unwritten(x);
    const Tensor residual =
        ar.tensor.defined() ? ar.tensor.contiguous(format(x)) : Tensor();
    const Tensor w = as_parameter(weight, x), b = as_parameter(bias, x);
    if (!o.own) {
      const Tensor mean = as_parameter(am.tensor, x), var = as_parameter(av.tensor, x);
      AT_DISPATCH_FLOATING_TYPES(acc, "normkit::given", [&] {
        scalar_t* s = stats.mutable_data_ptr<scalar_t>();
        const scalar_t *m = mean.const_data_ptr<scalar_t>(), *v = var.const_data_ptr<scalar_t>();
        for (int64_t i = 0; i < p; ++i) {
          s[i] = m[i], s[p + i] = 0;
          s[2 * p + i] = static_cast<scalar_t>(1.0 / std::sqrt(double(v[i]) + o.eps));
        }
      });
    }
    q.weight = pointer(w), q.bias = pointer(b), q.residual = pointer(residual);
    q.stats = written(stats), q.y = written(y);
    q.past = past_caches(x, residual.defined() ? 3 : 2);
    if (wants_var)
      q.var = static_cast<char*>(q.stats) + 3 * p * static_cast<int64_t>(stats.element_size());
    const Threads pool = threads();
    PyThreadState* state = PyEval_SaveThread();
    try {
      build().forward(q, pool);
    } catch (...) {
      PyEval_RestoreThread(state);
      throw;
    }
    PyEval_RestoreThread(state);
    if (arm.tensor.defined()) {
      const double n = static_cast<double>(x.numel() / q.c);
      step_towards(arm.tensor, stats[0], momentum, 1.0);
      step_towards(arv.tensor, stats[3], momentum, n / (n - 1));
    }
  }
  if (graph) {
    auto node = c10::make_intrusive<NormalizeBackward>();
    node->set_next_edges(
        torch::autograd::collect_next_edges(x, weight, bias, ar.tensor));
    node->options = o;
    node->stats = stats;
    node->has_weight = weight.defined(), node->has_bias = bias.defined();
    node->has_residual = ar.tensor.defined();
    node->x_ = SavedVariable(x, false);
    if (weight.defined()) node->weight_ = SavedVariable(weight, false);
    if (bias.defined()) node->bias_ = SavedVariable(bias, false);
    torch::autograd::set_history(y, node);
    if (node->has_residual && !no_activation(o)) {
      // The output is kept by the next layer anyway; the residual perhaps by nobody.
      node->keeps_output = tells(o), node->keeps_residual = !tells(o);
      node->other_ = tells(o) ? SavedVariable(y, true) : SavedVariable(ar.tensor, false);
    }
  }
  if (!moments) return THPVariable_Wrap(y);
  const bool found = o.own;
  return Py_BuildValue("NNN", THPVariable_Wrap(y), THPVariable_Wrap(found ? stats[0] : Tensor()),
                       THPVariable_Wrap(found ? stats[3] : Tensor()));
  END_HANDLE_TH_ERRORS
}

// ---- the module ----

PyObject* use(PyObject*, PyObject* name) {
  const char* wanted = PyUnicode_AsUTF8(name);
  if (wanted == nullptr) return nullptr;
  for (const Build& b : builds())
    if (b.runs && std::string(wanted) == b.name) {
      chosen.store(&b);
      Py_RETURN_NONE;
    }
  PyErr_Format(PyExc_ValueError, "no build '%s' that this machine runs", wanted);
  return nullptr;
}
PyObject* in_use(PyObject*, PyObject*) { return PyUnicode_FromString(build().name); }
PyObject* set_differentiable(PyObject*, PyObject* function) {
  Py_INCREF(function);
  Py_XSETREF(differentiable, function);
  Py_RETURN_NONE;
}

PyMethodDef methods[] = {
    {"normalize", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(normalize)),
     METH_FASTCALL, "Normalize by the fused kernels, or return None."},
    {"use", use, METH_O, "Choose a build by name."},
    {"in_use", in_use, METH_NOARGS, "Name of the build in use."},
    {"set_differentiable", set_differentiable, METH_O,
     "Set what computes the gradients where they are to be differentiated again."},
    {nullptr, nullptr, 0, nullptr}};
PyModuleDef module = {PyModuleDef_HEAD_INIT, "_cpu", "Fused normalization on a CPU.", -1, methods,
                      nullptr, nullptr, nullptr, nullptr};

}  // namespace
}  // namespace normkit

PyMODINIT_FUNC PyInit__cpu() {
  PyObject* m = PyModule_Create(&normkit::module);
  if (m == nullptr) return nullptr;
  PyModule_AddStringConstant(m, "torch_version", NORMKIT_TORCH);
  PyObject* names = PyList_New(0);
  for (const normkit::Build& b : normkit::builds())
    if (b.runs) {
      PyObject* name = PyUnicode_FromString(b.name);
      PyList_Append(names, name);
      Py_DECREF(name);
    }
  PyModule_AddObject(m, "builds", PyList_AsTuple(names));
  Py_DECREF(names);
  return m;
}
