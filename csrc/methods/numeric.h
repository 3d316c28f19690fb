// What every method's formula is written in: the same source serves a float on a GPU thread, a float on the CPU and a
// CPU vector of floats (csrc/cpu/vector.h).
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#define FASTQ_HD __host__ __device__ __forceinline__
#else
#define FASTQ_HD inline __attribute__((always_inline))
#endif

// Objects built for one instruction set keep their inline functions in a namespace of its name: the linker may
// otherwise keep the AVX-512 copy of a function for a machine that has none.
#ifndef FASTQ_ISA
#define FASTQ_ISA portable
#endif

namespace fastq {
inline namespace FASTQ_ISA {

constexpr int kMaxConstants = 4;

// What is the same for all elements of a call. The gradient passes exactly where lower < v < upper: one strict
// comparison serves the three boundary conventions (see mask_bounds). The constants are a method's own numbers.
template <class F>
struct Range {
  F qmin, qmax, lower, upper, eps;
  F constant[kMaxConstants];
};

// What an element may bring beside x: nothing; a random number of the arithmetic type, made of its logical index and of
// a seed, in fp32 (philox.h); 32 bits, read from an array of int32 in the layout of x; or a state of its own: two such
// arrays, read and written.
enum class Word { none, noise, memory, state };

// How random numbers are distributed; each is multiplied by a scale of the call.
enum class Noise : int32_t { uniform, rademacher, normal };  // on +-1/2, +-1, N(0, 1)

// What a method is unless it says otherwise.
struct Quantizer {
  static constexpr Word kWord = Word::none;
  static constexpr int kForwardSums = 0;    // sums that the forward pass makes, per channel and in fp64
  static constexpr bool kMany = false;      // has GPU kernels that take many calls in one launch
  static constexpr bool kOwnTerms = false;  // backward: terms that are not zero where the gradient is
  static constexpr bool kBackward = true;
  static constexpr bool kOutput = true;   // false: the forward pass is made for its sums, and y is not written
  static constexpr bool kScaled = false;  // y is rounded as it is stored, then multiplied by the last prepared value
};

// A select, never a product with the mask: inf * 0 is NaN. For vectors the mask is one of integers, lane by lane.
template <class M, class V>
FASTQ_HD V select(M mask, V yes, V no) {
  return mask ? yes : no;
}
template <class M>
FASTQ_HD M both(M a, M b) {
  return M(a & b);
}

template <class V>
struct Splat {
  template <class F>
  FASTQ_HD static V of(F value) {
    return value;
  }
};

template <class V, class F>
FASTQ_HD V splat(F value) {
  return Splat<V>::of(value);
}

// NaN stays NaN: both comparisons are false.
template <class V, class F>
FASTQ_HD V clip(V v, F low, F high) {
  const V raised = select(v < low, splat<V>(low), v);
  return select(raised > high, splat<V>(high), raised);
}

// Round half to even for |c| <= 2^21: adding 1.5 * 2^23 (fp64: 1.5 * 2^52) leaves no room for a fraction. A zero comes
// out positive, as an integer code's would.
template <class V>
FASTQ_HD V round_clipped(V c, float) {
  return (c + 12582912.0f) - 12582912.0f;
}
template <class V>
FASTQ_HD V round_clipped(V c, double) {
  return (c + 6755399441055744.0) - 6755399441055744.0;
}

// x * y + z with fp32's one rounding of a fused multiply-add, the same on machines that have none: the product is exact
// in fp64. (What is left is fp64's rounding of the sum, which reaches the fp32 result about once in 2^26 close calls.)
template <class V>
struct Fused {
  FASTQ_HD static V of(V x, V y, V z) { return V(double(x) * double(y) + double(z)); }
};

// The arithmetic of sums that must not cancel: fp64, lane by lane.
template <class V>
struct Wide {
  using type = double;
  FASTQ_HD static double of(V v) { return v; }
};

// Words as whole numbers below 2^31, and back. A word has the width of its number: 64 bits beside a vector of doubles.
template <class V>
struct Whole {
  FASTQ_HD static V value(uint32_t word) { return V(int32_t(word)); }
  FASTQ_HD static uint32_t word(V v) { return uint32_t(int32_t(v)); }
};

// A method's formula with the arguments that it takes: forward(x, [word,] p, r[, sums]), backward(x, g, [word,] p, r,
// terms). Unused ones cost nothing. A state is two words, which forward changes.
template <class M, class V, class W, class F>
FASTQ_HD V apply_forward(V x, W* word, const V* p, const Range<F>& r, typename Wide<V>::type* sums) {
  if constexpr (M::kWord == Word::none) {
    if constexpr (M::kForwardSums == 0)
      return M::template forward<V, F>(x, p, r);
    else
      return M::template forward<V, F>(x, p, r, sums);
  } else {
    if constexpr (M::kWord == Word::state)
      return M::template forward<V, W, F>(x, word, p, r);
    else if constexpr (M::kForwardSums == 0)
      return M::template forward<V, W, F>(x, *word, p, r);
    else
      return M::template forward<V, W, F>(x, *word, p, r, sums);
  }
}
template <class M, class V, class W, class F>
FASTQ_HD V apply_backward(V x, V g, const W* word, const V* p, const Range<F>& r, V* terms) {
  if constexpr (M::kWord == Word::none) {
    return M::template backward<V, F>(x, g, p, r, terms);
  } else {
    return M::template backward<V, W, F>(x, g, *word, p, r, terms);
  }
}

// NaN where v is NaN, else 0.
template <class V, class F>
FASTQ_HD V nan_of(V v, F) {
  return select(v == v, splat<V>(F(0)), v);
}

}  // namespace FASTQ_ISA
}  // namespace fastq
