#include "../methods/oscillation.h"

#include "elementwise.h"

namespace fastq {
inline namespace FASTQ_ISA {

// In fp64, which has a product of vectors on every instruction set, as int64 has not.
template <>
struct Toward<F32> {
  FASTQ_HD static U32 of(U32 value, U32 target, float momentum) {
    const I32 way = I32(target - value);
    return value + U32(joined<I32>(part(half_of<I32Half>(way, 0), momentum), part(half_of<I32Half>(way, 1), momentum)));
  }
  FASTQ_HD static I32Half part(I32Half way, double momentum) {
    const F64 exact = doubles(way) * momentum + 0.5;
    const F64 nearest = round_clipped(exact, double());
    return truncated(nearest > exact ? nearest - 1.0 : nearest);
  }
};
template <>
struct Toward<F64> {
  FASTQ_HD static U64 of(U64 value, U64 target, double momentum) {
    U64 result = value;
    for (size_t i = 0; i < sizeof(U64) / sizeof(uint64_t); ++i)
      result[i] = Toward<double>::of(uint32_t(value[i]), uint32_t(target[i]), momentum);
    return result;
  }
};

}  // namespace FASTQ_ISA
}  // namespace fastq

FASTQ_CPU_LOOPS(FASTQ_OSCILLATION)
