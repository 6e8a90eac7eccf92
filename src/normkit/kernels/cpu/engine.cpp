// The C interface over the builds of the kernels: which build, which stores, which errors.
#include "engine.h"

#include <atomic>
#include <cfloat>
#include <cmath>
#include <cstdio>
#include <cstring>

#include "builds.h"

namespace normkit {
namespace {

// ---- builds ----

using Kernel = void (*)(const Problem&, const nk_threads&);
struct Build {
  Kernel forward, backward;
};
struct Builds {
  static constexpr int kMost = 3;
  const char* names[kMost + 1] = {};  // ends with null
  Build of[kMost];
  int count = 0;

  void add(const char* name, bool runs, const Build& build) {
    if (runs) names[count] = name, of[count++] = build;
  }
  Builds() {
#ifdef NORMKIT_HAS_AVX512
    add("avx512", NORMKIT_RUNS_AVX512, {avx512::forward, avx512::backward});
#endif
#ifdef NORMKIT_HAS_AVX2
    add("avx2", NORMKIT_RUNS_AVX2, {avx2::forward, avx2::backward});
#endif
#ifdef NORMKIT_HAS_BASELINE
    add("baseline", true, {baseline::forward, baseline::backward});
#endif
  }
};
const Builds& builds() {
  static const Builds all;
  return all;
}
std::atomic<int> chosen{0};

// ---- the last cache before memory ----

// In bytes, from Linux. (sysconf adds up caches that belong to other processors.) Elsewhere a
// usual size.
int64_t read_cache_size() {
  for (const char* path : {"/sys/devices/system/cpu/cpu0/cache/index3/size",
                           "/sys/devices/system/cpu/cpu0/cache/index2/size"}) {
    std::FILE* const file = std::fopen(path, "r");
    if (file == nullptr) continue;
    long long size = 0;
    char unit = ' ';
    const bool read = std::fscanf(file, "%lld%c", &size, &unit) >= 1 && size > 0;
    std::fclose(file);
    if (read) return int64_t{size} << (unit == 'M' ? 20 : unit == 'K' ? 10 : 0);
  }
  return int64_t{32} << 20;
}
std::atomic<int64_t>& last_cache() {
  static std::atomic<int64_t> bytes{read_cache_size()};
  return bytes;
}

int64_t size_of(nk_type type) { return type == NK_F64 ? 8 : type == NK_F32 ? 4 : 2; }

// Whether to write past the caches, where so many tensors like x take part. A plain store reads
// the line it writes to, and evicts what the next operations need. The share of the cache is
// measured, docs/kernels.md: other programs use it too.
bool streaming(const nk_problem& p, int64_t tensors) {
  return p.n * p.c * p.s * size_of(p.type) * tensors > last_cache().load() / 4;
}

// ---- a call ----

#define NORMKIT_ONE(constant, name) +1
constexpr int kTypes = 0 NK_TYPES(NORMKIT_ONE), kActs = 0 NK_ACTS(NORMKIT_ONE);
#undef NORMKIT_ONE

bool valid(const nk_problem* p) {
  return p != nullptr && p->x != nullptr && p->stats != nullptr && p->type >= 0 &&
         p->type < kTypes && p->act >= 0 && p->act < kActs && nk_pools(p) > 0;
}

int64_t run(Kernel Build::*pass, const nk_problem& p, int64_t tensors, const nk_threads* threads) {
  const int build = chosen.load(std::memory_order_relaxed);
  if (build >= builds().count) return NK_UNSUPPORTED;  // none that this processor runs
  const Problem q{p, streaming(p, tensors)};
  const nk_threads one{nullptr, 1};
  try {
    (builds().of[build].*pass)(q, threads ? *threads : one);
    return NK_OK;
  } catch (const NoMemory& e) {
    return e.bytes;
  } catch (const ThreadsFailed&) {
    return NK_THREADS_FAILED;
  }
}

template <class A> void fixed_stats(const nk_problem& p, const void* mean, const void* var) {
  A* const stats = static_cast<A*>(p.stats);
  const A *const m = static_cast<const A*>(mean), *const v = static_cast<const A*>(var);
  for (int64_t i = 0; i < p.c; ++i) {
    stats[i] = m[i], stats[p.c + i] = 0;
    stats[2 * p.c + i] = static_cast<A>(1.0 / std::sqrt(double(v[i]) + p.eps));
  }
}

template <class A>
void update_running(int64_t count, void* running, const void* value, double share,
                    double factor) {
  A* const r = static_cast<A*>(running);
  const A* const v = static_cast<const A*>(value);
  // Weighed, not r + (v - r) * share: with a share near 1 that would leave of a small value what
  // rounding leaves of a large running one.
  for (int64_t i = 0; i < count; ++i)
    r[i] = static_cast<A>(r[i] * (1 - share) + v[i] * factor * share);
}

}  // namespace
}  // namespace normkit

