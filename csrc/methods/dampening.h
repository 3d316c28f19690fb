// The dampening loss: fastq/reference/dampening.py has the formula.
//
//   r = clip(w, s * qmin, s * qmax) - s * round(clip(w / s, qmin, qmax));   the sum is of r^2; the gradient is 2 c r
#pragma once

#include "lsq.h"

namespace fastq {
inline namespace FASTQ_ISA {

template <bool kGradient>  // whether the residuals are wanted, or the loss alone
struct Dampening : LSQ<false> {
  static constexpr int kPrepared = 3;  // s, and the edges of the clip range
  static constexpr int kGradients = 0;
  static constexpr int kForwardSums = 1;
  static constexpr bool kBackward = false;
  static constexpr bool kOutput = kGradient;

  template <class F>
  FASTQ_HD static void prepare(const F* parameter, const Range<F>& r, F* p) {
    LSQ<false>::prepare(parameter, r, p);
    p[1] = p[0] * r.qmin;
    p[2] = p[0] * r.qmax;
  }

  template <class V, class F>
  FASTQ_HD static V forward(V w, const V* p, const Range<F>& r, typename Wide<V>::type* sums) {
    const V q = round_clipped(clip(w / p[0], r.qmin, r.qmax), F());
    const V raised = select(w < p[1], p[1], w);
    const V residual = select(raised > p[2], p[2], raised) - p[0] * q;
    sums[0] = Wide<V>::of(residual * residual);
    return residual;
  }
};

}  // namespace FASTQ_ISA
}  // namespace fastq
