// CPU vectors of the width of one instruction set, and how storage types become them.
//
// They are GCC/Clang vector extensions, so that the formula of a method, written once over a value type, is vector code
// by construction: nothing hangs on the auto-vectoriser, which turns a select into branches.
#pragma once

#include <cstdint>
#include <cstring>
// FASTQ_PORTABLE: as on a processor that is no x86-64, whose vectors have no instructions named here.
#if defined(__SSE4_2__) && !defined(FASTQ_PORTABLE)
#define FASTQ_SSE 1
#include <immintrin.h>
#endif

#include "../methods/functions.h"
#include "../methods/numeric.h"

#if defined(__AVX512F__)
#define FASTQ_VECTOR_BYTES 64
#elif defined(__AVX2__)
#define FASTQ_VECTOR_BYTES 32
#else
#define FASTQ_VECTOR_BYTES 16
#endif

namespace fastq {
inline namespace FASTQ_ISA {

typedef float F32 __attribute__((vector_size(FASTQ_VECTOR_BYTES)));
typedef double F64 __attribute__((vector_size(FASTQ_VECTOR_BYTES)));
typedef int32_t I32 __attribute__((vector_size(FASTQ_VECTOR_BYTES)));
typedef uint32_t U32 __attribute__((vector_size(FASTQ_VECTOR_BYTES)));
typedef uint64_t U64 __attribute__((vector_size(FASTQ_VECTOR_BYTES)));
typedef float F32Half __attribute__((vector_size(FASTQ_VECTOR_BYTES / 2)));
typedef int32_t I32Half __attribute__((vector_size(FASTQ_VECTOR_BYTES / 2)));
typedef uint32_t U32Half __attribute__((vector_size(FASTQ_VECTOR_BYTES / 2)));
typedef uint16_t U16 __attribute__((vector_size(FASTQ_VECTOR_BYTES / 2)));

template <>
struct Splat<F32> {
  FASTQ_HD static F32 of(float value) { return value - F32{}; }
};
template <>
struct Splat<F64> {
  FASTQ_HD static F64 of(double value) { return value - F64{}; }
};

// The two halves of a vector of 32 bits, and a vector of two halves.
template <class Half, class V>
FASTQ_HD Half half_of(const V& v, int i) {
  Half half;
  std::memcpy(&half, reinterpret_cast<const char*>(&v) + i * sizeof(Half), sizeof(Half));
  return half;
}
template <class V, class Half>
FASTQ_HD V joined(Half low, Half high) {
#if __has_builtin(__builtin_shufflevector)
  // Stored as halves and loaded whole, it would wait for both stores to reach the cache.
  constexpr size_t kLanes = sizeof(Half) / sizeof(low[0]);
  if constexpr (kLanes == 2) return V(__builtin_shufflevector(low, high, 0, 1, 2, 3));
  if constexpr (kLanes == 4) return V(__builtin_shufflevector(low, high, 0, 1, 2, 3, 4, 5, 6, 7));
  if constexpr (kLanes == 8)
    return V(__builtin_shufflevector(low, high, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15));
#endif
  V v;
  std::memcpy(&v, &low, sizeof(Half));
  std::memcpy(reinterpret_cast<char*>(&v) + sizeof(Half), &high, sizeof(Half));
  return v;
}

// Conversions between lanes of different widths, one instruction each. Of __builtin_convertvector GCC 12 makes several,
// and moves through memory.
#if FASTQ_VECTOR_BYTES == 64
FASTQ_HD F64 doubles(F32Half v) {
  return F64(_mm512_cvtps_pd(__m256(v)));
}
FASTQ_HD F64 doubles(I32Half v) {
  return F64(_mm512_cvtepi32_pd(__m256i(v)));
}
FASTQ_HD F32Half floats(F64 v) {
  return F32Half(_mm512_cvtpd_ps(__m512d(v)));
}
FASTQ_HD I32Half truncated(F64 v) {
  return I32Half(_mm512_cvttpd_epi32(__m512d(v)));
}
FASTQ_HD U32 widened(U16 v) {
  return U32(_mm512_cvtepu16_epi32(__m256i(v)));
}
FASTQ_HD U16 narrowed(U32 v) {
  return U16(_mm512_cvtepi32_epi16(__m512i(v)));
}
#elif FASTQ_VECTOR_BYTES == 32
FASTQ_HD F64 doubles(F32Half v) {
  return F64(_mm256_cvtps_pd(__m128(v)));
}
FASTQ_HD F64 doubles(I32Half v) {
  return F64(_mm256_cvtepi32_pd(__m128i(v)));
}
FASTQ_HD F32Half floats(F64 v) {
  return F32Half(_mm256_cvtpd_ps(__m256d(v)));
}
FASTQ_HD I32Half truncated(F64 v) {
  return I32Half(_mm256_cvttpd_epi32(__m256d(v)));
}
FASTQ_HD U32 widened(U16 v) {
  return U32(_mm256_cvtepu16_epi32(__m128i(v)));
}
FASTQ_HD U16 narrowed(U32 v) {  // of numbers below 2^16
  const __m256i w = __m256i(v);
  return U16(_mm_packus_epi32(_mm256_castsi256_si128(w), _mm256_extracti128_si256(w, 1)));
}
#else
FASTQ_HD F64 doubles(F32Half v) {
  return __builtin_convertvector(v, F64);
}
FASTQ_HD F64 doubles(I32Half v) {
  return __builtin_convertvector(v, F64);
}
FASTQ_HD F32Half floats(F64 v) {
  return __builtin_convertvector(v, F32Half);
}
FASTQ_HD I32Half truncated(F64 v) {
  return __builtin_convertvector(v, I32Half);
}
FASTQ_HD U32 widened(U16 v) {
  return __builtin_convertvector(v, U32);
}
FASTQ_HD U16 narrowed(U32 v) {
  return __builtin_convertvector(v, U16);
}
#endif

// As many doubles as F32 has floats, in two vectors that the machine has: sums of one twice as wide would go through
// memory.
struct D32 {
  F64 low, high;

  FASTQ_HD static D32 of(F32 v) { return {doubles(half_of<F32Half>(v, 0)), doubles(half_of<F32Half>(v, 1))}; }
  FASTQ_HD F32 narrow() const { return joined<F32>(floats(low), floats(high)); }
  FASTQ_HD friend D32 operator+(D32 a, D32 b) { return {a.low + b.low, a.high + b.high}; }
  FASTQ_HD friend D32 operator-(D32 a, D32 b) { return {a.low - b.low, a.high - b.high}; }
  FASTQ_HD friend D32 operator*(D32 a, D32 b) { return {a.low * b.low, a.high * b.high}; }
  FASTQ_HD D32& operator+=(D32 b) { return *this = *this + b; }
};

template <>
struct Fused<F32> {
  FASTQ_HD static F32 of(F32 x, F32 y, F32 z) { return (D32::of(x) * D32::of(y) + D32::of(z)).narrow(); }
};
template <>
struct Fused<F64> {
  FASTQ_HD static F64 of(F64 x, F64 y, F64 z) { return x * y + z; }
};

template <>
struct Wide<F32> {
  using type = D32;
  FASTQ_HD static D32 of(F32 v) { return D32::of(v); }
};
template <>
struct Wide<F64> {
  using type = F64;
  FASTQ_HD static F64 of(F64 v) { return v; }
};

template <class V, class T>
FASTQ_HD V load_bits(const T* p) {
  V v;
  std::memcpy(&v, p, sizeof(V));
  return v;
}
template <class V, class T>
FASTQ_HD void store_bits(T* p, V v) {
  std::memcpy(p, &v, sizeof(V));
}

template <>
struct Integers<F32> {
  using type = I32;
  FASTQ_HD static I32 bits(F32 v) { return I32(v); }
  FASTQ_HD static F32 from_bits(I32 i) { return F32(i); }
  FASTQ_HD static I32 truncate(F32 v) { return __builtin_convertvector(v, I32); }
  FASTQ_HD static F32 value(I32 i) { return __builtin_convertvector(i, F32); }
};

// A word for each lane of V, in unsigned integers of its width; or the number that is the float of its bits.
template <class V>
struct Words;
template <>
struct Words<F32> {
  using type = U32;
  FASTQ_HD static U32 load(const uint32_t* p) { return load_bits<U32>(p); }
  FASTQ_HD static F32 number(const uint32_t* p) { return load_bits<F32>(p); }
  FASTQ_HD static void store(uint32_t* p, U32 w) { store_bits(p, w); }
};
template <>
struct Words<F64> {
  using type = U64;
  FASTQ_HD static U64 load(const uint32_t* p) { return __builtin_convertvector(load_bits<U32Half>(p), U64); }
  FASTQ_HD static F64 number(const uint32_t* p) { return __builtin_convertvector(load_bits<F32Half>(p), F64); }
  FASTQ_HD static void store(uint32_t* p, U64 w) { store_bits(p, __builtin_convertvector(w, U32Half)); }
};

template <>
struct Whole<F32> {
  FASTQ_HD static F32 value(U32 word) { return __builtin_convertvector(I32(word), F32); }
  FASTQ_HD static U32 word(F32 v) { return U32(__builtin_convertvector(v, I32)); }
};
template <>
struct Whole<F64> {
  FASTQ_HD static F64 value(U64 word) { return __builtin_convertvector(word, F64); }
  FASTQ_HD static U64 word(F64 v) { return __builtin_convertvector(v, U64); }
};

// Storage types: the arithmetic type F, its vector V, and how to get there and back (round half to even, NaN stays
// NaN).
struct Float32 {
  using Element = float;
  using F = float;
  using V = F32;
  FASTQ_HD static V load(const float* p) { return load_bits<V>(p); }
  FASTQ_HD static void store(float* p, V v) { store_bits(p, v); }
  FASTQ_HD static V rounded(V v) { return v; }  // what a load would give of what is stored
};

struct Float64 {
  using Element = double;
  using F = double;
  using V = F64;
  FASTQ_HD static V load(const double* p) { return load_bits<V>(p); }
  FASTQ_HD static void store(double* p, V v) { store_bits(p, v); }
  FASTQ_HD static V rounded(V v) { return v; }
};

struct BFloat16 {
  using Element = uint16_t;
  using F = float;
  using V = F32;
  FASTQ_HD static V load(const uint16_t* p) { return V(widened(load_bits<U16>(p)) << 16); }
  FASTQ_HD static U32 upper_half(V v) {
    const U32 bits = U32(v);
    const U32 rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    return (v == v) ? rounded : (U32{} + 0x7fc0u);
  }
  FASTQ_HD static void store(uint16_t* p, V v) { store_bits(p, narrowed(upper_half(v))); }
  FASTQ_HD static V rounded(V v) { return V(upper_half(v) << 16); }
};

struct Float16 {
  using Element = uint16_t;
  using F = float;
  using V = F32;
#if FASTQ_VECTOR_BYTES == 64
  FASTQ_HD static V load(const uint16_t* p) { return V(_mm512_cvtph_ps(load_bits<__m256i>(p))); }
  FASTQ_HD static void store(uint16_t* p, V v) {
    store_bits(p, _mm512_cvtps_ph(__m512(v), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
  }
#elif defined(__F16C__)
  FASTQ_HD static V load(const uint16_t* p) { return V(_mm256_cvtph_ps(load_bits<__m128i>(p))); }
  FASTQ_HD static void store(uint16_t* p, V v) {
    store_bits(p, _mm256_cvtps_ph(__m256(v), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
  }
#else
  // Without F16C: move exponent and mantissa to their fp32 places and let one multiplication by 2^112 put the bias
  // right, subnormals included.
  FASTQ_HD static V load(const uint16_t* p) {
    const U32 half = widened(load_bits<U16>(p));
    const U32 sign = (half & 0x8000u) << 16;
    const U32 magnitude = (half & 0x7fffu) << 13;
    const U32 finite = U32(V(magnitude) * 5.192296858534828e33f);
    const U32 special = magnitude | 0x7f800000u;
    const U32 result = ((half & 0x7c00u) == 0x7c00u) ? special : finite;
    return V(result | sign);
  }
  FASTQ_HD static void store(uint16_t* p, V v) {
    const U32 bits = U32(v);
    const U32 sign = (bits >> 16) & 0x8000u;
    const U32 magnitude = bits & 0x7fffffffu;
    const U32 normal = (magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
    const U32 subnormal = U32(V(magnitude) + 0.5f) - 0x3f000000u;  // the addition rounds at the subnormals' last place
    U32 result = (magnitude < 0x38800000u) ? subnormal : normal;
    result = (magnitude >= 0x477ff000u) ? (U32{} + 0x7c00u) : result;
    result = (magnitude > 0x7f800000u) ? (U32{} + 0x7e00u) : result;
    store_bits(p, narrowed(result | sign));
  }
#endif
  FASTQ_HD static V rounded(V v) {
    uint16_t stored[sizeof(V) / sizeof(F)];
    store(stored, v);
    return load(stored);
  }
};

}  // namespace FASTQ_ISA
}  // namespace fastq
