// Chooses the instruction set at run time.
#include <cstdlib>
#include <cstring>

#include "call.h"
#include "features.h"

namespace fastq {

namespace v2 {
extern const Kernels kernels_of_isa;
}
namespace v3 {
extern const Kernels kernels_of_isa;
}
namespace v4 {
extern const Kernels kernels_of_isa;
}

const Kernels* kernels(const char** error) {
  static const char* reason = nullptr;
  static const Kernels* const chosen = []() -> const Kernels* {
    const char* forced = std::getenv("FASTQ_CPU_ISA");
    const int best = best_isa();
    const Kernels* all[] = {nullptr, nullptr, &v2::kernels_of_isa, &v3::kernels_of_isa, &v4::kernels_of_isa};
    if (forced == nullptr || *forced == '\0') {
      if (best < 2) reason = "this processor is older than x86-64-v2 (SSE4.2)";
      return all[best];
    }
    for (int level = 2; level <= 4; ++level) {
      if (std::strcmp(forced, all[level]->isa) != 0) continue;
      if (level <= best) return all[level];
      reason = "FASTQ_CPU_ISA asks for an instruction set that this processor does not have";
      return nullptr;
    }
    reason = "FASTQ_CPU_ISA must be v2, v3 or v4";
    return nullptr;
  }();
  *error = reason;
  return chosen;
}

}  // namespace fastq
