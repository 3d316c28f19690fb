// One call of an elementwise quantizer, as raw pointers and sizes: what the torch side fills in and the loops read.
#pragma once

#include <cstdint>

#include "../methods/list.h"
#include "../methods/numeric.h"

namespace fastq {

enum class DType : int32_t { f32, bf16, f16, f64 };

constexpr int kMaxParameters = 4;      // and at most so many gradients
constexpr int kMaxPrepared = 8;        // values of a parameter's elements
constexpr int kMaxSums = 6;            // of one pass
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
  int parameters, prepared_values, gradients, forward_sums;
  const void* x;
  const void* g;         // backward only
  void* out;             // y, or dx
  const int32_t* words;  // Word::memory: in the layout of x
  uint32_t* state[2];    // Word::state: in the layout of x, changed
  const int64_t* seed;   // Word::noise: the key; x is contiguous then, and its order the logical one
  Noise noise;           // its kind
  float noise_scale;
  const void* parameter[kMaxParameters];  // as the user gave them: fp32, or fp64 for fp64 x
  bool shared[kMaxParameters];            // one element for all channels
  void* prepared[kMaxPrepared];           // columns: one value per column of a row, in the arithmetic type
  void* partial[kMaxSums];                // [tasks] or [tasks, width]: the arithmetic type, forward fp64
  void* gradient[kMaxParameters];         // of the parameters
  double scale[kMaxParameters];           // of these gradients
  double* sums[kMaxSums];                 // of the forward pass: [channels], or [1]
  bool total;                             // over all channels
  double qmin, qmax, lower, upper, eps;
  double constant[kMaxConstants];
};

// Where the partial sums of one parameter are: number i at (i / run * channels + channel) * run + i % run. A shared
// parameter has them all.
struct Sums {
  int64_t channels, run, count;
  Sums() = default;
  FASTQ_HD Sums(const Geometry& g, bool shared) {
    channels = shared ? 1 : g.channels;
    run = shared ? 1 : g.columns() ? g.inner : g.chunks();
    count = shared ? g.partials() : g.columns() ? g.tasks() * g.inner : g.outer * g.chunks();
  }
  FASTQ_HD int64_t at(int64_t i, int64_t channel) const { return (i / run * channels + channel) * run + i % run; }
};

// One method's loops for one instruction set.
struct Loops {
  void (*prepare)(const Call&);                               // fills `prepared` (columns only)
  void (*forward)(const Call&, int64_t begin, int64_t end);   // over tasks
  void (*backward)(const Call&, int64_t begin, int64_t end);  // over tasks
  void (*finish)(const Call&, int64_t begin, int64_t end);    // over channels: partial sums to gradients
  void (*sums)(const Call&, int64_t begin, int64_t end);      // over channels: those of the forward pass
};

// Every method's, by its number.
struct Kernels {
  const char* isa;
  const Loops* const* loops;
};

// The best one this machine runs, or the one FASTQ_CPU_ISA names; null with a message where that cannot be.
const Kernels* kernels(const char** error);

}  // namespace fastq
