// Chooses the instruction set at run time.
#include "dispatch.h"

#include <cstdlib>
#include <cstring>

#include "call.h"
#include "features.h"

namespace fastq {

FASTQ_CPU_TABLE(Kernels, kernels_of_isa)

int cpu_level(unsigned built, const char** error) {
  const char* forced = std::getenv("FASTQ_CPU_ISA");
  const int best = best_isa();
  if (forced == nullptr || *forced == '\0') {
    for (int level = best; level >= 2; --level)
      if (built & (1u << level)) return level;
    *error = "this processor is older than x86-64-v2 (SSE4.2)";
    return 0;
  }
  const char* names[] = {"", "", "v2", "v3", "v4"};
  for (int level = 2; level <= 4; ++level) {
    if (std::strcmp(forced, names[level]) != 0) continue;
    if (level <= best && (built & (1u << level))) return level;
    *error = level <= best ? "FASTQ_CPU_ISA asks for an instruction set that this build does not hold"
                           : "FASTQ_CPU_ISA asks for an instruction set that this processor does not have";
    return 0;
  }
  *error = "FASTQ_CPU_ISA must be v2, v3 or v4";
  return 0;
}

const Kernels* kernels(const char** error) {
  return chosen_kernels_of_isa(error);
}

}  // namespace fastq
