// One call of direct quantization, as raw pointers and sizes, and its CPU loops.
#pragma once

#include "../methods/direct.h"
#include "call.h"

namespace fastq {

struct DirectCall {
  int levels;            // 2^b
  int64_t numel;         // everything of that size lies in one and the same order
  DType dtype;           // of w, or of the gradient
  DType residual_dtype;  // of the update
  const uint8_t* codes;
  const float* level;  // [levels]
  const void* g;
  void* w;
  uint8_t* new_codes;  // the update's: where `codes` is
  void* residual;      // or null
  float* partial;      // [chunks, levels]
  float* gradient;     // [levels]
  float lr, rho;
  FASTQ_HD int64_t chunks() const { return (numel + kDirectChunk - 1) / kDirectChunk; }
};

// Over chunks, but `finish`: over levels.
struct DirectLoops {
  void (*weight)(const DirectCall&, int64_t begin, int64_t end);
  void (*gradient)(const DirectCall&, int64_t begin, int64_t end);
  void (*finish)(const DirectCall&, int64_t begin, int64_t end);
  void (*update)(const DirectCall&, int64_t begin, int64_t end);
};

}  // namespace fastq
