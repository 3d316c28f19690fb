// One call of the integer engine, and what makes codes and packed weights, as raw pointers and sizes, and their CPU
// loops.
#pragma once

#include "../methods/gemm.h"
#include "../methods/packing.h"
#include "call.h"

namespace fastq {

// What is stored in x, the residual and the output.
enum class Stored : int32_t { f32, bf16, f16, i8, u8, i32 };

FASTQ_HD constexpr bool is_code(Stored type) {
  return type == Stored::i8 || type == Stored::u8;
}

// A weight that is to lie in `blocks`: fields, of which the lowest bits count, or what lies in the layout `rows`.
struct PackCall {
  int64_t n, k;
  int bits;
  const int8_t* fields;  // [n, k]; or null:
  const uint8_t* rows;
  uint8_t* blocks;
};

FASTQ_HD constexpr int64_t size_of(Stored type) {
  return is_code(type) ? 1 : type == Stored::bf16 || type == Stored::f16 ? 2 : 4;
}

// A convolution's x is [batch, height, width, groups * channels] in memory, its output [batch, oh, ow, n]. What is to
// the left of and above the image are zeros; so is what is beyond it.
struct GemmWindow {
  int64_t batch, height, width, channels, groups;  // channels: of a group
  int64_t kh, kw, sh, sw, dh, dw, left, top;
  int64_t oh, ow;
};

struct GemmCall {
  int64_t m, n, k;  // of a convolution: positions of the output; k of one group
  Stored x_type;
  const void* x;   // [m, k]
  int32_t x_zero;  // of codes
  // The weight. Scale and zero of element k of row n are at n * scale_step + k / group_size.
  Layout layout;
  int bits;
  int64_t row_bytes;
  int64_t group_size;     // of elements with one scale; k where there are no groups, and at least 1
  int64_t scale_groups;   // of a row; 1 where there are none
  int64_t scale_step;     // 0: one for the tensor
  const uint8_t* weight;  // [n, row_bytes]
  const float* scale;
  const int32_t* zero;  // or null
  const int32_t* sums;  // [n, scale_groups]
  // The epilogue. Where an array is absent it is null.
  const float* x_scale;  // at row * x_scale_step; null: 1
  int64_t x_scale_step;  // 0 or 1
  const float* bias;     // [n], as multiplier and addend
  const float* multiplier;
  const float* addend;
  Stored residual_type;
  const void* residual;  // [m, n]
  Activation activation;
  Stored out_type;
  const float* out_scale;  // one, of codes
  int32_t low, high, out_zero;
  void* out;  // [m, n]
  bool convolution;
  GemmWindow window;

  FASTQ_HD bool integer() const { return is_code(x_type); }
  FASTQ_HD EpilogueParts parts() const {
    return {bias != nullptr, multiplier != nullptr, addend != nullptr, residual != nullptr, activation};
  }
  // Each output channel has an input channel to itself.
  FASTQ_HD bool depthwise() const { return convolution && window.groups > 1 && window.channels == 1; }
};

struct QuantizeCall {
  Stored x_type;
  const void* x;
  int64_t rows, k;  // a given scale: one row
  const float* scale;
  const float* offset;  // or null
  int32_t low, high, zero;
  void* out;      // int8 or uint8 codes in the order of x
  float* scales;  // [rows], where each row has its own; null: `scale`
};

// Columns of the output at a time: two blocks of the weight. A depthwise convolution's pieces: channels, and positions.
constexpr int64_t kGemmColumns = 32;
constexpr int64_t kDepthwiseChannels = 128;
constexpr int64_t kDepthwiseRows = 32;

// How a product is shared out: tasks of so many rows and columns, which the shape alone decides. Rows of x are packed
// in the form that the kernel reads, either first and for all tasks or by each task for itself, where neighbouring
// positions of a convolution make more of them than x has.
struct GemmPlan {
  int64_t rows, columns;                    // of a task
  int64_t row_tasks, column_tasks, groups;  // columns: of a convolution's group
  int64_t work;                             // multiplications of a task
  int64_t stride;                           // bytes of a packed row, its sums included
  bool shared;                              // packed first
  bool tiles;                               // with AMX
  int64_t lines;                            // of the image to a task that reads it as it is; 0: rows are packed
  int64_t scratch;                          // bytes of a task
  int64_t first_row;                        // of those that are packed

  int64_t count() const { return row_tasks * column_tasks * groups; }
};

struct GemmLoops {
  const char* name;  // of the instruction set
  GemmPlan (*plan)(const GemmCall&);
  // Rows of x to `packed`, which begins with plan.first_row; and tasks, which read it.
  void (*pack)(const GemmCall&, const GemmPlan&, uint8_t* packed, int64_t begin, int64_t end);
  void (*product)(const GemmCall&, const GemmPlan&, const uint8_t* packed, int64_t begin, int64_t end);
  void (*quantize)(const QuantizeCall&, int64_t begin, int64_t end);  // over chunks of kChunk elements
  void (*rows)(const QuantizeCall&, int64_t begin, int64_t end);      // over rows
  void (*blocks)(const PackCall&, int64_t begin, int64_t end);        // over rows of bytes of `blocks`
};

// Memory of this thread for a task, aligned to lines; it stays for the next one. Its content is that of the last.
uint8_t* task_memory(int64_t bytes);

}  // namespace fastq
