// The CUDA Runner: the device of x, torch's current stream there, and what the launch has to say.
#include "cuda.h"

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>

#include "../cuda/decode.h"
#include "../cuda/direct.h"
#include "../cuda/kernels.h"
#include "../cuda/sat.h"

namespace fastq {

namespace {

template <class Calls, auto kernels>
void run(Calls& c, const Tensor& x) {
  const int32_t device = x.get_device_index();
  const torch::stable::accelerator::DeviceGuard guard(device);
  void* stream = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device, &stream));
  const cuda::Status status = kernels(c, stream);
  STD_TORCH_CHECK(status.error == nullptr, "fastq: CUDA kernel launch failed: ", status.error, " (", status.file, ":",
                  status.line, ")");
}

void product(GemmCall& c, const Tensor& x) {
  run_decode({run<cuda::DecodeCall, cuda::decode_plan>, run<cuda::PadCall, cuda::pad_rows>,
              run<cuda::DecodeCall, cuda::decode>},
             c, x);
}

}  // namespace

const GemmRunner kGemmCuda = {Layout::tiles, product, run<QuantizeCall, cuda::quantize>,
                              run<QuantizeCall, cuda::quantize_rows>, nullptr};
const DirectRunner kDirectCuda = {run<DirectCall, cuda::direct_weight>, run<DirectCall, cuda::direct_gradient>,
                                  run<DirectCall, cuda::direct_update>};
const Runner kCuda = {
    .forward = run<Call, cuda::forward>,
    .backward = run<Call, cuda::backward>,
    .prepares_columns = false,
    .forward_many = run<std::vector<Call>, cuda::forward_many>,
    .backward_many = run<std::vector<Call>, cuda::backward_many>,
    .sat_forward = run<SatCall, cuda::sat_forward>,
    .sat_backward = run<SatCall, cuda::sat_backward>,
};

}  // namespace fastq
