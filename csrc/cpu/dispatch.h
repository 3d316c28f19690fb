// Tables of function pointers that are compiled once for each instruction set, and the choice among them.
#pragma once

namespace fastq {

// Instruction sets in their order: the levels x86-64-v2 to v4, v4 with VNNI's dot products, and that with AMX tiles. On
// another processor the lowest is code that names no instruction.
#if defined(__x86_64__)
#define FASTQ_LOWEST_LEVEL v2
#else
#define FASTQ_LOWEST_LEVEL generic
#endif
#define FASTQ_TEXT_OF(name) #name
#define FASTQ_TEXT(name) FASTQ_TEXT_OF(name)
constexpr int kLevels = 7;
constexpr const char* kLevelNames[kLevels] = {"", "", FASTQ_TEXT(FASTQ_LOWEST_LEVEL), "v3", "v4", "vnni", "amx"};
constexpr int kLevelVnni = 5, kLevelAmx = 6;

// The level whose code runs here: the best that this machine has and the table holds (`built`: a bit for each), or the
// one FASTQ_CPU_ISA names; 0 with a message where that cannot be. A table without levels above v4 has v4's for them.
int cpu_level(unsigned built, const char** error);

// The best of this machine, and why it is not the one above it: of AMX, that the system refuses its state; else null.
int best_level(const char** why_not_better);

// Declares TYPE NAME of each level, and chosen_NAME(): the one in use. A build for development may hold fewer levels
// (FASTQ_CPU_LEVELS), hence weak.
#define FASTQ_CPU_TABLE(Type, name)                                                                              \
  namespace FASTQ_LOWEST_LEVEL {                                                                                 \
  extern const Type name __attribute__((weak));                                                                  \
  }                                                                                                              \
  namespace v3 {                                                                                                 \
  extern const Type name __attribute__((weak));                                                                  \
  }                                                                                                              \
  namespace v4 {                                                                                                 \
  extern const Type name __attribute__((weak));                                                                  \
  }                                                                                                              \
  namespace vnni {                                                                                               \
  extern const Type name __attribute__((weak));                                                                  \
  }                                                                                                              \
  namespace amx {                                                                                                \
  extern const Type name __attribute__((weak));                                                                  \
  }                                                                                                              \
  inline const Type* chosen_##name(const char** error) {                                                         \
    static const char* reason = nullptr;                                                                         \
    static const Type* const chosen = [] {                                                                       \
      const Type* const all[kLevels] = {nullptr,     nullptr,   &FASTQ_LOWEST_LEVEL::name, &v3::name, &v4::name, \
                                        &vnni::name, &amx::name};                                                \
      unsigned built = 0;                                                                                        \
      for (int level = 2; level < kLevels; ++level) built |= all[level] != nullptr ? 1u << level : 0u;           \
      return all[cpu_level(built, &reason)];                                                                     \
    }();                                                                                                         \
    *error = reason;                                                                                             \
    return chosen;                                                                                               \
  }

}  // namespace fastq
