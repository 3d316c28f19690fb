// One call of SAT weights, as raw pointers and sizes, and the loops over it.
#pragma once

#include "../methods/sat.h"
#include "call.h"

namespace fastq {

struct SatCall {
  DType dtype;
  int64_t numel;
  SatOrder order;
  SatRule rule;
  bool through_max;
  const void* w;
  const void* g;        // backward only
  void* out;            // y, or dw; in the order of w, as g
  double* scale;        // m, kappa, VAR[Q]
  int64_t* index;       // of the first maximum, row-major; -1 where there is none
  void* largest;        // max|w| of each chunk, then of the tensor; the arithmetic type
  uint8_t* codes;       // k of each element
  int64_t* code_sums;   // [chunks, 2]
  int64_t* candidates;  // the lowest index of the maximum in each chunk
  double* sums;         // [4, chunks]: SatSums::unit, SatSums::weight
  void* partial;        // backward: sum g * t of each chunk, the arithmetic type

  FASTQ_HD int64_t chunks() const { return (numel + kSatChunk - 1) / kSatChunk; }
};

// Each over chunks [begin, end), or once over what the chunks left.
struct SatLoops {
  void (*largest)(const SatCall&, int64_t begin, int64_t end);
  void (*find_largest)(const SatCall&);
  void (*codes)(const SatCall&, int64_t begin, int64_t end);
  void (*find_scale)(const SatCall&);
  void (*scale)(const SatCall&, int64_t begin, int64_t end);
  void (*backward)(const SatCall&, int64_t begin, int64_t end);
  void (*correct)(const SatCall&);
};

}  // namespace fastq
