// PyTorch core's affine fake-quantization, fixed and learnable: fastq/reference/affine.py has the formula and where it
// comes from.
//
//   c = round(x * (1 / scale)) + z;   y = (clip(c, qmin, qmax) - z) * scale;   inside = qmin <= c <= qmax
//   dx     = g where inside, else 0
//   dscale = F * sum g * ((y - x) / scale inside; qmin - z below; qmax - z above)
//   dzero  = F * sum -g * scale outside
//
// Multiplying by 1 / scale is core's convention. The learnable backward pass has a rounding and, per tensor, a z of its
// own.
#pragma once

#include "numeric.h"

namespace fastq {
inline namespace FASTQ_ISA {

enum class Learns { nothing, per_tensor, per_channel };

template <Learns kLearns>
struct Affine : Quantizer {
  static constexpr bool kLearnable = kLearns != Learns::nothing;
  static constexpr int kParameters = 2;                  // scale, zero_point
  static constexpr int kPrepared = kLearnable ? 4 : 3;   // scale, z forward, 1 / scale, z backward
  static constexpr int kGradients = kLearnable ? 2 : 0;  // dscale, dzero

  template <class F>
  FASTQ_HD static void prepare(const F* parameter, const Range<F>& r, F* p) {
    p[0] = parameter[0];
    p[1] = round_clipped(clip(parameter[1], r.qmin, r.qmax), F());
    p[2] = parameter[0] == F(0) ? F(0) : F(1) / parameter[0];
    if constexpr (kLearnable) {
      p[3] = p[1];
      const F z = clip(parameter[1] + F(0.5), r.qmin, r.qmax);
      if (kLearns == Learns::per_tensor && z == z) p[3] = F(int64_t(z));
    }
  }

  // The code before clipping, here and in `backward`. One beyond the range at either end is as good as any, and rounds
  // exactly.
  template <class V, class F>
  FASTQ_HD static V code(V x, V inverse, V z, const Range<F>& r) {
    const V low = splat<V>(r.qmin) - z - splat<V>(F(1));
    const V high = splat<V>(r.qmax) - z + splat<V>(F(1));
    const V u = x * inverse;
    const V raised = select(u < low, low, u);
    return round_clipped(select(raised > high, high, raised), F()) + z;
  }

  template <class V, class F>
  FASTQ_HD static V forward(V x, const V* p, const Range<F>& r) {
    return (clip(code(x, p[2], p[1], r), r.qmin, r.qmax) - p[1]) * p[0];
  }

  template <class V, class F>
  FASTQ_HD static V backward(V x, V g, const V* p, const Range<F>& r, V* terms) {
    if constexpr (!kLearnable) {
      const V c = code(x, p[2], p[1], r);
      return select(both(c >= r.qmin, c <= r.qmax), g, nan_of(c, F()));
    } else {
      const V z = p[3];
      const V c = round_clipped(clip(Fused<V>::of(x, p[2], z), r.qmin - F(1), r.qmax + F(1)), F());
      const auto inside = both(c >= r.qmin, c <= r.qmax);
      const V nan = nan_of(c, F());
      const V y = (clip(c, r.qmin, r.qmax) - z) * p[0];
      const V outside = select(c < r.qmin, splat<V>(r.qmin) - z, splat<V>(r.qmax) - z) + nan;
      terms[0] = g * select(inside, (y - x) * p[2], outside);
      terms[1] = select(inside, splat<V>(F(0)), nan - g * p[0]);
      return select(inside, g, nan);
    }
  }

  template <class F>
  FASTQ_HD static F finish(int, F sum, const F*, F scale) {
    return sum * scale;
  }
};

}  // namespace FASTQ_ISA
}  // namespace fastq
