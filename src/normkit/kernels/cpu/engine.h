// The kernels' interface in C. It knows no tensor, no Python and no thread pool: a caller fills an
// nk_problem with sizes and pointers and passes a function that runs a loop on its own threads.
//
// The input is seen as (n, c, s): samples, channels, positions. tests/kernels/engine_example.py
// calls it from Python without torch.
#pragma once

#include <stdbool.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define NK_API __attribute__((visibility("default")))

// Changes whenever nk_problem or a function does. nk_interface() returns the library's.
#define NK_INTERFACE 1

// What callers in other languages write as names: X(constant, name), numbered from 0.
#define NK_TYPES(X) \
  X(NK_F32, "float32") X(NK_F64, "float64") X(NK_BF16, "bfloat16") X(NK_F16, "float16")
#define NK_POOLS(X) \
  X(NK_BATCH, "batch") X(NK_GHOST, "ghost") X(NK_GROUP, "group") X(NK_POSITION, "position")
// linear: z above zero and slope * z below, so a slope of 1 is no activation and 0 is ReLU.
// relu6: the nearest to z of 0 to 6; slope is 0.
#define NK_ACTS(X) \
  X(NK_LINEAR, "linear") X(NK_SILU, "silu") X(NK_GELU, "gelu") X(NK_RELU6, "relu6")

#define NK_CONSTANT(constant, name) constant,
typedef enum nk_type { NK_TYPES(NK_CONSTANT) } nk_type;
typedef enum nk_pool { NK_POOLS(NK_CONSTANT) } nk_pool;
typedef enum nk_act { NK_ACTS(NK_CONSTANT) } nk_act;
#undef NK_CONSTANT

typedef struct nk_problem {
  int64_t n, c, s;
  nk_pool pool;         // which elements share moments; core/pools.py
  int64_t groups;       // of channels (group) or parts of the batch (ghost)
  bool channels_last;   // in memory; matters only where s > 1
  bool centred;         // false: root mean square
  bool fixed_stats;     // normalize with moments that nk_fixed_stats wrote, one per channel
  double eps;
  nk_act act;
  double slope;         // of NK_LINEAR
  nk_type type;         // of x, residual, y, dy, saved_y, dx, dresidual

  // Of the accumulator's type, nk_accumulator(type).
  const void *weight, *bias;    // c each, or null
  // (3, pools): mean, what rounding took from it, 1/sqrt(variance + eps).
  void* stats;
  void* var;                    // pools, or null: biased variance, unless fixed_stats

  const void *x, *residual;     // residual may be null
  void* y;                      // null in nk_moments

  // Backward only. dx may be the memory of dy.
  const void *dy, *saved_y;     // saved_y: in place of the residual, where it tells act'
  void *dx, *dresidual;         // null: not wanted
  void *dweight, *dbias;        // c each, of the accumulator's type, or null
} nk_problem;

// run calls body(begin, end, context) for parts of [0, count), at least `grain` long, in any order
// on any threads, returns when all are done, and returns 0 unless the loop failed.
typedef void (*nk_body)(int64_t begin, int64_t end, void* context);
typedef struct nk_threads {
  int (*run)(int64_t count, int64_t grain, nk_body body, void* context);
  int64_t count;
} nk_threads;

// Results of a call. A positive one is the number of bytes for which there was no memory.
enum { NK_OK = 0, NK_INVALID = -1, NK_UNSUPPORTED = -2, NK_THREADS_FAILED = -3 };

// y, and unless fixed_stats the stats. threads: null for one.
NK_API int64_t nk_forward(const nk_problem* problem, const nk_threads* threads);
// Gradients, from the stats that the forward pass wrote.
NK_API int64_t nk_backward(const nk_problem* problem, const nk_threads* threads);
// The stats alone; NK_UNSUPPORTED for pools that are normalized as they are read.
NK_API int64_t nk_moments(const nk_problem* problem, const nk_threads* threads);

// How many pools have moments, or 0 where there is no such problem: an axis is empty, the groups
// do not divide what they group.
NK_API int64_t nk_pools(const nk_problem* problem);

// The type that sums, parameters and moments have: float64 for itself, float32 for all others.
NK_API nk_type nk_accumulator(nk_type type);
// The machine epsilon of the accumulator: eps of RMS normalization where none is named.
NK_API double nk_epsilon(nk_type type);

// Writes stats for fixed_stats from a mean and a biased variance per channel, of the accumulator's
// type.
NK_API void nk_fixed_stats(const nk_problem* problem, const void* mean, const void* var);
// running = running * (1 - share) + value * factor * share, elementwise, of the type F32 or F64.
NK_API void nk_update_running(nk_type type, int64_t count, void* running, const void* value,
                              double share, double factor);

// The builds that this processor runs, best first, ending with null; the first is in use.
NK_API const char* const* nk_builds(void);
NK_API const char* nk_build_in_use(void);
// Compute with another build from now on; NK_INVALID where there is no such build.
NK_API int64_t nk_use(const char* build);

// For tests: compute as if the last cache had so many bytes. Returns the bytes assumed before.
NK_API int64_t nk_assume_cache(int64_t bytes);

NK_API int nk_interface(void);

#ifdef __cplusplus
}
#endif
