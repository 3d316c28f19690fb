// Sums of products of floating point inputs and packed weights, accumulated in fp32 in the order of K.
//
// Rows of x are packed as fp32; a panel's weights become fp32 too, f - t, [K][kPanel].
#pragma once

#include "sums.h"

namespace fastq {
inline namespace FASTQ_ISA {

struct FloatSums {
  static constexpr int64_t kStep = 128;                                               // elements of K at a time
  static constexpr int kVectors = kPanel / kWidth;                                    // of a panel's columns
  static constexpr int kRows = FASTQ_VECTOR_BYTES == 64 ? 8 : kVectors == 4 ? 2 : 1;  // that registers suffice for

  FASTQ_HD static F32 add(F32 sum, F32 a, F32 b) {
#if FASTQ_VECTOR_BYTES == 64
    return F32(_mm512_fmadd_ps(__m512(a), __m512(b), __m512(sum)));
#elif FASTQ_VECTOR_BYTES == 32
    return F32(_mm256_fmadd_ps(__m256(a), __m256(b), __m256(sum)));
#else
    return sum + a * b;
#endif
  }

  // A block's lines, bytes, from some element of K on, less `zero` for each column.
  FASTQ_HD static void weights(const uint8_t* lines, bool with_sign, int64_t count, const int32_t* zero, float* to) {
    for (int64_t k = 0; k < count; k += 4)
      for (int j = 0; j < kBlockRows; j += kWidth) {
        const U32 four = load_bits<U32>(lines + k / 4 * kLineBytes + j * 4);
        const I32 of_zero = load_bits<I32>(zero + j);
        for (int i = 0; i < 4; ++i) {
          const I32 field = with_sign ? I32(four << (24 - 8 * i)) >> 24 : I32((four >> (8 * i)) & 0xffu);
          store_bits(to + (k + i) * kPanel + j, __builtin_convertvector(field - of_zero, F32));
        }
      }
  }

  template <int kR>
  FASTQ_HD static void tile(const float* x, int64_t stride, const float* w, int64_t count, bool fresh, float* sums) {
    F32 sum[kR][kVectors];
    for (int i = 0; i < kR; ++i)
      for (int j = 0; j < kVectors; ++j) sum[i][j] = fresh ? F32{} : load_bits<F32>(sums + i * kPanel + j * kWidth);
    for (int64_t k = 0; k < count; ++k) {
      F32 of_w[kVectors];
      for (int j = 0; j < kVectors; ++j) of_w[j] = load_bits<F32>(w + k * kPanel + j * kWidth);
      for (int i = 0; i < kR; ++i) {
        const F32 of_x = splat<F32>(x[i * stride + k]);
        for (int j = 0; j < kVectors; ++j) sum[i][j] = add(sum[i][j], of_x, of_w[j]);
      }
    }
    for (int i = 0; i < kR; ++i)
      for (int j = 0; j < kVectors; ++j) store_bits(sums + i * kPanel + j * kWidth, sum[i][j]);
  }

  static void multiply(const float* x, int64_t stride, int64_t m, const float* w, int64_t count, bool fresh,
                       float* sums) {
    int64_t i = 0;
    for (; i + kRows <= m; i += kRows) tile<kRows>(x + i * stride, stride, w, count, fresh, sums + i * kPanel);
    for (; i < m; ++i) tile<1>(x + i * stride, stride, w, count, fresh, sums + i * kPanel);
  }
};

}  // namespace FASTQ_ISA
}  // namespace fastq
