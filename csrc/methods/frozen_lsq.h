// LSQ of a weight some of whose elements are frozen at an integer: fastq/reference/frozen_lsq.py has the formula.
//
//   q = frozen ? frozen_int : round(clip(x / s, qmin, qmax));   y = s * q
//   dx    = 0 where frozen; else LSQ's
//   dstep = G * sign(step) * sum g * (frozen_int where frozen; else LSQ's)
//
// The word is the state's plane `freeze` (oscillation.h), of which it wants the sign and the integer.
#pragma once

#include "lsq.h"
#include "oscillation.h"

namespace fastq {
inline namespace FASTQ_ISA {

struct FrozenLSQ : LSQ<false>, OscillationFields {
  static constexpr Word kWord = Word::memory;
  static constexpr bool kMany = false;

  template <class V, class W, class F>
  FASTQ_HD static V integer(W word, const Range<F>& r) {
    return Whole<V>::value((word & kAverage) >> kAverageBits) + r.qmin;
  }

  template <class V, class W, class F>
  FASTQ_HD static V forward(V x, W word, const V* p, const Range<F>& r) {
    const auto frozen = (word >> kFrozen) != (word ^ word);
    const V q = round_clipped(clip(x / p[0], r.qmin, r.qmax), F());
    return p[0] * select(frozen, integer<V, W, F>(word, r), q);
  }

  template <class V, class W, class F>
  FASTQ_HD static V backward(V x, V g, W word, const V* p, const Range<F>& r, V* terms) {
    const auto frozen = (word >> kFrozen) != (word ^ word);
    const V v = x / p[0];
    const V q = round_clipped(clip(v, r.qmin, r.qmax), F());
    const auto inside = both(v > r.lower, v < r.upper);
    const V nan = nan_of(v, F());
    const V outside = select(v <= r.qmin, splat<V>(r.qmin), splat<V>(r.qmax)) + nan;
    terms[0] = g * select(frozen, integer<V, W, F>(word, r), select(inside, q - v, outside));
    return select(frozen, splat<V>(F(0)), select(inside, g, nan));
  }
};

}  // namespace FASTQ_ISA
}  // namespace fastq
