// What the processor can do, by the x86-64 micro-architecture levels. Of another processor only the lowest is asked.
#pragma once

#if !defined(__x86_64__)

namespace fastq {

inline bool has_amx() {
  return false;
}
inline bool allow_amx() {
  return false;
}
inline bool has_vnni() {
  return false;
}
inline int best_isa() {
  return 2;
}

}  // namespace fastq

#else

#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

namespace fastq {

// Of CPUID leaf 7, EDX: compilers of 2022 have no names for them in __builtin_cpu_supports.
inline bool has_amx() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (__get_cpuid_count(7, 0, &a, &b, &c, &d) == 0) return false;
  return (d >> 22 & 1u) && (d >> 24 & 1u) && (d >> 25 & 1u);  // bf16, tiles, int8
}

// Tiles are 8 KB of state, which Linux gives to processes that ask, once for all of their threads.
inline bool allow_amx() {
  constexpr long kRequest = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  return syscall(SYS_arch_prctl, kRequest, kTileData) == 0;
}

// What the kernels beyond x86-64-v4 use.
inline bool has_vnni() {
  return __builtin_cpu_supports("avx512vnni") != 0;
}

// What x86-64-v3 has beside its vectors, all of which a compiler may use: bmi1, lzcnt, movbe. A hypervisor may hide
// any.
inline bool has_scalar_v3() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (__get_cpuid(1, &a, &b, &c, &d) == 0 || (c >> 22 & 1u) == 0) return false;          // movbe
  if (__get_cpuid(0x80000001, &a, &b, &c, &d) == 0 || (c >> 5 & 1u) == 0) return false;  // lzcnt
  return __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2");
}

// The highest level x86-64-vN this machine runs, from 2 to 4; 0 below.
inline int best_isa() {
  __builtin_cpu_init();
  if (!__builtin_cpu_supports("sse4.2") || !__builtin_cpu_supports("ssse3") || !__builtin_cpu_supports("popcnt"))
    return 0;
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma") || !__builtin_cpu_supports("f16c") ||
      !has_scalar_v3())
    return 2;
  if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512bw") ||
      !__builtin_cpu_supports("avx512cd") || !__builtin_cpu_supports("avx512dq") || !__builtin_cpu_supports("avx512vl"))
    return 3;
  return 4;
}

}  // namespace fastq

#endif
