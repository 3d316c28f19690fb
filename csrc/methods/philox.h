// Philox4x32-10 (Salmon et al., Parallel random numbers: as easy as 1, 2, 3, SC 2011): four random words from a counter
// and a key. Element i of a tensor has word i % 4 of counter i / 4, whatever computes it.
#pragma once

#include "numeric.h"

namespace fastq {
inline namespace FASTQ_ISA {

FASTQ_HD void philox(uint64_t counter, uint64_t key, uint32_t* word) {
  uint32_t a = uint32_t(counter), b = uint32_t(counter >> 32), c = 0, d = 0;
  uint32_t k = uint32_t(key), l = uint32_t(key >> 32);
  for (int round = 0; round < 10; ++round) {
    const uint64_t first = uint64_t(0xD2511F53u) * a, second = uint64_t(0xCD9E8D57u) * c;
    a = uint32_t(second >> 32) ^ b ^ k;
    b = uint32_t(second);
    c = uint32_t(first >> 32) ^ d ^ l;
    d = uint32_t(first);
    k += 0x9E3779B9u;
    l += 0xBB67AE85u;
  }
  word[0] = a;
  word[1] = b;
  word[2] = c;
  word[3] = d;
}

}  // namespace FASTQ_ISA
}  // namespace fastq
