// The operators of csrc/torch/register_cuda.cpp over the kernels of csrc/cuda compiled as plain C++, for CPU tensors:
// fastq_emulated::NAME. Everything of the CUDA backend but the launch and the hardware.
#include "../../csrc/cuda/kernels.h"
#include "../../csrc/torch/operators.h"

namespace fastq {

namespace {

template <cuda::Status (*kernels)(const Call&, void*)>
void run(Call& c, const Tensor&) {
  const cuda::Status status = kernels(c, nullptr);
  STD_TORCH_CHECK(status.error == nullptr, status.error);
}

}  // namespace

extern const Runner kEmulated;
const Runner kEmulated = {run<cuda::forward>, run<cuda::backward>};

}  // namespace fastq

STABLE_TORCH_LIBRARY_IMPL(fastq_emulated, CPU, m) {
  fastq::implement_operators<fastq::kEmulated>(m);
}
