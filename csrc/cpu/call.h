// One call of an elementwise quantizer, as raw pointers and sizes: what the torch side fills in and the loops read.
#pragma once

#include <cstdint>

#include "../methods/numeric.h"

namespace fastq {

enum class DType : int32_t { f32, bf16, f16, f64 };
// A new method is one line here.
enum class Method : int32_t {
  lsq,
  lsq_offset,
  affine,
  affine_per_tensor,
  affine_per_channel,
};

constexpr int kMaxParameters = 4;      // and at most so many prepared values and gradients
constexpr int64_t kChunk = 4096;       // elements of one partial sum along a row
constexpr int64_t kRowBlock = 128;     // rows of one partial sum down a column
constexpr int64_t kLanes = 32;         // partial sums kept side by side; the same on every instruction set
constexpr int64_t kFinishLanes = 256;  // sums of partial sums kept side by side

// x read as [outer, channels, inner]: element i uses parameter (i / inner) % channels.
struct Geometry {
  int64_t outer, channels, inner;
  FASTQ_HD int64_t numel() const { return outer * channels * inner; }
  // Short runs of one parameter, repeated: walk rows of channels*inner with a vector of parameters instead.
  FASTQ_HD bool columns() const { return inner < kLanes && outer > 1; }
  FASTQ_HD int64_t width() const { return channels * inner; }
  FASTQ_HD int64_t chunks() const { return (inner + kChunk - 1) / kChunk; }
  // Independent pieces of work, each with a partial sum of its own; they depend on nothing but the shape.
  FASTQ_HD int64_t tasks() const {
    return columns() ? (outer + kRowBlock - 1) / kRowBlock : outer * channels * chunks();
  }
  FASTQ_HD int64_t task_elements() const {
    const int64_t n = columns() ? width() * kRowBlock : (inner < kChunk ? inner : kChunk);
    return n > 0 ? n : 1;
  }
  // Partial sums of one parameter.
  FASTQ_HD int64_t partials() const { return columns() ? tasks() * width() : tasks(); }
};

struct Call {
  Method method;
  DType dtype;
  Geometry geometry;
  int parameters, prepared_values, gradients;
  const void* x;
  const void* g;                          // backward only
  void* out;                              // y, or dx
  const void* parameter[kMaxParameters];  // as the user gave them: fp32, or fp64 for fp64 x
  void* prepared[kMaxParameters];         // columns: one value per column of a row, in the arithmetic type
  void* partial[kMaxParameters];          // [tasks] or [tasks, width], in the arithmetic type
  void* gradient[kMaxParameters];         // of the parameters
  double scale[kMaxParameters];           // of these gradients
  double qmin, qmax, lower, upper, eps;
};

// The loops of one instruction set, each over tasks [begin, end).
struct Kernels {
  const char* isa;
  void (*prepare)(const Call&);  // fills `prepared` (columns only)
  void (*forward)(const Call&, int64_t begin, int64_t end);
  void (*backward)(const Call&, int64_t begin, int64_t end);
  void (*finish)(const Call&, int64_t begin, int64_t end);  // over channels: partial sums to gradients
};

// The best one this machine runs, or the one FASTQ_CPU_ISA names; null with a message where that cannot be.
const Kernels* kernels(const char** error);

}  // namespace fastq
