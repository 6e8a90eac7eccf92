// What the engine hands to a build: the caller's problem and what the engine adds to it.
#pragma once

#include "engine.h"

namespace normkit {

struct Problem : nk_problem {
  bool streaming;  // the tensors are too large to be in a cache when they are needed next
};

// There was no memory for so many bytes of sums.
struct NoMemory { int64_t bytes; };
// The caller's parallel loop reported an error.
struct ThreadsFailed {};

}  // namespace normkit
