// Oscillation tracking and iterative freezing: fastq/reference/oscillation.py has the state machine,
// fastq/oscillation.py the fields of its two words. Nagel et al., Overcoming Oscillations in Quantization-Aware
// Training, ICML 2022.
//
//   k = frozen ? average : round(clip(w / s, qmin, qmax)) - qmin;     o = 1 where k reverses the last switch
//   f moves towards o, the average towards k; above the limit of f the average is rounded and frozen
//   w = s * (average + qmin) where frozen
//
// Everything but the code is integers, and no field has a sign. constant: momentum (fp32), momentum of the average (the
// same, or 0), limit of f in 2^-24, and whether the first switch counts.
#pragma once

#include <cstring>

#include "numeric.h"

namespace fastq {
inline namespace FASTQ_ISA {

// value + floor((target - value) * momentum + 1/2). The product of a difference of 29 bits and a momentum of 24 is
// exact, here in int64, on the CPU's vectors (csrc/cpu/oscillation.cpp) in fp64.
template <class V>
struct Toward {
  template <class F>
  FASTQ_HD static uint32_t of(uint32_t value, uint32_t target, F momentum) {
    const float m = float(momentum);
    uint32_t bits;
    memcpy(&bits, &m, sizeof(bits));
    const int64_t mantissa = bits == 0 ? 0 : int64_t(bits & 0x7fffffu) | 0x800000;
    const int shift = bits == 0 ? 1 : 150 - int(bits >> 23);
    const int64_t step = (int64_t(int32_t(target - value)) * mantissa + (int64_t(1) << (shift - 1))) >> shift;
    return value + uint32_t(int32_t(step));
  }
};

struct OscillationFields {
  static constexpr uint32_t kAverageBits = 21, kAverage = (1u << 29) - 1, kDirection = 29, kFrozen = 31;
  static constexpr uint32_t kCodeBits = 8, kCode = (1u << 8) - 1, kOne = 1u << 24;
};

struct OscillationStep : Quantizer, OscillationFields {
  static constexpr int kParameters = 1;  // step
  static constexpr int kPrepared = 1;    // s
  static constexpr int kGradients = 0;
  static constexpr Word kWord = Word::state;  // freeze, track
  static constexpr bool kBackward = false;
  static constexpr bool kMany = true;

  template <class F>
  FASTQ_HD static void prepare(const F* parameter, const Range<F>& r, F* p) {
    const F magnitude = parameter[0] < F(0) ? -parameter[0] : parameter[0];
    p[0] = (magnitude < r.eps ? r.eps : magnitude) + (magnitude - magnitude);  // inf - inf: inf and NaN give NaN
  }

  template <class V, class W, class F>
  FASTQ_HD static V forward(V x, W* word, const V* p, const Range<F>& r) {
    const W zero = word[0] ^ word[0], one = zero + 1;
    const W average = word[0] & kAverage, last = (word[0] >> kDirection) & 3, before = word[1] & kCode;
    const auto held = (word[0] >> kFrozen) != zero;

    const V q = round_clipped(clip(x / p[0], r.qmin, r.qmax), F()) - r.qmin;
    const V code = select(q == q, q, Whole<V>::value(before));  // NaN has none
    const W k = select(held, average >> kAverageBits, Whole<V>::word(code));

    const W direction = select(k > before, one, one + 1);
    const W known = last + uint32_t(r.constant[3]);
    const auto switched = k != before;
    const auto reversed = both(both(switched, last != direction), known != zero);
    const W moved = Toward<V>::of(word[1] >> kCodeBits, select(reversed, zero + kOne, zero), r.constant[0]);
    const W frequency = select(moved == kOne, moved - 1, moved);

    const W odd = ((average >> kAverageBits) + uint32_t(int32_t(r.qmin))) & 1;  // of the integer, for half to even
    const W rounded = (average + ((1u << (kAverageBits - 1)) - 1) + odd) >> kAverageBits;
    const W followed = Toward<V>::of(average, k << kAverageBits, r.constant[1]);
    const auto often = frequency > zero + uint32_t(r.constant[2]);
    const W next = select(held, average, select(often, rounded << kAverageBits, followed));
    const W frozen = select(held, one, select(often, one, zero));

    word[0] = (frozen << kFrozen) | (select(switched, direction, last) << kDirection) | next;
    word[1] = (frequency << kCodeBits) | k;
    return select(frozen != zero, p[0] * (Whole<V>::value(next >> kAverageBits) + r.qmin), x);
  }
};

}  // namespace FASTQ_ISA
}  // namespace fastq
