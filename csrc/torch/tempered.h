// The operators fastq::tempered_forward and fastq::tempered_backward for one device's Runner. Their schemas:
// fastq/ops/tempered.py. Without noise the forward pass is LSQ's.
#pragma once

#include <tuple>

#include "../methods/tempered.h"
#include "elementwise.h"

namespace fastq {

// Those of fastq/reference/philox.py: a variance of 1.
inline double unit_variance(int64_t noise) {
  return noise == int64_t(Noise::uniform) ? 3.4641016151377544 : 1.0;
}

inline Arguments tempered_arguments(const char* op, int64_t reading, const std::optional<Tensor>& seed, int64_t qmin,
                                    int64_t qmax, int64_t axis, int64_t group_size, double eps, int64_t boundary,
                                    int64_t noise) {
  STD_TORCH_CHECK(0 <= reading && reading <= 2, "fastq::", op, ": reading must be 0, 1 or 2, got ", reading);
  const auto with = [&]<class M>(M, Method method) {
    return arguments<M>(op, method, qmin, qmax, axis, group_size, eps, {"step", "a", "decay"});
  };
  Arguments a = reading == 0   ? with(Tempered<Reading::noise>(), Method::tempered)
                : reading == 1 ? with(Tempered<Reading::gradient>(), Method::tempered_gradient)
                               : with(Tempered<Reading::still>(), Method::tempered_still);
  a.boundary = boundary;
  a.shared[2] = true;
  a.seed = seed;
  a.noise = noise;
  a.noise_scale = unit_variance(noise);
  return a;
}

template <const Runner& runner>
Tensor tempered_forward(Tensor x, Tensor step, Tensor a, Tensor seed, Tensor decay, int64_t qmin, int64_t qmax,
                        int64_t axis, int64_t group_size, double eps, int64_t boundary, int64_t noise) {
  return run_forward(
      runner, tempered_arguments("tempered_forward", 0, seed, qmin, qmax, axis, group_size, eps, boundary, noise), x,
      {step, a, decay});
}

template <const Runner& runner>
std::tuple<Tensor, Tensor, Tensor> tempered_backward(Tensor grad, Tensor x, Tensor step, Tensor a,
                                                     std::optional<Tensor> seed, std::optional<Tensor> decay,
                                                     int64_t qmin, int64_t qmax, int64_t axis, int64_t group_size,
                                                     double eps, int64_t boundary, int64_t noise, int64_t reading,
                                                     double grad_scale, int64_t grad_norm, double a_grad_scale) {
  Arguments arguments =
      tempered_arguments("tempered_backward", reading, seed, qmin, qmax, axis, group_size, eps, boundary, noise);
  std::vector<Tensor> parameters = {step, a};
  if (arguments.parameters > 2) {
    STD_TORCH_CHECK(decay.has_value(), "fastq::tempered_backward: it needs the decay of its noise");
    parameters.push_back(*decay);
  }
  arguments.scales[0] = grad_scale * gradient_norm(grad_norm, x, step, qmax);
  arguments.scales[1] = a_grad_scale;
  std::vector<Tensor> d = run_backward(runner, arguments, grad, x, parameters);
  return {d[0], d[1], d[2]};
}

}  // namespace fastq
