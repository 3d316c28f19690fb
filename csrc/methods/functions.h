// exp, log, power and tanh for a number and for a vector of numbers, the same bits on every device: polynomials over
// exact arithmetic, no fused multiply-add. In fp32 within 2 ulp (measured over all magnitudes in
// tests/ops/test_functions.py); fp64, which only checks use, takes the platform's function, lane by lane.
//
// Coefficients: Cephes (Moshier, single precision expf, logf, tanhf), https://www.netlib.org/cephes/.
#pragma once

#include <math.h>
#include <string.h>

#include "numeric.h"

namespace fastq {
inline namespace FASTQ_ISA {

// The integer type of V's lanes, and the casts that numbers have as values and as bits.
template <class V>
struct Integers {
  using type = int32_t;
  FASTQ_HD static type bits(V v) {
    type i;
    memcpy(&i, &v, sizeof(i));
    return i;
  }
  FASTQ_HD static V from_bits(type i) {
    V v;
    memcpy(&v, &i, sizeof(v));
    return v;
  }
  FASTQ_HD static type truncate(V v) { return type(v); }
  FASTQ_HD static V value(type i) { return V(i); }
};

template <class V>
FASTQ_HD V magnitude_of(V v, float) {
  using I = Integers<V>;
  return I::from_bits(I::bits(v) & 0x7fffffff);
}

// |v| with the sign of `like`.
template <class V>
FASTQ_HD V signed_as(V v, V like, float) {
  using I = Integers<V>;
  return I::from_bits((I::bits(v) & 0x7fffffff) | (I::bits(like) & int32_t(0x80000000)));
}

// 2^m e^x = 2^(m+n) e^r, |r| <= ln 2 / 2, for an integer m.
template <class V>
FASTQ_HD V scaled_exp(V x, V m) {
  using I = Integers<V>;
  const V c = clip(x, -300.0f, 300.0f);
  const V n = round_clipped(c * 1.44269504088896341f, float());
  const V r = (c - n * 0.693359375f) - n * -2.12194440e-4f;
  V p = splat<V>(1.9875691500e-4f);
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  const V e = (p * (r * r) + r) + 1.0f;
  // 2^(m+n) in two factors, so that neither leaves the normal numbers. NaN has no integer; it takes 0, and comes back
  // below.
  const V exponent = clip(m + n, -252.0f, 254.0f);
  const auto k = I::truncate(select(exponent == exponent, exponent, splat<V>(0.0f)));
  const auto half = k >> 1;
  const V low = I::from_bits((half + 127) << 23), high = I::from_bits((k - half + 127) << 23);
  return (e * low) * high + nan_of(x, float());
}

// Saturates at the ends of the range: 0 below -103.97, inf above 88.72.
template <class V>
FASTQ_HD V exp(V x, float) {
  return scaled_exp(x, splat<V>(0.0f));
}

// m - 1 and e of x = m 2^e, m in [sqrt(1/2), sqrt(2)).
template <class V>
FASTQ_HD V mantissa(V x, V& e) {
  using I = Integers<V>;
  const auto tiny = x < 1.17549435e-38f;
  const V scaled = select(tiny, x * 8388608.0f, x);  // a subnormal times 2^23
  const auto b = I::bits(scaled);
  e = I::value((b >> 23) - 126);
  e = select(tiny, e - 23.0f, e);
  const V m = I::from_bits((b & 0x007fffff) | 0x3f000000);  // [1/2, 1)
  const auto low = m < 0.707106781186547524f;
  e = select(low, e - 1.0f, e);
  return select(low, m + m, m) - 1.0f;
}

// ln(1 + m) = m - m^2 / 2 + m^3 p(m); this is m^3 p(m).
template <class V>
FASTQ_HD V log_rest(V m) {
  V p = splat<V>(7.0376836292e-2f);
  p = p * m + -1.1514610310e-1f;
  p = p * m + 1.1676998740e-1f;
  p = p * m + -1.2420140846e-1f;
  p = p * m + 1.4249322787e-1f;
  p = p * m + -1.6668057665e-1f;
  p = p * m + 2.0000714765e-1f;
  p = p * m + -2.4999993993e-1f;
  p = p * m + 3.3333331174e-1f;
  return p * m * (m * m);
}

// ln x = ln m + e ln 2. 0 gives -inf, a negative number NaN, inf inf.
template <class V>
FASTQ_HD V log(V x, float) {
  V e;
  const V m = mantissa(x, e);
  const V z = m * m;
  V y = log_rest(m);
  y = y + e * -2.12194440e-4f;
  y = y - z * 0.5f;
  y = (m + y) + e * 0.693359375f;
  const V inf = splat<V>(__builtin_huge_valf());
  y = select(x == inf, inf, y);
  y = select(x == 0.0f, -inf, y);
  return select(x < 0.0f, splat<V>(0.0f) / splat<V>(0.0f), y) + nan_of(x, float());
}

// x^y for 0 < x <= 1 and y > 0: x^y = 2^(e y) e^(y ln m), the integer part of e y taken out exactly, so that the error
// is of the order of y roundings and not of the logarithm's size.
template <class V>
FASTQ_HD V power(V x, V y, float) {
  using I = Integers<V>;
  V e;
  const V m = mantissa(x, e);
  const V ln_m = m + (log_rest(m) - (m * m) * 0.5f);
  const V high = I::from_bits(I::bits(y) & int32_t(0xfffff000));  // 12 bits, whose product with e is exact
  const V low = (y - high) * e, whole = high * e;
  const V n = round_clipped(clip(whole, -1000.0f, 1000.0f), float());
  const V rest = y * ln_m;
  const V found = scaled_exp(((whole - n) + low) * 0.693147180559945309f + rest, n);
  return select((whole + low) * 0.693147180559945309f + rest < -104.0f, splat<V>(0.0f), found);
}

// A polynomial for small |x|, else 1 - 2 / (e^(2|x|) + 1).
template <class V>
FASTQ_HD V tanh(V x, float) {
  const V a = magnitude_of(x, float());
  const V z = x * x;
  V p = splat<V>(-5.70498872745e-3f);
  p = p * z + 2.06390887954e-2f;
  p = p * z + -5.37397155531e-2f;
  p = p * z + 1.33314422036e-1f;
  p = p * z + -3.33332819422e-1f;
  const V small = p * z * x + x;
  const V large = 1.0f - splat<V>(2.0f) / (exp(a + a, float()) + 1.0f);
  return select(a < 0.625f, small, signed_as(large, x, float())) + nan_of(x, float());
}

// fp64: the platform's functions.
template <class V>
struct EachLane {
  template <class Function>
  FASTQ_HD static V of(V x, Function f) {
    V y = x;
    for (unsigned j = 0; j < sizeof(V) / sizeof(double); ++j) y[j] = f(x[j]);
    return y;
  }
};
template <>
struct EachLane<double> {
  template <class Function>
  FASTQ_HD static double of(double x, Function f) {
    return f(x);
  }
};
template <class V>
FASTQ_HD V exp(V x, double) {
  return EachLane<V>::of(x, [](double v) { return ::exp(v); });
}
template <class V>
FASTQ_HD V log(V x, double) {
  return EachLane<V>::of(x, [](double v) { return ::log(v); });
}
template <class V>
FASTQ_HD V power(V x, V y, double) {
  return exp(y * log(x, double()), double());
}
template <class V>
FASTQ_HD V tanh(V x, double) {
  return EachLane<V>::of(x, [](double v) { return ::tanh(v); });
}

// 1 / cosh(x)^2 to a few ulp, where 1 - tanh(x)^2 loses its digits as tanh goes to 1. With tanh(x) beside it, one exp
// serves both.
template <class V, class F>
FASTQ_HD V sech2(V x, F) {
  V a;
  if constexpr (sizeof(F) == 4) {
    a = magnitude_of(x, F());
  } else {
    a = select(x < F(0), -x, x);
  }
  const V r = splat<V>(F(1)) / (exp(a + a, F()) + F(1));
  return (r * F(4)) * (F(1) - r);
}

}  // namespace FASTQ_ISA
}  // namespace fastq
