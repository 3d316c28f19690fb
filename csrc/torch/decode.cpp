// Between a product and the kernels of few rows: what they refuse, and x in rows that 16-byte loads can take.
#include "decode.h"

namespace fastq {

namespace {

#define FASTQ_DECODE_CHECK(condition, ...) STD_TORCH_CHECK(condition, "fastq::", op, ": ", __VA_ARGS__)

bool at_16_bytes(const void* p) {
  return reinterpret_cast<uintptr_t>(p) % 16 == 0;
}

Tensor bytes(const Tensor& like, int64_t count) {
  const int64_t stride = 1;
  return allocate(like, 1, &count, &stride, aoti_torch_dtype_uint8());
}

}  // namespace

void run_decode(const DecodeRunner& runner, GemmCall& g, const Tensor& x) {
  const char* op = g.convolution ? "int_conv2d" : "int_linear";
  FASTQ_DECODE_CHECK(!g.convolution, "the CUDA library has no convolutions; Triton's kernels serve them");
  FASTQ_DECODE_CHECK(g.m <= cuda::kDecodeMost, "the CUDA kernels take at most ", cuda::kDecodeMost, " rows, got ", g.m,
                     "; Triton's take any number");
  FASTQ_DECODE_CHECK(g.x_type != Stored::f32, "the CUDA kernels take codes, bfloat16 and float16 as x, got float32");
  FASTQ_DECODE_CHECK(g.k <= cuda::kDecodeLongest, "the CUDA kernels take K up to ", cuda::kDecodeLongest, ", got ",
                     g.k);
  FASTQ_DECODE_CHECK(g.scale_groups == 1 || g.group_size <= cuda::kDecodeLongestGroup,
                     "the CUDA kernels take groups of at most ", cuda::kDecodeLongestGroup, ", got ", g.group_size);
  FASTQ_DECODE_CHECK(at_16_bytes(g.weight), "weight must lie at a multiple of 16 bytes");
  cuda::DecodeCall c = {};
  c.gemm = g;
  runner.plan(c, x);
  Tensor rows = x;
  c.x = static_cast<const uint8_t*>(g.x);
  const int64_t size = g.integer() ? 1 : 2;
  if (c.k != g.k || !at_16_bytes(g.x)) {
    rows = bytes(x, c.m * c.k * size);
    cuda::PadCall pad = {c.m, g.k * size, c.k * size, c.x, static_cast<uint8_t*>(rows.mutable_data_ptr())};
    runner.pad(pad, x);
    c.x = pad.to;
  }
  Tensor workspace = bytes(x, c.splits > 1 ? c.splits * c.m * g.n * int64_t(sizeof(uint32_t)) : 0);
  if (c.splits > 1) c.workspace = static_cast<uint32_t*>(workspace.mutable_data_ptr());
  runner.decode(c, x);
}

}  // namespace fastq
