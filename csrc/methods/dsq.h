// DSQ. METHODS: differentiable soft quantization (Gong et al., ICCV 2019). fastq/reference/dsq.py has the formula.
//
//   D = max(upper - lower, eps) / L ;  v = (x - lower) / D ;  c = clip(v, 0, L) ;  y = D * round(c) + lower
//   f = floor(c) ;  r = c - f - 0.5 ;  S = 1 / (1 - a) ;  k = ln(2 / a - 1) ;  slope = 0.5 * S * k * sech2(k * r)
//   dx     = g * slope where m, else 0                                             m = 0 < v < L
//   dlower = sum g * ((1 - q / L) - slope * (1 - c / L) where m; else 1 where v <= 0; else 0)
//   dupper = sum g * ((q - slope * c) / L where m; else 0 where v <= 0; else 1)
//   dalpha = sum g * D * 0.5 * S * (S * tanh(k * r) - sech2(k * r) * r * 2 / (a * (2 - a))) where m
//
// The range's constants: alpha where it is no parameter, and the ends of what is used of it.
#pragma once

#include "functions.h"
#include "numeric.h"

namespace fastq {
inline namespace FASTQ_ISA {

template <bool kLearned>
struct DSQ : Quantizer {
  static constexpr int kParameters = kLearned ? 3 : 2;  // lower, upper, alpha
  static constexpr int kPrepared = 6;                   // lower, D, k, 0.5 S k, 0.5 S D S, 0.5 S D 2 / (a (2 - a))
  static constexpr int kGradients = kParameters;

  template <class F>
  FASTQ_HD static void prepare(const F* parameter, const Range<F>& r, F* p) {
    const F width = parameter[1] - parameter[0];
    p[0] = parameter[0];
    p[1] = ((width < r.eps ? r.eps : width) + (width - width)) / r.qmax;  // inf - inf: inf and NaN give NaN
    F alpha = r.constant[0];
    if constexpr (kLearned) alpha = parameter[2];
    const F a = clip(alpha, r.constant[1], r.constant[2]);
    const F half = F(0.5) / (F(1) - a);
    p[2] = log(F(2) / a - F(1), F());
    p[3] = half * p[2];
    p[4] = (p[1] * half) * (F(1) / (F(1) - a));
    p[5] = (p[1] * half) * (F(2) / (a * (F(2) - a)));
  }

  template <class V, class F>
  FASTQ_HD static V forward(V x, const V* p, const Range<F>& r) {
    return p[1] * round_clipped(clip((x - p[0]) / p[1], F(0), r.qmax), F()) + p[0];
  }

  template <class V, class F>
  FASTQ_HD static V backward(V x, V g, const V* p, const Range<F>& r, V* terms) {
    const V v = (x - p[0]) / p[1];
    const V c = clip(v, F(0), r.qmax);
    const V q = round_clipped(c, F());
    const auto inside = both(v > F(0), v < r.qmax);
    const auto below = v <= F(0);
    const V nan = nan_of(v, F()), zero = splat<V>(F(0));
    const V place = (c - select(q > c, q - F(1), q)) - F(0.5);
    const V z = p[2] * place, bell = sech2(z, F());
    const V slope = p[3] * bell;
    const V share = (q - slope * c) / r.qmax;  // of upper in what y moves; lower has the rest of what x leaves
    terms[0] = select(inside, g * ((F(1) - slope) - share), select(below, g, zero) + nan);
    terms[1] = select(inside, g * share, select(below, zero, g) + nan);
    if constexpr (kLearned) terms[2] = select(inside, g * (p[4] * tanh(z, F()) - bell * (place * p[5])), nan);
    return select(inside, g * slope, nan);
  }

  template <class F>
  FASTQ_HD static F finish(int, F sum, const F*, F scale) {
    return sum * scale;
  }
};

}  // namespace FASTQ_ISA
}  // namespace fastq
