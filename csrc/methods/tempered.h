// Noise tempering, a reconstruction: fastq/reference/tempered.py has the formula.
//
//   v, q and m as LSQ;  e = q - v where m, else 0;  k = decay * xi, xi the noise of the element
//   noise     y = s * (q + k * e);  dx = a * g where m, else 0
//             dstep = G * sign(step) * sum g * (e * (1 + k) where m; else qmin where v <= qmin; else qmax)
//   gradient  y = s * q;            dx = g * (a + k * |e|) where m, else 0;   dstep with k = 0
//   still     y = s * q;            as with k = 0
//   da = G_a * sum g * (x - s * q) where m
#pragma once

#include "numeric.h"

namespace fastq {

enum class Reading { noise, gradient, still };

inline namespace FASTQ_ISA {

template <Reading kReading>
struct Tempered : Quantizer {
  static constexpr int kParameters = kReading == Reading::still ? 2 : 3;  // step, a; of all channels: decay
  static constexpr int kPrepared = kParameters;                           // s, a, decay
  static constexpr int kGradients = 2;                                    // dstep, da
  static constexpr Word kWord = kReading == Reading::still ? Word::none : Word::noise;

  template <class F>
  FASTQ_HD static void prepare(const F* parameter, const Range<F>& r, F* p) {
    const F magnitude = parameter[0] < F(0) ? -parameter[0] : parameter[0];
    p[0] = (magnitude < r.eps ? r.eps : magnitude) + (magnitude - magnitude);  // inf - inf: inf and NaN give NaN
    p[1] = parameter[1];
    if constexpr (kReading != Reading::still) p[2] = parameter[2];
  }

  // `still` has no noise, and is its formula with a noise of nothing.
  template <class V, class F>
  FASTQ_HD static V forward(V x, const V* p, const Range<F>& r) {
    return forward<V, V, F>(x, V{}, p, r);
  }
  template <class V, class F>
  FASTQ_HD static V backward(V x, V g, const V* p, const Range<F>& r, V* terms) {
    return backward<V, V, F>(x, g, V{}, p, r, terms);
  }

  template <class V, class W, class F>
  FASTQ_HD static V forward(V x, [[maybe_unused]] W xi, const V* p, const Range<F>& r) {
    const V v = x / p[0];
    const V q = round_clipped(clip(v, r.qmin, r.qmax), F());
    if constexpr (kReading == Reading::noise) {
      const V e = select(both(v > r.lower, v < r.upper), q - v, splat<V>(F(0)));
      return p[0] * (q + xi * p[2] * e);
    } else {
      return p[0] * q;
    }
  }

  template <class V, class W, class F>
  FASTQ_HD static V backward(V x, V g, [[maybe_unused]] W xi, const V* p, const Range<F>& r, V* terms) {
    const V v = x / p[0];
    const V q = round_clipped(clip(v, r.qmin, r.qmax), F());
    const auto inside = both(v > r.lower, v < r.upper);
    const V nan = nan_of(v, F());
    V scale = p[1], inner = q - v;
    if constexpr (kReading == Reading::noise) {
      inner = inner * (F(1) + xi * p[2]);
    } else if constexpr (kReading == Reading::gradient) {
      scale = scale + xi * p[2] * select(inner < F(0), -inner, inner);
    }
    const V outside = select(v <= r.qmin, splat<V>(r.qmin), splat<V>(r.qmax)) + nan;
    terms[0] = g * select(inside, inner, outside);
    terms[1] = select(inside, g * (x - p[0] * q), nan);
    return select(inside, scale * g, nan);
  }

  template <class F>
  FASTQ_HD static F finish(int gradient, F sum, const F* parameter, F scale) {
    return gradient == 0 && parameter[0] < F(0) ? -(sum * scale) : sum * scale;
  }
};

}  // namespace FASTQ_ISA
}  // namespace fastq
