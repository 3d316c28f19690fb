// Noise that belongs to a seed and a place: fastq/reference/philox.py has the formulas, which everything here gives the
// bits of. Philox4x32-10 (Salmon et al., SC 2011) makes four words of a counter and a key; element i of a tensor, in
// logical row-major order, has word i % 4 of counter i / 4. All in fp32, whatever the dtype of the tensor.
#pragma once

#include <cmath>
#include <cstring>

#include "numeric.h"

namespace fastq {
inline namespace FASTQ_ISA {

constexpr uint32_t kPhiloxA = 0xD2511F53u, kPhiloxB = 0xCD9E8D57u;        // multipliers
constexpr uint32_t kPhiloxKeyA = 0x9E3779B9u, kPhiloxKeyB = 0xBB67AE85u;  // what the key grows by each round
constexpr int kPhiloxRounds = 10;

FASTQ_HD void philox(uint64_t counter, uint64_t key, uint32_t* word) {
  uint32_t c0 = uint32_t(counter), c1 = uint32_t(counter >> 32), c2 = 0, c3 = 0;
  uint32_t k0 = uint32_t(key), k1 = uint32_t(key >> 32);
  for (int round = 0; round < kPhiloxRounds; ++round) {
    const uint64_t a = uint64_t(c0) * kPhiloxA, b = uint64_t(c2) * kPhiloxB;
    c0 = uint32_t(b >> 32) ^ c1 ^ k0;
    c2 = uint32_t(a >> 32) ^ c3 ^ k1;
    c1 = uint32_t(b);
    c3 = uint32_t(a);
    k0 += kPhiloxKeyA;
    k1 += kPhiloxKeyB;
  }
  word[0] = c0;
  word[1] = c1;
  word[2] = c2;
  word[3] = c3;
}

// The unsigned integers of a float's or a vector's bits, and its square root: csrc/cpu/philox.h has those of vectors.
template <class V>
struct Word32;
template <>
struct Word32<float> {
  using U = uint32_t;
  FASTQ_HD static float root(float v) { return sqrtf(v); }
  FASTQ_HD static float number(uint32_t v) { return float(int32_t(v)); }
};

template <class To, class From>
FASTQ_HD To same_size(From v) {
  static_assert(sizeof(To) == sizeof(From));
  To result;
  memcpy(&result, &v, sizeof(To));
  return result;
}

// (k + 0.5) * 2^-23 - 0.5 with k = word >> 9, exactly: 1 + k * 2^-23 is a float with the bits of k behind those of 1.
template <class V, class U>
FASTQ_HD V uniform_of(U word) {
  return same_size<V>((word >> 9) | 0x3f800000u) - 1.5f + 5.9604644775390625e-8f;
}

template <class V, class U>
FASTQ_HD V rademacher_of(U word) {
  return same_size<V>((word & 0x80000000u) | 0x3f800000u);
}

// log(u) for u in (0, 1]: u = 2^e * m with sqrt(1/2) <= m < sqrt(2), and the series of 2 * atanh((m - 1) / (m + 1)).
template <class V>
FASTQ_HD V log_of(V u) {
  using U = typename Word32<V>::U;
  const U bits = same_size<U>(u);
  // e + 127, of an unsigned shift: u > 2^-25
  const U biased = (bits - (0x3FB504F3u - 0x00800000u) + (127u << 23)) >> 23;
  const V m = same_size<V>(bits - (biased << 23) + (127u << 23));
  const V f = (m - 1.0f) / (m + 1.0f);
  const V h = f * f;
  const V series = h * (0.6666666666666666f + h * (0.4f + h * (0.2857142857142857f + h * 0.2222222222222222f)));
  return Word32<V>::number(biased - 127u) * 0.6931471805599453f + (2.0f * f + f * series);
}

// Box-Muller: the words of elements 2j and 2j + 1 to their normal numbers.
template <class V, class U>
FASTQ_HD void normal_of(U a, U b, V* even, V* odd) {
  const V r = Word32<V>::root(log_of(uniform_of<V>(a) + 0.5f) * -2.0f);
  const V t = uniform_of<V>(b << 2) * 1.5707963267948966f;
  const V h = t * t;
  const V s = t + t * (h * (-0.16666666666666666f +
                            h * (0.008333333333333333f + h * (-0.0001984126984126984f + h * 2.7557319223985893e-6f))));
  const V c =
      1.0f + h * (-0.5f + h * (0.041666666666666664f +
                               h * (-0.001388888888888889f + h * (2.48015873015873e-5f + h * -2.755731922398589e-7f))));
  const auto crossed = (b & 0x40000000u) != 0u;  // odd quadrants: sine and cosine change places
  const V sine = select(crossed, c, s), cosine = select(crossed, s, c);
  const U turned = b & 0x80000000u, other = ((b >> 30) + 1u) << 30 & 0x80000000u;  // their signs
  *even = r * same_size<V>(same_size<U>(cosine) ^ other);
  *odd = r * same_size<V>(same_size<U>(sine) ^ turned);
}

// The noise of the four elements of a counter.
FASTQ_HD void noise_of(Noise kind, float scale, uint64_t counter, uint64_t key, float* four) {
  uint32_t word[4];
  philox(counter, key, word);
  if (kind == Noise::normal) {
    normal_of(word[0], word[1], four, four + 1);
    normal_of(word[2], word[3], four + 2, four + 3);
  } else {
    for (int i = 0; i < 4; ++i)
      four[i] = kind == Noise::uniform ? uniform_of<float>(word[i]) : rademacher_of<float>(word[i]);
  }
  for (int i = 0; i < 4; ++i) four[i] = four[i] * scale;
}

// The noise of one element.
FASTQ_HD float noise_at(Noise kind, float scale, uint64_t index, uint64_t key) {
  uint32_t word[4];
  philox(index / 4, key, word);
  const bool second = (index & 2) != 0, odd = (index & 1) != 0;
  const uint32_t a = second ? word[2] : word[0], b = second ? word[3] : word[1];
  if (kind != Noise::normal)
    return (kind == Noise::uniform ? uniform_of<float>(odd ? b : a) : rademacher_of<float>(odd ? b : a)) * scale;
  float even, uneven;
  normal_of(a, b, &even, &uneven);
  return (odd ? uneven : even) * scale;
}

}  // namespace FASTQ_ISA
}  // namespace fastq
