// Noise in place of rounding, clipped to a range (NIPQ) or not (DiffQ, additive uniform noise): the formula is in
// fastq/reference/noise_quant.py.
//
//   without a range  y = x + s * z;  dx = g;  dstep = G * sign(step) * sum g * z
//   with one         y = x + s * z where qmin < x / s < qmax; else s * qmin or s * qmax
//                    dx = g where inside, else 0;  dstep = G * sign(step) * sum g * (z inside; else qmin or qmax)
#pragma once

#include "numeric.h"

namespace fastq {
inline namespace FASTQ_ISA {

template <bool kClipped>
struct NoiseQuant : Quantizer {
  static constexpr int kParameters = 1;  // step
  static constexpr int kPrepared = 1;    // s
  static constexpr int kGradients = 1;   // dstep
  static constexpr Word kWord = Word::noise;

  template <class F>
  FASTQ_HD static void prepare(const F* parameter, const Range<F>& r, F* p) {
    const F magnitude = parameter[0] < F(0) ? -parameter[0] : parameter[0];
    p[0] = (magnitude < r.eps ? r.eps : magnitude) + (magnitude - magnitude);  // inf - inf: inf and NaN give NaN
  }

  template <class V, class W, class F>
  FASTQ_HD static V forward(V x, W z, const V* p, const Range<F>& r) {
    const V noisy = x + p[0] * z;
    if constexpr (kClipped) {
      const V v = x / p[0];
      const V edge = p[0] * select(v <= r.qmin, splat<V>(r.qmin), splat<V>(r.qmax)) + nan_of(v, F());
      return select(both(v > r.qmin, v < r.qmax), noisy, edge);
    } else {
      return noisy;
    }
  }

  template <class V, class W, class F>
  FASTQ_HD static V backward(V x, V g, W z, const V* p, const Range<F>& r, V* terms) {
    if constexpr (kClipped) {
      const V v = x / p[0];
      const auto inside = both(v > r.qmin, v < r.qmax);
      const V nan = nan_of(v, F());
      const V outside = select(v <= r.qmin, splat<V>(r.qmin), splat<V>(r.qmax)) + nan;
      terms[0] = g * select(inside, z, outside);
      return select(inside, g, nan);
    } else {
      const V nan = nan_of(x + p[0], F());
      terms[0] = g * (z + nan);
      return select(nan == nan, g, nan);
    }
  }

  template <class F>
  FASTQ_HD static F finish(int, F sum, const F* parameter, F scale) {
    return parameter[0] < F(0) ? -(sum * scale) : sum * scale;
  }
};

}  // namespace FASTQ_ISA
}  // namespace fastq
