// Tensors as the engine's problems: types, layouts, pointers, threads, errors.
#pragma once

#include <ATen/EmptyTensor.h>
#include <ATen/PythonTorchFunctionTLS.h>
#include <ATen/core/Tensor.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <torch/csrc/PyInterpreter.h>

#ifdef __linux__
#include <sys/mman.h>
#endif

#include <cstring>
#include <optional>

#include "engine.h"
#include "torch_versions.h"

namespace normkit {

using at::Tensor;

// ---- types and layouts ----

inline std::optional<nk_type> type_of(at::ScalarType t) {
  switch (t) {
    case at::kFloat: return NK_F32;
    case at::kDouble: return NK_F64;
    case at::kBFloat16: return NK_BF16;
    case at::kHalf: return NK_F16;
    default: return std::nullopt;
  }
}
// Only for types that the engine knows.
inline at::ScalarType accumulator(at::ScalarType t) {
  return nk_accumulator(*type_of(t)) == NK_F64 ? at::kDouble : at::kFloat;
}

inline bool is_channels_last(const Tensor& x) {
  if (x.is_contiguous()) return false;
  return x.dim() == 4 ? x.is_contiguous(at::MemoryFormat::ChannelsLast)
                      : x.dim() == 5 && x.is_contiguous(at::MemoryFormat::ChannelsLast3d);
}
// Whether the engine walks over x as it is; row: how many values are in a row, or 0 for (N, C, *).
inline bool is_dense(const Tensor& x, int64_t row) {
  return x.is_contiguous() || (row == 0 && is_channels_last(x));
}
inline at::MemoryFormat format(const Tensor& x) {
  if (!is_channels_last(x)) return at::MemoryFormat::Contiguous;
  return x.dim() == 4 ? at::MemoryFormat::ChannelsLast : at::MemoryFormat::ChannelsLast3d;
}

// ---- what a tensor must be ----

// Whether a torch function mode is active. That of a default device looks at constructors alone.
inline bool in_function_mode() {
  using TLS = at::impl::PythonTorchFunctionTLS;
  for (int64_t i = TLS::stack_len(); i-- > 0;) {
    PyObject* const mode = TLS::get_stack_at(i)->ptr(getPyInterpreter());
    if (std::strcmp(Py_TYPE(mode)->tp_name, "DeviceContext") != 0) return true;
  }
  return false;
}

// Whether something around the call has to see the operations: a transform, a mode, a tracer.
inline bool observed() {
  constexpr c10::DispatchKeySet keys({
      c10::DispatchKey::FuncTorchDynamicLayerFrontMode,
      c10::DispatchKey::FuncTorchDynamicLayerBackMode, c10::DispatchKey::Python,
      c10::DispatchKey::PythonDispatcher, c10::DispatchKey::Tracer});
  return c10::impl::tls_local_dispatch_key_set().included_.has_any(keys) || in_function_mode();
}

// Dense values on the CPU and nothing else: not nested, negated, functional, a tangent beside it.
inline bool is_plain(const Tensor& t) {
  constexpr c10::DispatchKeySet keys(
      {c10::DispatchKey::CPU, c10::DispatchKey::AutogradCPU, c10::DispatchKey::AutocastCPU,
       c10::DispatchKey::ADInplaceOrView});
  return (t.key_set() | keys) == keys && !t._fw_grad(0).defined();
}

// ---- memory ----

inline const void* pointer(const Tensor& t) { return t.defined() ? t.const_data_ptr() : nullptr; }
inline void* writable(const Tensor& t) { return t.defined() ? t.mutable_data_ptr() : nullptr; }

// A parameter or buffer as the kernels read it. \a copy keeps what had to be converted.
inline const void* parameter(const Tensor& t, at::ScalarType type, Tensor& copy) {
  if (!t.defined() || (t.scalar_type() == type && t.is_contiguous())) return pointer(t);
  copy = t.detach().to(type).contiguous();
  return pointer(copy);
}

// Of a few values. Past PyTorch's dispatcher, which takes longer than the allocation.
inline Tensor uninitialized(at::IntArrayRef sizes, at::ScalarType type) {
  return Tensor(at::detail::empty_cpu(sizes, type));
}

// A tensor like x, which is dense, to be written over entirely.
//
// glibc asks the system for a large block each time and gives it back each time; the first touch of
// each 4 KB page then costs more than what is computed on it. Where the system has larger pages on
// request, this requests them for what lies wholly inside the block.
inline Tensor uninitialized_like(const Tensor& x) {
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

// ---- problems ----

struct Options {
  nk_pool pool;
  int64_t groups;
  double eps;
  nk_act act;
  double slope;
  bool centred, fixed_stats;
  int64_t row;  // the input is rows of so many values, whatever its axes are; 0: it is (N, C, *)
};

// Whether the output says which slope z had.
inline bool output_gives_slope(const Options& o) {
  return (o.act == NK_LINEAR && o.slope >= 0) || o.act == NK_RELU6;
}
inline bool no_activation(const Options& o) { return o.act == NK_LINEAR && o.slope == 1; }

inline nk_problem problem_of(const Tensor& x, const Options& o) {
  nk_problem p{};
  if (o.row > 0) {
    p.n = x.numel() / o.row, p.c = o.row, p.s = 1;
  } else {
    p.n = x.size(0), p.c = x.size(1), p.s = p.n > 0 && p.c > 0 ? x.numel() / (p.n * p.c) : 0;
    p.channels_last = p.s > 1 && is_channels_last(x);
  }
  p.pool = o.pool, p.groups = o.groups, p.centred = o.centred, p.fixed_stats = o.fixed_stats;
  p.eps = o.eps, p.act = o.act, p.slope = o.slope;
  p.type = *type_of(x.scalar_type());
  p.x = pointer(x);
  return p;
}

// ---- calls ----

inline void check(int64_t status) {
  TORCH_CHECK_WITH(OutOfMemoryError, status <= 0, "normkit: no memory for ", status,
                   " bytes of sums");
  TORCH_CHECK(status != NK_THREADS_FAILED, "normkit: a parallel loop failed");
  TORCH_CHECK(status == NK_OK, "normkit: the engine refused a problem (", status, ")");
}

}  // namespace normkit
