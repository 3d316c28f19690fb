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

// What is the same for all elements of a call. The gradient passes exactly where lower < v < upper: one strict
// comparison serves the three boundary conventions (see mask_bounds).
template <class F>
struct Range {
  F qmin, qmax, lower, upper, eps;
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

// NaN where v is NaN, else 0.
template <class V, class F>
FASTQ_HD V nan_of(V v, F) {
  return select(v == v, splat<V>(F(0)), v);
}

}  // namespace FASTQ_ISA
}  // namespace fastq
