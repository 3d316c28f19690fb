// The integer engine's products on a GPU: linear layers of few rows.
#pragma once

#include "../cuda/decode.h"
#include "gemm.h"

namespace fastq {

// A device's way to run filled-in calls; `plan` fills one in.
struct DecodeRunner {
  void (*plan)(cuda::DecodeCall&, const Tensor& x);
  void (*pad)(cuda::PadCall&, const Tensor& x);
  void (*decode)(cuda::DecodeCall&, const Tensor& x);
};

// Refuses what the kernels do not serve.
void run_decode(const DecodeRunner&, GemmCall&, const Tensor& x);

}  // namespace fastq
