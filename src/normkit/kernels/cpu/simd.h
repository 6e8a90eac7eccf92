// Vectors of the accumulator's type, and how values of each stored type get in and out of them.
//
// The compiler's vector extension, so that one source serves AVX-512, AVX2, NEON and others;
// intrinsics only for what it cannot express: half precision and masks.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__AVX512F__) || defined(__AVX2__) || defined(__F16C__)
#include <immintrin.h>
#endif

#if defined(__AVX512F__)
#define NORMKIT_WIDTH 64
#elif defined(__AVX2__)
#define NORMKIT_WIDTH 32
#else
#define NORMKIT_WIDTH 16
#endif

#define NORMKIT_INLINE inline __attribute__((always_inline))
#define NORMKIT_LAMBDA __attribute__((always_inline))
// Before a loop over the few vectors of a tile.
#define NORMKIT_UNROLL _Pragma("GCC unroll 4")
// For long and rare functions: inlined everywhere they would be most of the code and of the time
// to compile it.
#define NORMKIT_CALL inline __attribute__((noinline))

// A namespace per build: the same template compiled for two machines must not be merged by the
// linker. For the same reason nothing from the standard library is instantiated in these files.
namespace normkit::NORMKIT_BUILD {

struct bf16 { uint16_t bits; };
struct f16 { uint16_t bits; };

template <class A> struct Lanes;
template <> struct Lanes<float> {
  static constexpr int count = NORMKIT_WIDTH / 4;
  typedef float vector __attribute__((vector_size(NORMKIT_WIDTH)));
  typedef int32_t integers __attribute__((vector_size(NORMKIT_WIDTH)));
  typedef uint32_t bits __attribute__((vector_size(NORMKIT_WIDTH)));
  typedef uint16_t halves __attribute__((vector_size(NORMKIT_WIDTH / 2)));
};
template <> struct Lanes<double> {
  static constexpr int count = NORMKIT_WIDTH / 8;
  typedef double vector __attribute__((vector_size(NORMKIT_WIDTH)));
  typedef int64_t integers __attribute__((vector_size(NORMKIT_WIDTH)));
};

template <class A> using Vec = typename Lanes<A>::vector;
template <class A> constexpr int lanes = Lanes<A>::count;

template <class T> struct Accumulator { using type = float; };
template <> struct Accumulator<double> { using type = double; };
template <class T> using Acc = typename Accumulator<T>::type;

template <class To, class From> NORMKIT_INLINE To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}

template <class A> NORMKIT_INLINE Vec<A> fill(A a) { return Vec<A>{} + a; }

template <class A> NORMKIT_INLINE typename Lanes<A>::integers iota() {
  typename Lanes<A>::integers i{};
  for (int k = 0; k < lanes<A>; ++k) i[k] = k;
  return i;
}

// The first k lanes of v, the others zero.
template <class A> NORMKIT_INLINE Vec<A> keep(Vec<A> v, int64_t k) {
  return iota<A>() < k ? v : Vec<A>{};
}
template <> NORMKIT_INLINE Vec<float> keep<float>(Vec<float> v, int64_t k) {
  return iota<float>() < static_cast<int32_t>(k) ? v : Vec<float>{};
}

// ---- half types, a vector at a time ----

NORMKIT_INLINE Vec<float> widen(bf16, Lanes<float>::halves h) {
  return bit_cast<Vec<float>>(__builtin_convertvector(h, Lanes<float>::bits) << 16);
}

NORMKIT_INLINE Lanes<float>::halves narrow(bf16, Vec<float> v) {
  using Bits = Lanes<float>::bits;
  const Bits u = bit_cast<Bits>(v);
  const Bits rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;  // to nearest, ties to even
  const Bits quiet = (u >> 16) | 0x40u;
  return __builtin_convertvector(v == v ? rounded : quiet, Lanes<float>::halves);
}

NORMKIT_INLINE float half_to_float(uint16_t h) {
  const uint32_t sign = static_cast<uint32_t>(h & 0x8000u) << 16, rest = h & 0x7fffu;
  if (rest >= 0x7c00u) return bit_cast<float>(sign | 0x7f800000u | ((rest & 0x3ffu) << 13));
  // Exponent and mantissa are moved into place; a product then corrects the exponent's bias, which
  // is right for subnormal numbers too.
  const float f = bit_cast<float>(rest << 13) * bit_cast<float>(0x77800000u);  // 2^112
  return bit_cast<float>(bit_cast<uint32_t>(f) | sign);
}

