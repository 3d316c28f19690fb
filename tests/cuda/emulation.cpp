// The operators of csrc/torch/register_cuda.cpp over the kernels of csrc/cuda compiled as plain C++, for CPU tensors:
// fastq_emulated::NAME. Everything of the CUDA backend but the launch and the hardware.
#include "../../csrc/cuda/direct.h"
#include "../../csrc/cuda/kernels.h"
#include "../../csrc/cuda/sat.h"
#include "../../csrc/torch/direct.h"
#include "../../csrc/torch/operators.h"

namespace fastq {

namespace {

template <class Calls, cuda::Status (*kernels)(const Calls&, void*)>
void run(Calls& c, const Tensor&) {
  const cuda::Status status = kernels(c, nullptr);
  STD_TORCH_CHECK(status.error == nullptr, status.error);
}

}  // namespace

extern const Runner kEmulated;
extern const DirectRunner kDirectEmulated;
const DirectRunner kDirectEmulated = {run<DirectCall, cuda::direct_weight>, run<DirectCall, cuda::direct_gradient>,
                                      run<DirectCall, cuda::direct_update>};
const Runner kEmulated = {
    .forward = run<Call, cuda::forward>,
    .backward = run<Call, cuda::backward>,
    .prepares_columns = false,
    .forward_many = run<std::vector<Call>, cuda::forward_many>,
    .backward_many = run<std::vector<Call>, cuda::backward_many>,
    .sat_forward = run<SatCall, cuda::sat_forward>,
    .sat_backward = run<SatCall, cuda::sat_backward>,
};

}  // namespace fastq

STABLE_TORCH_LIBRARY_IMPL(fastq_emulated, CPU, m) {
  fastq::implement_operators<fastq::kEmulated>(m);
  fastq::implement_direct<fastq::kDirectEmulated>(m);
}
