#include "../methods/oscillation.h"

#include "elementwise.h"

namespace fastq {
inline namespace FASTQ_ISA {

// In fp64, which has a product of vectors on every instruction set, as int64 has not.
template <>
struct Toward<F32> {
  FASTQ_HD static U32 of(U32 value, U32 target, float momentum) {
    const D32 exact = __builtin_convertvector(I32(target - value), D32) * double(momentum) + 0.5;
    const D32 nearest = round_clipped(exact, double());
    const D32 floor = nearest > exact ? nearest - 1.0 : nearest;
    return value + U32(__builtin_convertvector(floor, I32));
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
