// From Python to the kernels and through autograd: the only file here that knows PyTorch.
//
// A node of PyTorch's own graph, because a Python autograd function costs more than a small layer
// takes in all (docs/log.md). Whatever this does not take, it refuses by returning None before it
// has written anything, and the caller goes another way.
#include <Python.h>

#include <ATen/ATen.h>
#include <ATen/EmptyTensor.h>
#include <ATen/record_function.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <torch/csrc/Exceptions.h>
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/csrc/autograd/graph_task.h>
#include <torch/csrc/autograd/python_variable.h>
#include <torch/csrc/autograd/saved_variable.h>
#include <torch/csrc/dynamo/compiled_autograd.h>
#include <torch/csrc/stable/c/shim.h>

#ifdef __linux__
#include <sys/mman.h>
#endif

#include <algorithm>
#include <array>
#include <atomic>
#include <cmath>
#include <fstream>
#include <limits>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "kernels.h"

namespace normkit {

void no_memory(int64_t bytes) {
  TORCH_CHECK_WITH(OutOfMemoryError, false, "normkit: no memory for ", bytes, " bytes of sums");
}

namespace {

using at::Tensor;
using torch::autograd::CompiledNodeArgs;
using torch::autograd::SavedVariable;
using torch::autograd::SwapSavedVariables;
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
  int64_t row;  // the input is rows of so many values, whatever its axes are; 0: it is (N, C, *)
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

const void* pointer(const Tensor& t) { return t.defined() ? t.const_data_ptr() : nullptr; }
void* written(const Tensor& t) { return t.defined() ? t.mutable_data_ptr() : nullptr; }

// A parameter or buffer as the kernels read it. \a copy keeps what had to be converted.
const void* parameter(const Tensor& t, at::ScalarType type, Tensor& copy) {
  if (!t.defined() || (t.scalar_type() == type && t.is_contiguous())) return pointer(t);
  copy = t.detach().to(type).contiguous();
  return pointer(copy);
}

// Of what is small. Past PyTorch's dispatcher, which takes longer than the allocation.
Tensor unwritten(at::IntArrayRef sizes, at::ScalarType type) {
  return Tensor(at::detail::empty_cpu(sizes, type));
}

// A tensor like x, which is dense, to be written over entirely.
//
// glibc asks the system for a large block each time and gives it back each time; the first touch of
// each 4 KB page then costs more than what is computed on it. Where the system has larger pages on
// request, this requests them for what lies wholly inside the block.
Tensor unwritten(const Tensor& x) {
  Tensor y(at::detail::empty_strided_cpu(x.sizes(), x.strides(), x.scalar_type()));
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

// Bytes of the last cache before memory, as Linux tells them. (sysconf adds up caches that are
// other processors'.) Elsewhere a usual size.
int64_t found_cache() {
  for (const char* index : {"3", "2"}) {
    std::ifstream file(std::string("/sys/devices/system/cpu/cpu0/cache/index") + index + "/size");
    int64_t size = 0;
    char unit = ' ';
    if (file >> size >> unit && size > 0) return size << (unit == 'M' ? 20 : unit == 'K' ? 10 : 0);
  }
  return int64_t{32} << 20;
}
std::atomic<int64_t>& last_cache() {
  static std::atomic<int64_t> bytes{found_cache()};
  return bytes;
}

// Whether to write past the caches, where so many tensors like x take part. A plain store reads
// the line it writes to, and pushes out what the next operations want. The share of the cache is
// measured, docs/kernels.md: other programs use it too.
bool past_caches(const Tensor& x, int64_t tensors) {
  return static_cast<int64_t>(x.nbytes()) * tensors > last_cache().load() / 4;
}

Problem problem(const Tensor& x, const Options& o) {
  Problem q{};
  if (o.row > 0) {
    q.n = x.numel() / o.row, q.c = o.row, q.s = 1;
  } else {
    q.n = x.size(0), q.c = x.size(1), q.s = q.n > 0 && q.c > 0 ? x.numel() / (q.n * q.c) : 0;
    q.last = q.s > 1 && is_last(x);
  }
  q.over = o.over, q.groups = o.groups;
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

// Whether something around the call has to see the operations: a transform, a mode, a tracer.
bool watched() {
  constexpr c10::DispatchKeySet keys({
      c10::DispatchKey::FuncTorchDynamicLayerFrontMode,
      c10::DispatchKey::FuncTorchDynamicLayerBackMode, c10::DispatchKey::Python,
      c10::DispatchKey::PythonDispatcher, c10::DispatchKey::Tracer});
  return c10::impl::tls_local_dispatch_key_set().included_.has_any(keys);
}

// Dense values on the CPU and nothing else: not nested, negated, functional, a tangent beside it.
bool plain_cpu(const Tensor& t) {
  constexpr c10::DispatchKeySet keys(
      {c10::DispatchKey::CPU, c10::DispatchKey::AutogradCPU, c10::DispatchKey::AutocastCPU,
       c10::DispatchKey::ADInplaceOrView});
  return (t.key_set() | keys) == keys && !t._fw_grad(0).defined();
}

// ---- backward ----

PyObject* differentiable = nullptr;  // the gradients as a function that can be differentiated

// What a backward pass computes from, besides dy. Tensors that it does without are undefined.
struct Kept {
  Options o{};
  Tensor x, weight, bias, other, stats;  // other: the output where that tells act', or the residual
  bool output = false;                   // which of the two
  std::array<bool, 4> needs{};           // gradients of x, weight, bias, residual
};

Tensor of_type(const Tensor& gradient, const Tensor& parameter) {
  const at::ScalarType type = parameter.scalar_type();
  return gradient.scalar_type() == type ? gradient : gradient.to(type);
}

variable_list gradients(const Kept& kept, Tensor dy) {
  const auto& [o, unpacked, weight, bias, other, stats, output, needs] = kept;
  // A hook on saved tensors may hand back another layout; it must not hand back another tensor.
  const Tensor x = unpacked.is_contiguous() || (o.row == 0 && is_last(unpacked))
                       ? unpacked
                       : unpacked.contiguous();
  TORCH_CHECK(plain_cpu(x) && x.sizes() == dy.sizes() &&
                  accumulator(x.scalar_type()) == stats.scalar_type() &&
                  (!other.defined() || (plain_cpu(other) && other.sizes() == x.sizes() &&
                                        other.scalar_type() == x.scalar_type())),
              "normkit: a hook on saved tensors handed back a tensor of another shape or type (x is ",
              x.scalar_type(), x.sizes(), ", its gradient ", dy.scalar_type(), dy.sizes(), ")");
  // Written over dy where nobody else can see it: one tensor less to allocate and to pass over.
  const bool own_dy = dy.use_count() == 1 && dy.storage().use_count() == 1;
  if (dy.scalar_type() != x.scalar_type()) dy = dy.to(x.scalar_type());
  const Tensor before = dy;
  dy = dy.contiguous(format(x));
  const bool fresh = own_dy || !dy.is_same(before);

  Problem q = problem(x, o);
  const at::ScalarType acc = accumulator(x.scalar_type());
  Tensor w, b;
  q.weight = parameter(weight, acc, w), q.bias = parameter(bias, acc, b);
  q.stats = written(stats), q.dy = pointer(dy);
  const Tensor laid = other.defined() ? other.contiguous(format(x)) : Tensor();
  (output ? q.saved_y : q.residual) = pointer(laid);
  Tensor dx, dresidual, dw, db;
  const bool passes = needs[3] && no_activation(o);
  if (needs[0]) dx = fresh && !passes && dy.strides() == x.strides() ? dy : unwritten(x);
  if (needs[3]) dresidual = passes ? dy : unwritten(x);
  if (needs[1] && weight.defined()) dw = unwritten(weight.sizes(), acc);
  if (needs[2] && bias.defined()) db = unwritten(bias.sizes(), acc);
  q.dx = written(dx), q.dweight = written(dw), q.dbias = written(db);
  q.dresidual = passes ? nullptr : written(dresidual);
  q.past = past_caches(x, 2 + (dx.defined() && !dx.is_same(dy)) + other.defined() +
                              (dresidual.defined() && !passes));
  build().backward(q, threads());
  variable_list found(4);
  found[0] = dx;
  if (dw.defined()) found[1] = of_type(dw, weight);
  if (db.defined()) found[2] = of_type(db, bias);
  found[3] = dresidual;
  return found;
}

variable_list differentiable_gradients(const Kept& kept, const Tensor& dy) {
  const Options& o = kept.o;
  const auto truth = [](bool value) { return value ? Py_True : Py_False; };
  const auto& needs = kept.needs;
  PyGILState_STATE state = PyGILState_Ensure();
  variable_list found(4);
  PyObject* result = PyObject_CallFunction(
      differentiable, "NNNNNNNO(OOOO)(iLdidOL)", THPVariable_Wrap(dy), THPVariable_Wrap(kept.x),
      THPVariable_Wrap(kept.output ? kept.other : Tensor()), THPVariable_Wrap(kept.weight),
      THPVariable_Wrap(kept.bias), THPVariable_Wrap(kept.output ? Tensor() : kept.other),
      THPVariable_Wrap(kept.stats), truth(o.own), truth(needs[0]), truth(needs[1]),
      truth(needs[2]), truth(needs[3]), static_cast<int>(o.over),
      static_cast<long long>(o.groups), o.eps, static_cast<int>(o.act), o.slope, truth(o.centred),
      static_cast<long long>(o.row));
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

struct NormalizeBackward : public torch::autograd::Node {
  SavedVariable x_, weight_, bias_, other_;
  Tensor unread_;        // the bias where only its shape matters, so that it may change meanwhile
  bool output_ = false;  // what other_ is; struct Kept
  Tensor stats_;
  Options options_{};
  bool released_ = false;

  std::string name() const override { return "NormalizeBackward"; }

  void release_variables() override {
    std::lock_guard<std::mutex> lock(mutex_);
    x_.reset_data(), weight_.reset_data(), bias_.reset_data(), other_.reset_data();
    unread_.reset(), stats_.reset();
    released_ = true;
  }

  variable_list apply(variable_list&& grads) override {
    std::lock_guard<std::mutex> lock(mutex_);
    if (!grads[0].defined()) return variable_list(4);
    TORCH_CHECK(!released_, torch::autograd::ERR_BACKWARD_TWICE);
    Tensor dy = std::move(grads[0]);
    const Kept kept = unpack();
    // Batched, negated, of a subclass, with a tangent: what the operations of PyTorch know to do.
    const bool plain = !at::GradMode::is_enabled() && !watched() && plain_cpu(dy);
    return plain ? gradients(kept, std::move(dy)) : differentiable_gradients(kept, dy);
  }

  // Compiled autograd: the node stays one call, of kernels that nobody looks into.
  void compiled_args(CompiledNodeArgs& args) const override {
    TORCH_CHECK(!released_, torch::autograd::ERR_BACKWARD_TWICE);
    for (const SavedVariable* saved : {&x_, &weight_, &bias_}) args.collect(*saved, false);
    args.collect(other_, output_);
    args.collect(unread_), args.collect(stats_);
    args.collect(output_), args.collect(options_.centred), args.collect(options_.own);
    for (int64_t number : numbers(options_)) args.collect(number);
    args.collect(options_.eps), args.collect(options_.slope);
  }

  variable_list apply_with_saved(const variable_list& grads, SwapSavedVariables& saved) override {
    namespace compiled = torch::dynamo::autograd;
    for (SavedVariable* v : {&x_, &weight_, &bias_, &other_}) saved.before(*v);
    saved.before(unread_), saved.before(stats_);
    const Kept kept = unpack();
    compiled::PackedArgs args;
    for (const Tensor* t : {&kept.x, &kept.weight, &kept.bias, &kept.other, &kept.stats})
      args.pack(*t);
    args.pack(std::vector<bool>(kept.needs.begin(), kept.needs.end()));
    args.pack(kept.output), args.pack(kept.o.centred), args.pack(kept.o.own);
    for (int64_t number : numbers(kept.o)) args.pack(number);
    args.pack(kept.o.eps), args.pack(kept.o.slope);
    std::vector<at::TypePtr> schema;
    for (const c10::IValue& v : args.vec())
      schema.push_back(v.isTensor() ? at::TypePtr(at::TensorType::get()) : v.type());
    const auto& compiler = compiled::getPyCompilerInterface();
    const std::string bound = compiler->bind_function(
        saved.get_py_compiler(), name(), from_packed, schema, /*is_custom_function*/ true,
        /*is_traceable*/ false);
    variable_list found = compiler->call_function(
        saved.get_py_compiler(), "apply_functional", bound, grads, args.vec(),
        compiled::IValuePacker<std::vector<std::optional<torch::autograd::InputMetadata>>>::pack(
            compiled::get_input_metadata(next_edges())));
    for (SavedVariable* v : {&x_, &weight_, &bias_, &other_}) saved.after(*v);
    saved.after(unread_), saved.after(stats_);
    return found;
  }

 private:
  Kept unpack() {
    Kept kept{options_, x_.unpack(), weight_.unpack(),
              unread_.defined() ? unread_ : bias_.unpack(),
              output_ ? other_.unpack(getptr()) : other_.unpack(), stats_, output_, {}};
    for (size_t i = 0; i < 4; ++i) kept.needs[i] = task_should_compute_output(i);
    return kept;
  }

  static std::array<int64_t, 4> numbers(const Options& o) {
    return {static_cast<int64_t>(o.over), o.groups, static_cast<int64_t>(o.act), o.row};
  }

  static variable_list from_packed(const variable_list& grads,
                                   const std::vector<c10::IValue>& values) {
    if (!grads[0].defined()) return variable_list(4);
    torch::dynamo::autograd::PackedArgs args(values);
    Kept kept;
    for (Tensor* t : {&kept.x, &kept.weight, &kept.bias, &kept.other, &kept.stats})
      *t = args.unpack<Tensor>();
    const std::vector<bool> needs = args.unpack<std::vector<bool>>();
    std::copy(needs.begin(), needs.end(), kept.needs.begin());
    kept.output = args.unpack<bool>(), kept.o.centred = args.unpack<bool>();
    kept.o.own = args.unpack<bool>();
    kept.o.over = static_cast<Over>(args.unpack<int64_t>());
    kept.o.groups = args.unpack<int64_t>();
    kept.o.act = static_cast<Act>(args.unpack<int64_t>());
    kept.o.row = args.unpack<int64_t>();
    kept.o.eps = args.unpack<double>(), kept.o.slope = args.unpack<double>();
    at::NoGradGuard none;
    return gradients(kept, grads[0]);
  }
};

// ---- forward ----

// What a call computes from. Tensors that it does without are undefined.
struct Call {
  Options o{};
  Tensor x, weight, bias, residual;
  Tensor mean, var;                            // to normalize with, where these are given
  Tensor running_mean, running_var, tracked;   // to move: the averages, and the count of batches
  double momentum = 0;
  bool moments = false;                        // somebody asks for mean and variance
};

// False where o is neither a tensor, exactly, nor None.
bool read(PyObject* o, Tensor& tensor) {
  if (o == nullptr) return false;
  if (o == Py_None) return true;
  if (!THPVariable_CheckExact(o)) return false;
  tensor = THPVariable_Unpack(o);
  return true;
}

bool takes_parameter(const Tensor& t, int64_t channels) {
  return !t.defined() ||
         (plain_cpu(t) && t.numel() == channels && type_of(t.scalar_type()).has_value());
}

bool takes_running(const Tensor& t, int64_t channels, at::ScalarType type) {
  return !t.defined() || (takes_parameter(t, channels) && t.scalar_type() == type &&
                          t.is_contiguous() && !t.is_inference());
}

bool takes(const Call& call) {
  const Tensor& x = call.x;
  const Options& o = call.o;
  if (!x.defined() || !plain_cpu(x) || x.numel() == 0 || !type_of(x.scalar_type())) return false;
  if (o.row > 0 ? !x.is_contiguous() : x.dim() < 2 || (!x.is_contiguous() && !is_last(x)))
    return false;
  const int64_t channels = o.row > 0 ? o.row : x.size(1);
  if (o.over == Over::ghost && (o.groups <= 0 || x.size(0) % o.groups != 0)) return false;
  if (o.over == Over::group && (o.groups <= 0 || channels % o.groups != 0)) return false;
  for (const Tensor* t : {&call.weight, &call.bias, &call.mean, &call.var})
    if (!takes_parameter(*t, channels)) return false;
  const at::ScalarType acc = accumulator(x.scalar_type());
  for (const Tensor* t : {&call.running_mean, &call.running_var})
    if (!takes_running(*t, channels, acc)) return false;
  const Tensor &count = call.tracked, &r = call.residual;
  if (count.defined() && !(plain_cpu(count) && count.scalar_type() == at::kLong &&
                           count.dim() == 0 && !count.is_inference()))
    return false;
  return !r.defined() ||
         (plain_cpu(r) && r.scalar_type() == x.scalar_type() && r.sizes() == x.sizes());
}

void step_towards(const Tensor& running, const void* value, double share, double factor) {
  AT_DISPATCH_FLOATING_TYPES(running.scalar_type(), "normkit::running", [&] {
    scalar_t* r = running.mutable_data_ptr<scalar_t>();
    const scalar_t* v = static_cast<const scalar_t*>(value);
    // Weighed, not r + (v - r) * share: normkit/nn/averages.py says why.
    for (int64_t i = 0, count = running.numel(); i < count; ++i)
      r[i] = static_cast<scalar_t>(r[i] * (1 - share) + v[i] * factor * share);
  });
  running.unsafeGetTensorImpl()->bump_version();
}

// mean, 0 and 1/sqrt(variance + eps) of the moments that are given, as the kernels read them.
void take_given(const Call& call, const Tensor& stats) {
  const int64_t p = stats.size(1);
  Tensor copies[2];
  const void* mean = parameter(call.mean, stats.scalar_type(), copies[0]);
  const void* var = parameter(call.var, stats.scalar_type(), copies[1]);
  AT_DISPATCH_FLOATING_TYPES(stats.scalar_type(), "normkit::given", [&] {
    scalar_t* s = stats.mutable_data_ptr<scalar_t>();
    const scalar_t *m = static_cast<const scalar_t*>(mean), *v = static_cast<const scalar_t*>(var);
    for (int64_t i = 0; i < p; ++i) {
      s[i] = m[i], s[p + i] = 0;
      s[2 * p + i] = static_cast<scalar_t>(1.0 / std::sqrt(double(v[i]) + call.o.eps));
    }
  });
}

// The kernel, with other Python threads let in meanwhile.
void forward(const Problem& q) {
  const Threads pool = threads();
  PyThreadState* state = PyEval_SaveThread();
  try {
    build().forward(q, pool);
  } catch (...) {
    PyEval_RestoreThread(state);
    throw;
  }
  PyEval_RestoreThread(state);
}

// The output with its graph, and (3 or 4, pools) statistics; the fourth row is the variance.
std::pair<Tensor, Tensor> compute(const Call& call) {
  RECORD_FUNCTION("normkit::normalize", std::vector<c10::IValue>{});
  const Tensor &x = call.x, &weight = call.weight, &bias = call.bias, &residual = call.residual;
  const Options& o = call.o;
  const bool graph = at::GradMode::is_enabled() &&
                     torch::autograd::compute_requires_grad(x, weight, bias, residual);
  const bool moves = call.running_mean.defined();
  Problem q = problem(x, o);
  Tensor y, stats;
  {
    at::AutoDispatchBelowADInplaceOrView below;
    const at::ScalarType acc = accumulator(x.scalar_type());
    const int64_t p = pools(q);
    const bool wants_var = o.own && (call.moments || moves);
    y = unwritten(x);
    stats = unwritten({wants_var ? 4 : 3, p}, acc);
    Tensor w, b;
    q.weight = parameter(weight, acc, w), q.bias = parameter(bias, acc, b);
    const Tensor r = residual.defined() ? residual.contiguous(format(x)) : Tensor();
    q.residual = pointer(r);
    if (!o.own) take_given(call, stats);
    q.stats = written(stats), q.y = written(y);
    q.past = past_caches(x, residual.defined() ? 3 : 2);
    if (wants_var)
      q.var = static_cast<char*>(q.stats) + 3 * p * static_cast<int64_t>(stats.element_size());
    forward(q);
  }
  if (graph) {
    auto node = c10::make_intrusive<NormalizeBackward>();
    node->set_next_edges(torch::autograd::collect_next_edges(x, weight, bias, residual));
    node->options_ = o;
    node->stats_ = stats;
    node->x_ = SavedVariable(x, false);
    node->weight_ = SavedVariable(weight, false);
    // The output is kept by the next layer anyway; the residual perhaps by nobody.
    const bool keeps = residual.defined() && !no_activation(o);
    node->output_ = keeps && tells(o);
    if (node->output_ || no_activation(o)) {
      if (bias.defined()) node->unread_ = bias.detach();
    } else {
      node->bias_ = SavedVariable(bias, false);
    }
    torch::autograd::set_history(y, node);
    if (keeps) node->other_ = SavedVariable(node->output_ ? y : residual, node->output_);
  }
  // Last, where nothing can fail any more.
  if (moves) {
    const double n = static_cast<double>(x.numel() / q.c);
    step_towards(call.running_mean, q.stats, call.momentum, 1.0);
    step_towards(call.running_var, q.var, call.momentum, n / (n - 1));
  }
  if (call.tracked.defined()) {
    ++*call.tracked.mutable_data_ptr<int64_t>();
    call.tracked.unsafeGetTensorImpl()->bump_version();
  }
  return {std::move(y), std::move(stats)};
}

// normalize(x, weight, bias, residual, mean, var, over, groups, eps, act, slope, centred,
//           running_mean, running_var, momentum, moments) -> y, or (y, mean, var) where moments
// are asked for, or None where this is not for us.
PyObject* normalize(PyObject*, PyObject* const* args, Py_ssize_t count) {
  HANDLE_TH_ERRORS
  TORCH_CHECK(count == 16, "normalize takes 16 arguments, ", count, " given");
  Call call;
  Options& o = call.o;
  o.over = static_cast<Over>(PyLong_AsLong(args[6]));
  o.groups = PyLong_AsLongLong(args[7]);
  o.eps = PyFloat_AsDouble(args[8]);
  o.act = static_cast<Act>(PyLong_AsLong(args[9]));
  o.slope = PyFloat_AsDouble(args[10]);
  o.centred = args[11] == Py_True;
  o.own = args[4] == Py_None;
  call.momentum = PyFloat_AsDouble(args[14]);
  call.moments = args[15] == Py_True;
  if (PyErr_Occurred()) throw python_error();

  if (watched() || !read(args[0], call.x) || !read(args[1], call.weight) ||
      !read(args[2], call.bias) || !read(args[3], call.residual) || !read(args[4], call.mean) ||
      !read(args[5], call.var) || !read(args[12], call.running_mean) ||
      !read(args[13], call.running_var) || !takes(call))
    Py_RETURN_NONE;

  auto [y, stats] = compute(call);
  if (!call.moments) return THPVariable_Wrap(std::move(y));
  return Py_BuildValue("NNN", THPVariable_Wrap(y), THPVariable_Wrap(o.own ? stats[0] : Tensor()),
                       THPVariable_Wrap(o.own ? stats[3] : Tensor()));
  END_HANDLE_TH_ERRORS
}

// moments(x, over, groups) -> (4, pools): mean, what rounding took from it, 1/deviation, biased
// variance; or None where this is not for us. Reads x and writes nothing else.
PyObject* moments(PyObject*, PyObject* const* args, Py_ssize_t count) {
  HANDLE_TH_ERRORS
  TORCH_CHECK(count == 3, "moments takes 3 arguments, ", count, " given");
  Call call;
  call.o = {static_cast<Over>(PyLong_AsLong(args[1])), PyLong_AsLongLong(args[2]), 0.0,
            Act::linear, 1.0, true, true, 0};
  if (PyErr_Occurred()) throw python_error();
  if (watched() || !read(args[0], call.x) || !takes(call)) Py_RETURN_NONE;
  Problem q = problem(call.x, call.o);
  // The walks that stop after the moments.
  if (q.over != Over::batch && (q.over != Over::group || q.s == 1)) Py_RETURN_NONE;
  Tensor stats;
  {
    at::AutoDispatchBelowADInplaceOrView below;
    const int64_t p = pools(q);
    stats = unwritten({4, p}, accumulator(call.x.scalar_type()));
    q.stats = written(stats);
    q.var = static_cast<char*>(q.stats) + 3 * p * static_cast<int64_t>(stats.element_size());
    forward(q);
  }
  return THPVariable_Wrap(std::move(stats));
  END_HANDLE_TH_ERRORS
}

// What of a layer's buffers takes part. The numbers are fused.py's.
enum class Memory : int { none, moved, given };

// Layers keep tensors in dictionaries. What stands elsewhere, such as a parametrized weight, is
// not found and so refused.
bool find(PyObject* holder, PyObject* name, Tensor& tensor) {
  PyObject* found = PyDict_GetItemWithError(holder, name);
  if (found == nullptr && PyErr_Occurred()) PyErr_Clear();
  return read(found, tensor);
}
bool is_holder(PyObject* o) { return PyDict_CheckExact(o) || PyODict_CheckExact(o); }

bool find_memory(PyObject* buffers, Memory memory, bool counted, Call& call) {
  static PyObject* const mean = PyUnicode_InternFromString("running_mean");
  static PyObject* const var = PyUnicode_InternFromString("running_var");
  static PyObject* const tracked = PyUnicode_InternFromString("num_batches_tracked");
  if (buffers == Py_None) return memory == Memory::none;
  Tensor m, v;
  if (!is_holder(buffers) || !find(buffers, mean, m) || !find(buffers, var, v)) return false;
  // One without the other is no memory.
  if (m.defined() != (memory != Memory::none) || v.defined() != m.defined()) return false;
  if (memory == Memory::given) {
    call.mean = std::move(m), call.var = std::move(v);
  } else if (memory == Memory::moved) {
    // A checkpointed layer runs again within the backward pass. A batch counts once; Layer.counts
    // in normkit/nn/layer.py.
    const bool again = counted && torch::autograd::get_current_graph_task_id() != -1;
    if (!find(buffers, tracked, call.tracked)) return false;
    if (again)
      call.tracked.reset();
    else
      call.running_mean = std::move(m), call.running_var = std::move(v);
  }
  return true;
}

bool is_size(PyObject* o, int64_t size) {
  int overflow = 0;  // then the number is -1
  return PyLong_CheckExact(o) && PyLong_AsLongLongAndOverflow(o, &overflow) == size;
}

// How many values are in a row where x is (*, shape), or 0 where it is not.
int64_t row_of(const Tensor& x, PyObject* shape) {
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

// layer(x, residual, parameters, buffers, kind, groups, shape, eps, act, slope, memory, momentum,
//       counted) -> y, or None where anything is not as usual: then nothing was written, and the
// layer takes its input step by step, with all checks and their messages.
//
// kind: over + 4 * centred + 8 * rows + 16 * (1 << rank, for each rank that the layer takes).
// groups: None for one for each channel. shape: of rows; otherwise the number of channels or None.
PyObject* layer(PyObject*, PyObject* const* args, Py_ssize_t count) {
  HANDLE_TH_ERRORS
  TORCH_CHECK(count == 13, "layer takes 13 arguments, ", count, " given");
  Call call;
  Options& o = call.o;
  const Tensor& x = call.x;
  if (watched() || !read(args[0], call.x) || !x.defined() || !plain_cpu(x)) Py_RETURN_NONE;

  const int64_t kind = PyLong_AsLongLong(args[4]);
  const int64_t rank = x.dim();
  if (rank > 32 || !((kind >> 4) >> rank & 1)) Py_RETURN_NONE;
  o.act = static_cast<Act>(PyLong_AsLong(args[8])), o.slope = PyFloat_AsDouble(args[9]);
  const Memory memory = static_cast<Memory>(PyLong_AsLong(args[10]));
  o.own = memory != Memory::given, o.centred = (kind & 4) != 0;
  o.over = o.own ? static_cast<Over>(kind & 3) : Over::batch;  // given ones are per channel
  o.groups = args[5] == Py_None ? 0 : PyLong_AsLongLong(args[5]);
  if (PyErr_Occurred()) {  // what is no number will be told by the layer
    PyErr_Clear();
    Py_RETURN_NONE;
  }

  PyObject *const shape = args[6], *const eps = args[7], *const momentum = args[11];
  if (kind & 8) {
    if ((o.row = row_of(x, shape)) == 0) Py_RETURN_NONE;
  } else if (rank < 2 || (shape != Py_None && !is_size(shape, x.size(1)))) {
    Py_RETURN_NONE;
  }
  if (args[5] == Py_None) o.groups = o.row > 0 ? o.row : x.size(1);

  if (PyFloat_CheckExact(eps)) {
    o.eps = PyFloat_AS_DOUBLE(eps);
  } else if (eps == Py_None && !o.centred) {
    o.eps = x.scalar_type() == at::kDouble ? std::numeric_limits<double>::epsilon()
                                           : std::numeric_limits<float>::epsilon();
  }
  if (!(o.eps > 0)) Py_RETURN_NONE;
  if (memory == Memory::moved) {
    if (!PyFloat_CheckExact(momentum)) Py_RETURN_NONE;
    call.momentum = PyFloat_AS_DOUBLE(momentum);
  }

  static PyObject* const weight = PyUnicode_InternFromString("weight");
  static PyObject* const bias = PyUnicode_InternFromString("bias");
  if (!is_holder(args[2]) || !find(args[2], weight, call.weight) || !read(args[1], call.residual))
    Py_RETURN_NONE;
  // RMS normalization has no bias.
  if (o.centred && !find(args[2], bias, call.bias)) Py_RETURN_NONE;
  if (!find_memory(args[3], memory, args[12] == Py_True, call) || !takes(call)) Py_RETURN_NONE;
  // Of one value there is no variance.
  const Problem q = problem(x, o);
  if (o.own && pools(q) == x.numel()) Py_RETURN_NONE;
  return THPVariable_Wrap(compute(call).first);
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
// For tests: as if the last cache had so many bytes. Returns how many it was taken to have.
PyObject* assume_cache(PyObject*, PyObject* bytes) {
  const long long wanted = PyLong_AsLongLong(bytes);
  if (wanted == -1 && PyErr_Occurred()) return nullptr;
  return PyLong_FromLongLong(last_cache().exchange(wanted));
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
    {"moments", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(moments)),
     METH_FASTCALL, "Mean and variance alone, or None."},
    {"layer", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(layer)), METH_FASTCALL,
     "All of a layer's forward pass, or None."},
    {"use", use, METH_O, "Choose a build by name."},
    {"assume_cache", assume_cache, METH_O, "Assume a size of the last cache; return the old one."},
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
