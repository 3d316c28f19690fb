// Tables of function pointers that are compiled once for each instruction set, and the choice among them.
#pragma once

namespace fastq {

// The level N (x86-64-vN) whose code runs here: the best that this machine has and the build holds (`built`: bit N), or
// the one FASTQ_CPU_ISA names; 0 with a message where that cannot be.
int cpu_level(unsigned built, const char** error);

// Declares TYPE NAME of each level, and chosen_NAME(): the one in use. A build for development may hold fewer levels
// (FASTQ_CPU_LEVELS), hence weak.
#define FASTQ_CPU_TABLE(Type, name)                                                               \
  namespace v2 {                                                                                  \
  extern const Type name __attribute__((weak));                                                   \
  }                                                                                               \
  namespace v3 {                                                                                  \
  extern const Type name __attribute__((weak));                                                   \
  }                                                                                               \
  namespace v4 {                                                                                  \
  extern const Type name __attribute__((weak));                                                   \
  }                                                                                               \
  inline const Type* chosen_##name(const char** error) {                                          \
    static const char* reason = nullptr;                                                          \
    static const Type* const chosen = [] {                                                        \
      const Type* const all[] = {nullptr, nullptr, &v2::name, &v3::name, &v4::name};              \
      unsigned built = 0;                                                                         \
      for (int level = 2; level <= 4; ++level) built |= all[level] != nullptr ? 1u << level : 0u; \
      return all[cpu_level(built, &reason)];                                                      \
    }();                                                                                          \
    *error = reason;                                                                              \
    return chosen;                                                                                \
  }

}  // namespace fastq
