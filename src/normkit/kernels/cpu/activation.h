// The activations and their derivatives, a vector at a time.
#pragma once

#include <limits>

#include "problem.h"
#include "simd.h"

namespace normkit::NORMKIT_BUILD {

template <nk_act act, class A> struct Activation;

// NK_RELU6 too, of slope 0, which alone has a limit: compiled once for both.
template <class A> struct Activation<NK_LINEAR, A> {
  Vec<A> slope, limit;
  typename Lanes<A>::integers mask;  // no bit where the slope is zero
  // Nothing is above the limit NaN, not even infinity.
  explicit Activation(const Problem& q)
      : slope(fill(static_cast<A>(q.slope))),
        limit(fill(q.act == NK_RELU6 ? A(6) : std::numeric_limits<A>::quiet_NaN())),
        mask(typename Lanes<A>::integers{} - (q.slope != 0)) {}
  // The test is z <= 0 rather than z > 0, so that NaN stays NaN, as in PyTorch. A slope of zero
  // gives zero for minus infinity too.
  NORMKIT_INLINE Vec<A> below(Vec<A> v) const {
    return bit_cast<Vec<A>>(bit_cast<typename Lanes<A>::integers>(v * slope) & mask);
  }
  NORMKIT_INLINE Vec<A> operator()(Vec<A> z) const {
    const Vec<A> y = z <= A(0) ? below(z) : z;
    return y >= limit ? limit : y;
  }
  NORMKIT_INLINE Vec<A> backward(Vec<A> dy, Vec<A> z) const {
    const Vec<A> dz = z <= A(0) ? below(dy) : dy;
    return z >= limit ? fill(A(0)) : dz;
  }
};

template <class A> struct Activation<NK_SILU, A> {
  explicit Activation(const Problem&) {}
  NORMKIT_INLINE Vec<A> operator()(Vec<A> z) const { return z / (A(1) + exponential(-z)); }
  NORMKIT_INLINE Vec<A> backward(Vec<A> dy, Vec<A> z) const {
    const Vec<A> s = A(1) / (A(1) + exponential(-z));
    return dy * (s * (A(1) + z * (A(1) - s)));
  }
};

template <class A> struct Activation<NK_GELU, A> {
  explicit Activation(const Problem&) {}
  // The normal distribution function and its density, computed from the tail, so that neither
  // end cancels.
  static NORMKIT_CALL Vec<A> cdf(Vec<A> z, Vec<A>& density) {
    const Vec<A> a = z < A(0) ? -z : z;
    const Vec<A> e = exponential(z * z * A(-0.5));
    density = e * A(0.398942280401432678);
    const Vec<A> tail = A(0.5) * e * scaled_erfc(a * A(0.707106781186547524));
    return z < A(0) ? tail : A(1) - tail;
  }
  NORMKIT_INLINE Vec<A> operator()(Vec<A> z) const {
    Vec<A> density;
    return z * cdf(z, density);
  }
  NORMKIT_INLINE Vec<A> backward(Vec<A> dy, Vec<A> z) const {
    Vec<A> density;
    const Vec<A> p = cdf(z, density);
    return dy * (p + z * density);
  }
};

}  // namespace normkit::NORMKIT_BUILD
