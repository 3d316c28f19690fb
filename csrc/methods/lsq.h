// LSQ and LSQ+. METHODS: learned step size quantization (Esser et al., ICLR 2020), LSQ+ (Bhalgat et al., 2020).
//
//   v = (x - offset) / s,  s = max(|step|, eps);   q = round(clip(v, qmin, qmax));   y = s * q + offset
//   dx      = g where m, else 0                    m = lower < v < upper
//   dstep   = G * sign(step) * sum g * (q - v where m; else qmin where v <= qmin; else qmax)
//   doffset = G_offset * sum g where not m
//
// A method is: how many parameter tensors a call brings, how many values the loops use for an element, how many sums
// they make; the values from the parameters (prepare); one element forward; one element backward with its terms of the
// sums; and what makes a sum a gradient (finish). No loop, no torch.
#pragma once

#include "numeric.h"

namespace fastq {
inline namespace FASTQ_ISA {

template <bool kOffset>
struct LSQ : Quantizer {
  static constexpr int kParameters = kOffset ? 2 : 1;  // step, offset
  static constexpr int kPrepared = kParameters;        // s, offset
  static constexpr int kGradients = kParameters;       // dstep, doffset
  static constexpr bool kMany = !kOffset;

  template <class F>
  FASTQ_HD static void prepare(const F* parameter, const Range<F>& r, F* p) {
    const F magnitude = parameter[0] < F(0) ? -parameter[0] : parameter[0];
    const F step = magnitude < r.eps ? r.eps : magnitude;
    p[0] = step + (magnitude - magnitude);  // inf - inf: a step of inf or NaN gives NaN
    if constexpr (kOffset) p[1] = parameter[1];
  }

  template <class V, class F>
  FASTQ_HD static V position(V x, const V* p) {
    if constexpr (kOffset) {
      return (x - p[1]) / p[0];
    } else {
      return x / p[0];
    }
  }

  template <class V, class F>
  FASTQ_HD static V forward(V x, const V* p, const Range<F>& r) {
    const V q = round_clipped(clip(position<V, F>(x, p), r.qmin, r.qmax), F());
    if constexpr (kOffset) {
      return p[0] * q + p[1];
    } else {
      return p[0] * q;
    }
  }

  template <class V, class F>
  FASTQ_HD static V backward(V x, V g, const V* p, const Range<F>& r, V* terms) {
    const V v = position<V, F>(x, p);
    const V q = round_clipped(clip(v, r.qmin, r.qmax), F());
    const auto inside = both(v > r.lower, v < r.upper);
    const V nan = nan_of(v, F());
    const V outside = select(v <= r.qmin, splat<V>(r.qmin), splat<V>(r.qmax)) + nan;
    terms[0] = g * select(inside, q - v, outside);
    if constexpr (kOffset) terms[1] = select(inside, splat<V>(F(0)), g + nan);
    return select(inside, g, nan);
  }

  template <class F>
  FASTQ_HD static F finish(int gradient, F sum, const F* parameter, F scale) {
    return gradient == 0 && parameter[0] < F(0) ? -(sum * scale) : sum * scale;
  }
};

}  // namespace FASTQ_ISA
}  // namespace fastq
