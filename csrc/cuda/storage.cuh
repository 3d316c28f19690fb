// Storage types on the GPU: the same bits as csrc/cpu/vector.h (round half to even, NaN canonical). The hardware's
// conversions round so too; only their NaN is another one.
#pragma once

#include <cstdint>
#include <cstring>

#include "../methods/numeric.h"
#if defined(__CUDACC__)
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#endif

namespace fastq {
inline namespace FASTQ_ISA {

template <class To, class From>
FASTQ_HD To bits_as(From value) {
  static_assert(sizeof(To) == sizeof(From));
  To result;
  memcpy(&result, &value, sizeof(To));
  return result;
}

struct Float32Storage {
  using Element = float;
  using F = float;
  FASTQ_HD static float load(float x) { return x; }
  FASTQ_HD static float store(float v) { return v; }
};

struct Float64Storage {
  using Element = double;
  using F = double;
  FASTQ_HD static double load(double x) { return x; }
  FASTQ_HD static double store(double v) { return v; }
};

struct BFloat16Storage {
  using Element = uint16_t;
  using F = float;
  FASTQ_HD static float load(uint16_t x) { return bits_as<float>(uint32_t(x) << 16); }
  FASTQ_HD static uint16_t store(float v) {
#if defined(__CUDA_ARCH__)
    const uint16_t rounded = __bfloat16_as_ushort(__float2bfloat16_rn(v));
#else
    const uint32_t bits = bits_as<uint32_t>(v);
    const uint16_t rounded = uint16_t((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
#endif
    return v == v ? rounded : uint16_t(0x7fc0);
  }
};

struct Float16Storage {
  using Element = uint16_t;
  using F = float;
#if defined(__CUDA_ARCH__)
  FASTQ_HD static float load(uint16_t x) { return __half2float(__ushort_as_half(x)); }
  FASTQ_HD static uint16_t store(float v) {
    const uint16_t rounded = __half_as_ushort(__float2half_rn(v));
    return v == v ? rounded : uint16_t(((bits_as<uint32_t>(v) >> 16) & 0x8000u) | 0x7e00u);
  }
#else
  FASTQ_HD static float load(uint16_t x) {
    const uint32_t magnitude = uint32_t(x & 0x7fffu) << 13;
    const uint32_t finite = bits_as<uint32_t>(bits_as<float>(magnitude) * 5.192296858534828e33f);
    const uint32_t result = (x & 0x7c00u) == 0x7c00u ? (magnitude | 0x7f800000u) : finite;
    return bits_as<float>(result | (uint32_t(x & 0x8000u) << 16));
  }
  FASTQ_HD static uint16_t store(float v) {
    const uint32_t bits = bits_as<uint32_t>(v), sign = (bits >> 16) & 0x8000u, magnitude = bits & 0x7fffffffu;
    const uint32_t normal = (magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
    const uint32_t subnormal = bits_as<uint32_t>(bits_as<float>(magnitude) + 0.5f) - 0x3f000000u;
    uint32_t result = magnitude < 0x38800000u ? subnormal : normal;
    if (magnitude >= 0x477ff000u) result = 0x7c00u;
    if (magnitude > 0x7f800000u) result = 0x7e00u;
    return uint16_t(result | sign);
  }
#endif
};

}  // namespace FASTQ_ISA
}  // namespace fastq
