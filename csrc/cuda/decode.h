// A linear layer of few rows (decode.cuh) and the codes of activations (codes.cu), as raw pointers and sizes.
#pragma once

#include "../cpu/gemm.h"
#include "kernels.h"

namespace fastq::cuda {

constexpr int kDecodeMost = 16;                   // rows of x
constexpr int kDecodeRows = 16;                   // of the weight, in a block
constexpr int64_t kDecodeLongest = 1 << 24;       // K
constexpr int64_t kDecodeLongestGroup = 1 << 16;  // of several

// A product in the layout `tiles`, whose x lies at 16 bytes in rows of whole tiles.
struct DecodeCall {
  GemmCall gemm;
  int bits;   // of a field: 2, 4 or 8
  int m, k;   // k: of x as it lies in memory; elements beyond the weight's own are 0
  int tiles;  // of a row of the weight
  const uint8_t* x;
  uint64_t group_factor;  // 2^40 / (group_size / 16) + 1; 0 without groups
  int unit;               // tiles that one warp is to have together
  int splits;             // parts of K, each summed up by blocks of its own
  uint32_t* workspace;    // [splits, m, n] where there are several

  // Whether sums are int32 ones, to be scaled at the end: those of integers without groups. Else they are float32 bits.
  FASTQ_HD bool exact() const { return gemm.integer() && gemm.scale_groups == 1; }
  // Where a warp's part of K begins, in tiles.
  FASTQ_HD int begin_of(int64_t part, int64_t parts) const {
    const int64_t units = (tiles + unit - 1) / unit, tile = units * part / parts * unit;
    return int(tile < tiles ? tile : tiles);
  }
  // The group of element i below 2^24, by one multiplication, and the element before which it ends; beyond the weight's
  // K: the last one, which ends nowhere.
  FASTQ_HD int group_of(int i) const {
    const int group = int((uint64_t(uint32_t(i) / 16) * group_factor) >> 40), last = int(gemm.scale_groups) - 1;
    return group < last ? group : last;
  }
  FASTQ_HD int end_of(int group) const {
    return group + 1 < gemm.scale_groups ? (group + 1) * int(gemm.group_size) : 2147483647;
  }
};

// Fills in what follows from `gemm`, but for `x` and `workspace`: m, k and tiles, and parts of K such that there are
// blocks enough for the current GPU, and two tiles at least for each warp.
Status decode_plan(DecodeCall&, void* stream);
Status decode(const DecodeCall&, void* stream);

// Rows of `bytes` bytes as rows of `padded` bytes, a multiple of 16, whose rest is 0.
struct PadCall {
  int64_t rows, bytes, padded;
  const uint8_t* from;
  uint8_t* to;
};
Status pad_rows(const PadCall&, void* stream);

Status quantize(const QuantizeCall&, void* stream);
Status quantize_rows(const QuantizeCall&, void* stream);

}  // namespace fastq::cuda
