// csrc/methods/philox.h by CPU vectors: the noise of a run of consecutive elements at once.
//
// A vector holds counters in lanes of 64 bits, each word in the low half: one multiplication gives both halves of the
// product, and a shift moves the high one down. What the high halves hold otherwise is never looked at.
#pragma once

#include "../methods/philox.h"
#include "vector.h"

namespace fastq {
inline namespace FASTQ_ISA {

// maskz: GCC 12 warns of what the plain forms leave uninitialised, and do not read.
#if FASTQ_VECTOR_BYTES == 64
FASTQ_HD U64 wide_product(U64 a, U64 b) {
  return U64(_mm512_maskz_mul_epu32(0xff, __m512i(a), __m512i(b)));
}
FASTQ_HD F32 vector_root(F32 v) {
  return F32(_mm512_maskz_sqrt_ps(0xffff, __m512(v)));
}
#define FASTQ_LANES(f) \
  f(0), f(1), f(2), f(3), f(4), f(5), f(6), f(7), f(8), f(9), f(10), f(11), f(12), f(13), f(14), f(15)
#define FASTQ_WIDE_LANES(f) f(0), f(1), f(2), f(3), f(4), f(5), f(6), f(7)
#elif FASTQ_VECTOR_BYTES == 32
FASTQ_HD U64 wide_product(U64 a, U64 b) {
  return U64(_mm256_mul_epu32(__m256i(a), __m256i(b)));
}
FASTQ_HD F32 vector_root(F32 v) {
  return F32(_mm256_sqrt_ps(__m256(v)));
}
#define FASTQ_LANES(f) f(0), f(1), f(2), f(3), f(4), f(5), f(6), f(7)
#define FASTQ_WIDE_LANES(f) f(0), f(1), f(2), f(3)
#else
#if defined(FASTQ_SSE)
FASTQ_HD U64 wide_product(U64 a, U64 b) {
  return U64(_mm_mul_epu32(__m128i(a), __m128i(b)));
}
FASTQ_HD F32 vector_root(F32 v) {
  return F32(_mm_sqrt_ps(__m128(v)));
}
#else
FASTQ_HD U64 wide_product(U64 a, U64 b) {
  return (a & 0xffffffffu) * (b & 0xffffffffu);
}
FASTQ_HD F32 vector_root(F32 v) {
  for (int i = 0; i < 4; ++i) v[i] = __builtin_sqrtf(v[i]);
  return v;
}
#endif
#define FASTQ_LANES(f) f(0), f(1), f(2), f(3)
#define FASTQ_WIDE_LANES(f) f(0), f(1)
#endif

template <>
struct Word32<F32> {
  using U = U32;
  FASTQ_HD static F32 root(F32 v) { return vector_root(v); }
  FASTQ_HD static F32 number(U32 v) { return __builtin_convertvector(I32(v), F32); }
};

// What makes the noise of a call.
struct NoiseSource {
  Noise kind;
  float scale;
  uint64_t key;
};

// A buffer for the noise of n elements: any of the four words of a block may be the first, and vectors are whole.
constexpr int64_t noise_room(int64_t n) {
  return n + 3 + FASTQ_VECTOR_BYTES;
}

#define FASTQ_EVEN(i) 2 * (i)
#define FASTQ_ODD(i) 2 * (i) + 1
#define FASTQ_COUNT(i) (i)
#define FASTQ_LOW(i) (i) / 2 + ((i) % 2) * kWide
#define FASTQ_HIGH(i) (i) / 2 + ((i) % 2) * kWide + kWide / 2

// kCount vectors of counters from `counter` on: their words, one counter after the other. Two at once hide each other's
// latency.
template <int kCount>
FASTQ_HD void philox_vectors(uint64_t counter, uint64_t key, uint32_t* to) {
  constexpr int kWide = FASTQ_VECTOR_BYTES / 8;
  const U64 a = U64{} + kPhiloxA, b = U64{} + kPhiloxB;
  U64 c0[kCount], c1[kCount], c2[kCount], c3[kCount];
  for (int i = 0; i < kCount; ++i) {
    c0[i] = U64{FASTQ_WIDE_LANES(FASTQ_COUNT)} + (counter + uint64_t(i * kWide));
    c1[i] = c0[i] >> 32;
    c2[i] = c3[i] = U64{};
  }
  uint32_t k0 = uint32_t(key), k1 = uint32_t(key >> 32);
#pragma GCC unroll 10
  for (int round = 0; round < kPhiloxRounds; ++round) {
#pragma GCC unroll 2
    for (int i = 0; i < kCount; ++i) {
      const U64 p = wide_product(c0[i], a), q = wide_product(c2[i], b);
      c0[i] = (q >> 32) ^ c1[i] ^ uint64_t(k0);
      c2[i] = (p >> 32) ^ c3[i] ^ uint64_t(k1);
      c1[i] = q;
      c3[i] = p;
    }
    k0 += kPhiloxKeyA;
    k1 += kPhiloxKeyB;
  }
  for (int i = 0; i < kCount; ++i) {
    const U64 low = U64{} + 0xffffffffu;
    const U64 first = (c0[i] & low) | (c1[i] << 32), second = (c2[i] & low) | (c3[i] << 32);
    store_bits(to + (2 * i) * 2 * kWide, __builtin_shufflevector(first, second, FASTQ_WIDE_LANES(FASTQ_LOW)));
    store_bits(to + (2 * i + 1) * 2 * kWide, __builtin_shufflevector(first, second, FASTQ_WIDE_LANES(FASTQ_HIGH)));
  }
}

// The noise of elements [start, start + n), as bits of floats in `room` of noise_room(n): where that of `start` lies.
inline const uint32_t* fill_noise(const NoiseSource& source, int64_t start, int64_t n, uint32_t* room) {
  constexpr int kWidth = FASTQ_VECTOR_BYTES / 4, kVector = 2 * kWidth;  // elements of a vector of counters
  const int64_t skip = start % 4;
  int64_t filled = 0;
  for (; filled + kVector < skip + n; filled += 2 * kVector)
    philox_vectors<2>(uint64_t((start + filled) / 4), source.key, room + filled);
  if (filled < skip + n) philox_vectors<1>(uint64_t((start + filled) / 4), source.key, room + filled);
  for (int64_t j = 0; j < skip + n; j += 2 * kWidth) {
    const U32 x = load_bits<U32>(room + j), y = load_bits<U32>(room + j + kWidth);
    F32 first, second;
    if (source.kind == Noise::normal) {
      F32 even, odd;
      normal_of(__builtin_shufflevector(x, y, FASTQ_LANES(FASTQ_EVEN)),
                __builtin_shufflevector(x, y, FASTQ_LANES(FASTQ_ODD)), &even, &odd);
      constexpr int kWide = kWidth;
      first = __builtin_shufflevector(even, odd, FASTQ_LANES(FASTQ_LOW));
      second = __builtin_shufflevector(even, odd, FASTQ_LANES(FASTQ_HIGH));
    } else if (source.kind == Noise::uniform) {
      first = uniform_of<F32>(x);
      second = uniform_of<F32>(y);
    } else {
      first = rademacher_of<F32>(x);
      second = rademacher_of<F32>(y);
    }
    store_bits(room + j, first * source.scale);
    store_bits(room + j + kWidth, second * source.scale);
  }
  return room + skip;
}

}  // namespace FASTQ_ISA
}  // namespace fastq
