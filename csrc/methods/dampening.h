// The dampening loss: fastq/reference/dampening.py has the formula.
//
//   r = clip(w, s * qmin, s * qmax) - s * round(clip(w / s, qmin, qmax));   the loss is c * sum r^2
//   dw = r * (g * 2c), where r has been rounded to the type of w
//
// Both passes read w and make r of it. To keep r would be to write and to read as much again, for a division.
#pragma once

#include "lsq.h"

namespace fastq {
inline namespace FASTQ_ISA {

template <bool kGradient>  // dw, or the loss
struct Dampening : LSQ<false> {
  static constexpr int kParameters = kGradient ? 2 : 1;  // step, g
  static constexpr int kPrepared = kGradient ? 4 : 3;    // s, the edges of the clip range, g * 2c; the constant is 2c
  static constexpr int kGradients = 0;
  static constexpr int kForwardSums = kGradient ? 0 : 1;
  static constexpr bool kBackward = false;
  static constexpr bool kOutput = kGradient;
  static constexpr bool kScaled = kGradient;

  template <class F>
  FASTQ_HD static void prepare(const F* parameter, const Range<F>& r, F* p) {
    LSQ<false>::prepare(parameter, r, p);
    p[1] = p[0] * r.qmin;
    p[2] = p[0] * r.qmax;
    if constexpr (kGradient) p[3] = parameter[1] * r.constant[0];
  }

  template <class V, class F>
  FASTQ_HD static V forward(V w, const V* p, const Range<F>& r) {
    const V q = round_clipped(clip(w / p[0], r.qmin, r.qmax), F());
    const V raised = select(w < p[1], p[1], w);
    return select(raised > p[2], p[2], raised) - p[0] * q;
  }

  template <class V, class F>
  FASTQ_HD static V forward(V w, const V* p, const Range<F>& r, typename Wide<V>::type* sums) {
    const V residual = forward<V, F>(w, p, r);
    sums[0] = Wide<V>::of(residual * residual);
    return residual;
  }
};

}  // namespace FASTQ_ISA
}  // namespace fastq
