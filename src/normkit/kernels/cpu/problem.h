// What the glue hands to a kernel: sizes, options and pointers. Plain data, no templates, so that
// it looks the same to every build of the kernels.
#pragma once

#include <cstdint>

namespace normkit {

enum class Type : int { f32, f64, bf16, f16 };
enum class Over : int { batch, ghost, group, position };
// linear: z above zero and slope * z below, so 1 is no activation and 0 is ReLU.
enum class Act : int { linear, silu, gelu };

struct Problem {
  int64_t n, c, s;     // samples, channels, positions
  Over over;           // which elements share moments; core/pools.py
  int64_t groups;      // of channels (group) or parts of the batch (ghost)
  bool last;           // channels lie last in memory
  bool centred;        // false: root mean square
  bool own;            // moments of the values themselves; false: given, one per channel
  double eps;
  Act act;
  double slope;
  bool past;           // the tensors are too large to be in a cache when they are needed next
  Type type;           // of x, residual, y, dy, dx, dresidual

  // Of the accumulator's type: double for f64, else float.
  const void *weight, *bias;      // c each, or null
  // (3, pools): mean, what rounding took from it, 1/sqrt(variance + eps).
  void* stats;
  void* var;                      // pools, or null: biased variance, written where own

  const void *x, *residual;       // residual may be null
  void* y;                        // null (batch, and group of s > 1): the moments are all

  // Backward only. dx may be the memory of dy.
  const void *dy, *saved_y;       // saved_y: in place of the residual, where it tells act'
  void *dx, *dresidual;           // null: not wanted
  void *dweight, *dbias;          // c each, or null
};

// Throws: there is no memory for so many bytes. A parallel loop that it ends fails as a whole.
[[noreturn]] void no_memory(int64_t bytes);

// Runs body(begin, end, context) over parts of [0, count), in any order, on any threads.
using Body = void (*)(int64_t begin, int64_t end, void* context);
struct Threads {
  void (*run)(int64_t count, int64_t grain, Body body, void* context);
  int64_t count;
};

}  // namespace normkit
