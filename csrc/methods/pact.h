// PACT and its calibrated gradient: fastq/reference/pact.py has the formula and the papers.
//
//   A = max(|alpha|, eps) ; s = A / L ; v = x / s
//   y = s * q,  q = round(clip(v, 0, L))            two-sided: q = 2 * round((clip(v, -L, L) + L) / 2) - L
//   dx     = g where 0 < x < A, else 0              two-sided: -A < x < A
//   dalpha = sign(alpha) / L * sum g * (q - v (plain: 0) inside; L where x >= A; else 0, two-sided -L)
//
// The range is (0, L), two-sided (-L, L); 1 / L comes as the gradient's scale.
#pragma once

#include "numeric.h"

namespace fastq {
inline namespace FASTQ_ISA {

template <bool kCalibrated, bool kTwoSided>
struct PACT : Quantizer {
  static constexpr int kParameters = 1;  // alpha
  static constexpr int kPrepared = 2;    // A, s
  static constexpr int kGradients = 1;   // dalpha

  template <class F>
  FASTQ_HD static void prepare(const F* parameter, const Range<F>& r, F* p) {
    const F magnitude = parameter[0] < F(0) ? -parameter[0] : parameter[0];
    p[0] = (magnitude < r.eps ? r.eps : magnitude) + (magnitude - magnitude);  // inf - inf: inf and NaN give NaN
    p[1] = p[0] / r.qmax;
  }

  template <class V, class F>
  FASTQ_HD static V code(V v, const Range<F>& r) {
    const V c = clip(v, r.qmin, r.qmax);
    if constexpr (kTwoSided) {
      return round_clipped((c + splat<V>(r.qmax)) * splat<V>(F(0.5)), F()) * splat<V>(F(2)) - splat<V>(r.qmax);
    } else {
      return round_clipped(c, F());
    }
  }

  template <class V, class F>
  FASTQ_HD static V forward(V x, const V* p, const Range<F>& r) {
    return p[1] * code<V, F>(x / p[1], r);
  }

  template <class V, class F>
  FASTQ_HD static V backward(V x, V g, const V* p, const Range<F>& r, V* terms) {
    const V v = x / p[1];
    const V nan = nan_of(v, F());
    const V low = kTwoSided ? -p[0] : splat<V>(F(0));
    const auto inside = both(x > low, x < p[0]);
    V below = nan, middle = nan;
    if constexpr (kTwoSided) below = g * splat<V>(r.qmin) + nan;
    if constexpr (kCalibrated) middle = g * (code<V, F>(v, r) - v);
    terms[0] = select(inside, middle, select(x <= low, below, g * splat<V>(r.qmax) + nan));
    return select(inside, g, nan);
  }

  template <class F>
  FASTQ_HD static F finish(int, F sum, const F* parameter, F scale) {
    return parameter[0] < F(0) ? -(sum * scale) : sum * scale;
  }
};

}  // namespace FASTQ_ISA
}  // namespace fastq
