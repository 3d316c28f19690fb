// The table of every method's loops for one instruction set: compiled once for each, with FASTQ_ISA naming it.
#include "call.h"

#define FASTQ_STRING_(x) #x
#define FASTQ_STRING(x) FASTQ_STRING_(x)

namespace fastq {
inline namespace FASTQ_ISA {

#define FASTQ_DECLARE(name, ...) extern const Loops name##_loops;
FASTQ_METHODS(FASTQ_DECLARE)

namespace {
#define FASTQ_ADDRESS(name, ...) &name##_loops,
const Loops* const all[] = {FASTQ_METHODS(FASTQ_ADDRESS)};
}  // namespace

extern const Kernels kernels_of_isa;
const Kernels kernels_of_isa = {FASTQ_STRING(FASTQ_ISA), all};

}  // namespace FASTQ_ISA
}  // namespace fastq