using namespace normkit;

int64_t nk_forward(const nk_problem* problem, const nk_threads* threads) {
  if (!valid(problem) || problem->y == nullptr) return NK_INVALID;
  return run(&Build::forward, *problem, problem->residual ? 3 : 2, threads);
}

int64_t nk_moments(const nk_problem* problem, const nk_threads* threads) {
  if (!valid(problem) || problem->y != nullptr || problem->fixed_stats) return NK_INVALID;
  // The walks that can stop after the moments.
  const nk_problem& p = *problem;
  if (p.pool != NK_BATCH && (p.pool != NK_GROUP || p.s == 1)) return NK_UNSUPPORTED;
  return run(&Build::forward, p, 1, threads);
}

int64_t nk_backward(const nk_problem* problem, const nk_threads* threads) {
  if (!valid(problem) || problem->dy == nullptr) return NK_INVALID;
  const nk_problem& p = *problem;
  const int64_t tensors = 2 + (p.dx != nullptr && p.dx != p.dy) + (p.saved_y || p.residual) +
                          (p.dresidual != nullptr);
  return run(&Build::backward, p, tensors, threads);
}

int64_t nk_pools(const nk_problem* problem) {
  const nk_problem& p = *problem;
  if (p.n <= 0 || p.c <= 0 || p.s <= 0) return 0;
  const bool grouped = p.pool == NK_GHOST || p.pool == NK_GROUP;
  if (grouped && (p.groups <= 0 || (p.pool == NK_GHOST ? p.n : p.c) % p.groups != 0)) return 0;
  if (p.fixed_stats) return p.c;
  switch (p.pool) {
    case NK_BATCH: return p.c;
    case NK_GHOST: return p.groups * p.c;
    case NK_GROUP: return p.n * p.groups;
    case NK_POSITION: return p.n * p.s;
    default: return 0;
  }
}

nk_type nk_accumulator(nk_type type) { return type == NK_F64 ? NK_F64 : NK_F32; }
double nk_epsilon(nk_type type) { return type == NK_F64 ? DBL_EPSILON : FLT_EPSILON; }

void nk_fixed_stats(const nk_problem* problem, const void* mean, const void* var) {
  if (problem->type == NK_F64) fixed_stats<double>(*problem, mean, var);
  else fixed_stats<float>(*problem, mean, var);
}
void nk_update_running(nk_type type, int64_t count, void* running, const void* value,
                       double share, double factor) {
  if (type == NK_F64) update_running<double>(count, running, value, share, factor);
  else update_running<float>(count, running, value, share, factor);
}

const char* const* nk_builds(void) { return builds().names; }
const char* nk_build_in_use(void) { return builds().names[chosen.load()]; }
int64_t nk_use(const char* build) {
  for (int i = 0; i < builds().count; ++i)
    if (std::strcmp(build, builds().names[i]) == 0) {
      chosen.store(i);
      return NK_OK;
    }
  return NK_INVALID;
}

int64_t nk_assume_cache(int64_t bytes) { return last_cache().exchange(bytes); }
int nk_interface(void) { return NK_INTERFACE; }
