// The integer engine's operators of csrc/torch/register_cuda.cpp over its kernels compiled as plain C++, for CPU
// tensors.
#include "../../csrc/torch/decode.h"

namespace fastq {

namespace {

template <class Calls, auto kernels>
void run(Calls& c, const Tensor&) {
  const cuda::Status status = kernels(c, nullptr);
  STD_TORCH_CHECK(status.error == nullptr, status.error);
}

void product(GemmCall& c, const Tensor& x) {
  run_decode({run<cuda::DecodeCall, cuda::decode_plan>, run<cuda::PadCall, cuda::pad_rows>,
              run<cuda::DecodeCall, cuda::decode>},
             c, x);
}

}  // namespace

extern const GemmRunner kGemmEmulated;
const GemmRunner kGemmEmulated = {Layout::tiles, product, run<QuantizeCall, cuda::quantize>,
                                  run<QuantizeCall, cuda::quantize_rows>};

}  // namespace fastq

STABLE_TORCH_LIBRARY_IMPL(fastq_engine_emulated, CPU, m) {
  fastq::implement_gemm<fastq::kGemmEmulated>(m);
}