NORMKIT_INLINE uint16_t float_to_half(float f) {
  const uint32_t u = bit_cast<uint32_t>(f), sign = (u >> 16) & 0x8000u, a = u & 0x7fffffffu;
  if (a > 0x7f800000u) return static_cast<uint16_t>(sign | 0x7e00u);
  if (a >= 0x477ff000u) return static_cast<uint16_t>(sign | 0x7c00u);  // 65520 and above
  if (a < 0x38800000u) {  // below 2^-14: adding 0.5 shifts the mantissa to where it belongs
    const float shifted = bit_cast<float>(a) + 0.5f;
    return static_cast<uint16_t>(sign | (bit_cast<uint32_t>(shifted) - 0x3f000000u));
  }
  return static_cast<uint16_t>(sign | ((a - 0x38000000u + 0xfffu + ((a >> 13) & 1u)) >> 13));
}

#if defined(__AVX2__) && defined(__F16C__)
NORMKIT_INLINE
#else
NORMKIT_CALL
#endif
Vec<float> widen(f16, Lanes<float>::halves h) {
#if defined(__AVX512F__)
  return bit_cast<Vec<float>>(_mm512_cvtph_ps(bit_cast<__m256i>(h)));
#elif defined(__AVX2__) && defined(__F16C__)
  return bit_cast<Vec<float>>(_mm256_cvtph_ps(bit_cast<__m128i>(h)));
#else
  Vec<float> v{};
  for (int k = 0; k < lanes<float>; ++k) v[k] = half_to_float(h[k]);
  return v;
#endif
}

#if defined(__AVX2__) && defined(__F16C__)
NORMKIT_INLINE
#else
NORMKIT_CALL
#endif
Lanes<float>::halves narrow(f16, Vec<float> v) {
  using Halves = Lanes<float>::halves;
#if defined(__AVX512F__)
  return bit_cast<Halves>(_mm512_cvtps_ph(bit_cast<__m512>(v), _MM_FROUND_TO_NEAREST_INT));
#elif defined(__AVX2__) && defined(__F16C__)
  return bit_cast<Halves>(_mm256_cvtps_ph(bit_cast<__m256>(v), _MM_FROUND_TO_NEAREST_INT));
#else
  Halves h{};
  for (int k = 0; k < lanes<float>; ++k) h[k] = float_to_half(v[k]);
  return h;
#endif
}

// ---- whole vectors ----

template <class T> NORMKIT_INLINE Vec<Acc<T>> load(const T* p) {
  if constexpr (sizeof(T) == sizeof(Acc<T>)) {
    Vec<Acc<T>> v;
    std::memcpy(&v, p, sizeof v);
    return v;
  } else {
    Lanes<float>::halves h;
    std::memcpy(&h, p, sizeof h);
    return widen(T{}, h);
  }
}

template <class T> NORMKIT_INLINE void store(T* p, Vec<Acc<T>> v) {
  if constexpr (sizeof(T) == sizeof(Acc<T>)) {
    std::memcpy(p, &v, sizeof v);
  } else {
    const Lanes<float>::halves h = narrow(T{}, v);
    std::memcpy(p, &h, sizeof h);
  }
}

// ---- the first k lanes, 0 < k < lanes; nothing beyond is touched ----

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__)
NORMKIT_INLINE Vec<float> load(const float* p, int64_t k) {
  return bit_cast<Vec<float>>(_mm512_maskz_loadu_ps((1u << k) - 1u, p));
}
NORMKIT_INLINE Vec<double> load(const double* p, int64_t k) {
  return bit_cast<Vec<double>>(_mm512_maskz_loadu_pd((1u << k) - 1u, p));
}
template <class T> NORMKIT_INLINE Vec<float> load(const T* p, int64_t k) {
  const __m256i h = _mm256_maskz_loadu_epi16((1u << k) - 1u, p);
  return widen(T{}, bit_cast<Lanes<float>::halves>(h));
}
NORMKIT_INLINE void store(float* p, Vec<float> v, int64_t k) {
  _mm512_mask_storeu_ps(p, (1u << k) - 1u, bit_cast<__m512>(v));
}
NORMKIT_INLINE void store(double* p, Vec<double> v, int64_t k) {
  _mm512_mask_storeu_pd(p, (1u << k) - 1u, bit_cast<__m512d>(v));
}
template <class T> NORMKIT_INLINE void store(T* p, Vec<float> v, int64_t k) {
  _mm256_mask_storeu_epi16(p, (1u << k) - 1u, bit_cast<__m256i>(narrow(T{}, v)));
}
#else
template <class T> NORMKIT_CALL Vec<Acc<T>> load(const T* p, int64_t k) {
  T all[lanes<Acc<T>>] = {};
  for (int64_t i = 0; i < k; ++i) all[i] = p[i];
  return load(all);
}
template <class T> NORMKIT_CALL void store(T* p, Vec<Acc<T>> v, int64_t k) {
  T all[lanes<Acc<T>>];
  store(all, v);
  for (int64_t i = 0; i < k; ++i) p[i] = all[i];
}
#endif

