// What becomes of an accumulator of the integer engine, and what becomes of a number that is to be a code: the formulas
// of fastq/reference/int_gemm.py for one number or for a vector of them, on every device.
//
//   acc = sum (x - zx) * (f - t) = D - t * R - zx * C     D = sum x * f,  R = sum x,  C = sum (f - t)
//   y   = float(acc) * (x_scale * scale)                  per group: the sum over the groups, the first one first
//   y   = y + bias;  y * multiplier + addend;  y + residual;  activation(y)
//   code = round(clip(y / out_scale, lo - zp, hi - zp)) + zp;   NaN gives zp
#pragma once

#include "functions.h"
#include "numeric.h"

namespace fastq {
inline namespace FASTQ_ISA {

enum class Activation : int32_t { none, relu, gelu, silu };  // ACTIVATIONS of fastq/engine/call.py

// Modulo 2^32, where every order of the sums gives the same. `zero` is t, `sum_x` R, `sums` C.
FASTQ_HD int32_t corrected(uint32_t product, int32_t zero, uint32_t sum_x, int32_t x_zero, int32_t sums) {
  return int32_t(product - uint32_t(zero) * sum_x - uint32_t(x_zero) * uint32_t(sums));
}

// float(acc) * (x_scale * scale); `acc` as a number already, to nearest, half to even.
template <class V>
FASTQ_HD V scaled(V acc, V x_scale, V scale) {
  return acc * (x_scale * scale);
}

// erf, each lane by the platform's own: within an ulp or two on all of them.
template <class V>
struct ErrorFunction {
  FASTQ_HD static V of(V x) {
    V y = x;
    for (unsigned j = 0; j < sizeof(V) / sizeof(float); ++j) y[j] = ::erff(x[j]);
    return y;
  }
};
template <>
struct ErrorFunction<float> {
  FASTQ_HD static float of(float x) { return ::erff(x); }
};

template <class V>
FASTQ_HD V activated(V y, Activation kind) {
  switch (kind) {
    case Activation::relu: return select(y < 0.0f, splat<V>(0.0f), y);
    case Activation::gelu: return (y * 0.5f) * (ErrorFunction<V>::of(y * 0.707106781186547524f) + 1.0f);
    case Activation::silu: return y / (exp(-y, float()) + 1.0f);
    default: return y;
  }
}

// Which parts an epilogue has.
struct EpilogueParts {
  bool bias, multiplier, addend, residual;
  Activation activation;
};

// From `+ bias` to the activation. What `parts` says is absent is not looked at.
template <class V>
FASTQ_HD V finished(V y, const EpilogueParts& parts, V bias, V multiplier, V addend, V residual) {
  if (parts.bias) y = y + bias;
  if (parts.multiplier) y = y * multiplier;
  if (parts.addend) y = y + addend;
  if (parts.residual) y = y + residual;
  return activated(y, parts.activation);
}

// The code of v less its zero-point, a whole number: round(clip(v / scale, low, high)), 0 for NaN. low and high are
// lo - zp and hi - zp.
template <class V>
FASTQ_HD V code_of(V v, V scale, float low, float high) {
  const V q = round_clipped(clip(v / scale, low, high), float());
  return select(q == q, q, splat<V>(0.0f));
}

// The scale of a row whose largest magnitude is given, for codes up to `highest`.
FASTQ_HD float token_scale(float largest, float highest) {
  const float scale = largest / highest;
  return scale == 0.0f ? 1.0f : scale;
}

}  // namespace FASTQ_ISA
}  // namespace fastq
