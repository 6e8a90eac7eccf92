// The builds of the kernels, side by side.
#pragma once

#include "problem.h"

#define NORMKIT_DECLARE(build)                              \
  namespace normkit::build {                                \
  void forward(const Problem& q, const Threads& threads);   \
  void backward(const Problem& q, const Threads& threads);  \
  }

NORMKIT_DECLARE(avx512)
NORMKIT_DECLARE(avx2)
NORMKIT_DECLARE(plain)
