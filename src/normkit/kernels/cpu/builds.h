// The builds of the kernels, side by side: best first, each with what it asks of the processor.
#pragma once

#include "problem.h"

#if defined(__x86_64__) || defined(_M_X64)
#define NORMKIT_RUNS_AVX512                                                         \
  (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&       \
   __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq"))
#define NORMKIT_RUNS_AVX2                                                           \
  (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&               \
   __builtin_cpu_supports("f16c"))
#endif

#define NORMKIT_DECLARE(build)                              \
  namespace normkit::build {                                \
  void forward(const Problem& q, const nk_threads& threads);   \
  void backward(const Problem& q, const nk_threads& threads);  \
  }

NORMKIT_DECLARE(avx512)
NORMKIT_DECLARE(avx2)
NORMKIT_DECLARE(baseline)
