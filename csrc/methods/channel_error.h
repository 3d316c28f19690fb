// LSQ with one step, and sums for each channel: fastq/reference/channel_error.py has the formula.
//
//   q = round(clip(x / s, qmin, qmax));   Q = s * q;   y = Q
//   error = sum (x - Q)^2                 with kAll: sum x, sum x^2, sum x*q, sum q^2 before it; all in fp64
//   dx    = (g where m, else 0) + 2e * (x - Q)                    e: the gradient of the channel's error
//   dstep = G * sign(step) * sum g * (q - v where m; else qmin, qmax) + sign(step) * sum 2e * (Q - x) * q
//
// The step is given twice, because each sum belongs to a parameter; the two gradients are added by who called.
#pragma once

#include "numeric.h"

namespace fastq {
inline namespace FASTQ_ISA {

template <bool kAll>
struct ChannelError : Quantizer {
  static constexpr int kParameters = 3;  // step, step, gradient of the error
  static constexpr int kPrepared = 2;    // s, 2e
  static constexpr int kGradients = 2;   // of y's part, of the error's
  static constexpr int kForwardSums = kAll ? 5 : 1;
  static constexpr bool kOwnTerms = true;
  static constexpr bool kBackward = !kAll;  // they share it

  template <class F>
  FASTQ_HD static void prepare(const F* parameter, const Range<F>& r, F* p) {
    const F magnitude = parameter[0] < F(0) ? -parameter[0] : parameter[0];
    p[0] = (magnitude < r.eps ? r.eps : magnitude) + (magnitude - magnitude);  // inf - inf: inf and NaN give NaN
    p[1] = parameter[2] + parameter[2];
  }

  template <class V, class F>
  FASTQ_HD static V forward(V x, const V* p, const Range<F>& r, typename Wide<V>::type* sums) {
    const V q = round_clipped(clip(x / p[0], r.qmin, r.qmax), F());
    const V y = p[0] * q;
    // fp64: the squares are exact, and sum x^2 - mean^2 must not cancel
    const typename Wide<V>::type wide = Wide<V>::of(x), code = Wide<V>::of(q), rest = wide - Wide<V>::of(y);
    if constexpr (kAll) {
      sums[0] = wide;
      sums[1] = wide * wide;
      sums[2] = wide * code;
      sums[3] = code * code;
      sums[4] = rest * rest;
    } else {
      sums[0] = rest * rest;
    }
    return y;
  }

  template <class V, class F>
  FASTQ_HD static V backward(V x, V g, const V* p, const Range<F>& r, V* terms) {
    const V v = x / p[0];
    const V q = round_clipped(clip(v, r.qmin, r.qmax), F());
    const auto inside = both(v > r.lower, v < r.upper);
    const V nan = nan_of(v, F());
    const V outside = select(v <= r.qmin, splat<V>(r.qmin), splat<V>(r.qmax)) + nan;
    // An error that nobody asked for gives nothing, even where x is infinite.
    const V zero = splat<V>(F(0)), rest = select(p[1] == F(0), zero, p[1] * (x - p[0] * q));
    terms[0] = g * select(inside, q - v, outside);
    terms[1] = select(p[1] == F(0), zero, -rest * q);
    return select(inside, g, nan) + rest;
  }

  template <class F>
  FASTQ_HD static F finish(int, F sum, const F* parameter, F scale) {
    return parameter[0] < F(0) ? -(sum * scale) : sum * scale;
  }
};

}  // namespace FASTQ_ISA
}  // namespace fastq