// A streaming store, to an address that is a multiple of a vector's size: for tensors so large that
// nothing of them would still be in cache when they are read. An ordinary store first reads the line.
template <class T> NORMKIT_INLINE void store_streaming(T* p, Vec<Acc<T>> v) {
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == sizeof(Acc<T>))
    return _mm512_stream_si512(reinterpret_cast<__m512i*>(p), bit_cast<__m512i>(v));
#elif defined(__AVX2__)
  if constexpr (sizeof(T) == sizeof(Acc<T>))
    return _mm256_stream_si256(reinterpret_cast<__m256i*>(p), bit_cast<__m256i>(v));
#endif
  store(p, v);
}
// Orders streaming stores before what follows.
NORMKIT_INLINE void fence() {
#if defined(__AVX512F__) || defined(__AVX2__)
  _mm_sfence();
#endif
}

// v with lane i and lane i ^ half exchanged.
template <class A> NORMKIT_INLINE Vec<A> exchanged(Vec<A> v, int half) {
  const typename Lanes<A>::integers from = iota<A>() ^ half;
#if defined(__clang__)
  Vec<A> out;
  for (int k = 0; k < lanes<A>; ++k) out[k] = v[from[k]];
  return out;
#else
  return __builtin_shuffle(v, from);
#endif
}

// The sum of all lanes, always added in the same order: halves onto halves.
template <class A> NORMKIT_INLINE double sum(Vec<A> v) {
  if constexpr (lanes<A> >= 16) v += exchanged<A>(v, 8);
  if constexpr (lanes<A> >= 8) v += exchanged<A>(v, 4);
  if constexpr (lanes<A> >= 4) v += exchanged<A>(v, 2);
  v += exchanged<A>(v, 1);
  return static_cast<double>(v[0]);
}

// ---- the exponential and what is built from it ----

// To a few units in the last place; below about -87 zero, above 88 infinity.
NORMKIT_CALL Vec<float> exponential(Vec<float> x) {
  using Bits = Lanes<float>::bits;
  const Vec<float> beyond = x;
  x = x < -87.3f ? fill(-87.3f) : x;
  x = x > 88.3f ? fill(88.3f) : x;
  // Adding 1.5 * 2^23 rounds to an integer, and leaves it in the lowest bits.
  const Vec<float> rounder = fill(12582912.0f), shifted = x * 1.44269504f + rounder;
  const Vec<float> n = shifted - rounder;
  Vec<float> r = x - n * 0.693145752f;           // ln 2 in two parts, the first exact times n
  r = r - n * 1.42860677e-6f;
  // Taylor's series: |r| is at most ln(2)/2, so the next term is below 6e-9.
  Vec<float> p = r * (1.0f / 5040) + (1.0f / 720);
  p = p * r + (1.0f / 120);
  p = p * r + (1.0f / 24);
  p = p * r + (1.0f / 6);
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  const Bits power = (bit_cast<Bits>(shifted) - bit_cast<Bits>(rounder) + 127u) << 23;
  p = p * bit_cast<Vec<float>>(power);
  // Zero, not the smallest of p: GELU's derivative multiplies it by values of up to 1e38.
  p = beyond < -87.3f ? Vec<float>{} : p;
  return beyond > 88.3f ? fill(__builtin_inff()) : p;
}

// erfc(x) * exp(x*x) for x >= 0: t * P(t) with t = 1 / (1 + 0.4 x), P fitted by iteratively
// reweighted least squares to a relative error of 1.3e-7.
NORMKIT_CALL Vec<float> scaled_erfc(Vec<float> x) {
  const Vec<float> t = 1.0f / (1.0f + 0.4f * x);
  Vec<float> p = t * 0.05027289661f - 0.18294488424f;
  p = p * t + 0.16915702781f;
  p = p * t - 0.00566970699f;
  p = p * t + 0.14146190778f;
  p = p * t + 0.16853359259f;
  p = p * t + 0.20784390746f;
  p = p * t + 0.22566952106f;
  p = p * t + 0.22567586334f;
  return p * t;
}

NORMKIT_CALL Vec<double> exponential(Vec<double> x) {
  for (int k = 0; k < lanes<double>; ++k) x[k] = __builtin_exp(x[k]);
  return x;
}
NORMKIT_CALL Vec<double> scaled_erfc(Vec<double> x) {
  for (int k = 0; k < lanes<double>; ++k)
    x[k] = x[k] < 20 ? __builtin_erfc(x[k]) * __builtin_exp(x[k] * x[k]) : 0.0;
  return x;
}

}  // namespace normkit::NORMKIT_BUILD
