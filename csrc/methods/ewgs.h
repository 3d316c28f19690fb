// EWGS: fastq/reference/ewgs.py has the formula and the paper.
//
//   W = max(|upper - lower|, eps) ; sign = -1 where upper < lower, else 1 ; t = (x - lower) / W ; c = clip(t, 0, 1)
//   y = round(c * L) / L
//   dx     = h / W inside, else 0        h = g * (1 + delta * sign(g) * (c - y)), inside = r.lower < t < r.upper
//   dlower = sum dx * (sign * c - 1)
//   dupper = -sign * sum dx * c
//
// The range is (0, 1), which the boundary is about; the constants are L and delta.
#pragma once

#include "numeric.h"

namespace fastq {
inline namespace FASTQ_ISA {

struct EWGS : Quantizer {
  static constexpr int kParameters = 2;  // lower, upper
  static constexpr int kPrepared = 3;    // lower, W, sign
  static constexpr int kGradients = 2;   // dlower, dupper

  template <class F>
  FASTQ_HD static void prepare(const F* parameter, const Range<F>& r, F* p) {
    const F difference = parameter[1] - parameter[0];
    const F magnitude = difference < F(0) ? -difference : difference;
    p[0] = parameter[0];
    p[1] = (magnitude < r.eps ? r.eps : magnitude) + (magnitude - magnitude);  // inf - inf: inf and NaN give NaN
    p[2] = difference < F(0) ? F(-1) : F(1);
  }

  template <class V, class F>
  FASTQ_HD static V level(V c, const Range<F>& r) {
    const V levels = splat<V>(r.constant[0]);
    return round_clipped(c * levels, F()) / levels;
  }

  template <class V, class F>
  FASTQ_HD static V forward(V x, const V* p, const Range<F>& r) {
    return level<V, F>(clip((x - p[0]) / p[1], r.qmin, r.qmax), r);
  }

  template <class V, class F>
  FASTQ_HD static V backward(V x, V g, const V* p, const Range<F>& r, V* terms) {
    const V t = (x - p[0]) / p[1];
    const V c = clip(t, r.qmin, r.qmax);
    const V scaled = splat<V>(r.constant[1]) * (c - level<V, F>(c, r));
    const V h = g * (splat<V>(F(1)) + select(g < splat<V>(F(0)), -scaled, scaled)) / p[1];
    const auto inside = both(t > r.lower, t < r.upper);
    const V nan = nan_of(t, F());
    terms[0] = select(inside, h * (p[2] * c - splat<V>(F(1))), nan);
    terms[1] = select(inside, h * (p[2] * c), nan);
    return select(inside, h, nan);
  }

  template <class F>
  FASTQ_HD static F finish(int gradient, F sum, const F*, F scale) {
    return gradient == 1 ? -(sum * scale) : sum * scale;
  }
};

}  // namespace FASTQ_ISA
}  // namespace fastq
