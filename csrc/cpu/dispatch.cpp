// Chooses the instruction set at run time.
#include "dispatch.h"

#include <cstdlib>
#include <cstring>

#include "call.h"
#include "features.h"

namespace fastq {

FASTQ_CPU_TABLE(Kernels, kernels_of_isa)

int best_level(const char** why_not_better) {
  static const char* reason = nullptr;
  static const int best = [] {
    const int level = best_isa();
    if (level < 4 || !has_vnni()) return level;
    if (!has_amx()) return kLevelVnni;
    if (allow_amx()) return kLevelAmx;
    reason = "the system refuses the state of AMX tiles (arch_prctl ARCH_REQ_XCOMP_PERM)";
    return kLevelVnni;
  }();
  if (why_not_better != nullptr) *why_not_better = reason;
  return best;
}

int cpu_level(unsigned built, const char** error) {
  const char* forced = std::getenv("FASTQ_CPU_ISA");
  const char* no_amx = nullptr;
  const int best = best_level(&no_amx);
  int most = best;
  if (forced != nullptr && *forced != '\0') {
    for (most = kLevels - 1; most >= 2 && std::strcmp(forced, kLevelNames[most]) != 0;) --most;
    if (most < 2) {
      *error = "FASTQ_CPU_ISA must be v2, v3, v4, vnni or amx";
      return 0;
    }
    if (most > best) {
      *error = most == kLevelAmx && no_amx != nullptr
                   ? "FASTQ_CPU_ISA asks for AMX, and the system refuses the state of its tiles"
                   : "FASTQ_CPU_ISA asks for an instruction set that this processor does not have";
      return 0;
    }
    if (!(built & (1u << (most <= 4 ? most : 4)))) {
      *error = "FASTQ_CPU_ISA asks for an instruction set that this build does not hold";
      return 0;
    }
  }
  for (int level = most; level >= 2; --level)
    if (built & (1u << level)) return level;
  *error = "this processor is older than x86-64-v2 (SSE4.2)";
  return 0;
}

const Kernels* kernels(const char** error) {
  return chosen_kernels_of_isa(error);
}

}  // namespace fastq
