// The operators fastq::noise_quant_forward and fastq::noise_quant_backward for one device's Runner. Their schemas:
// fastq/ops/noise_quant.py.
#pragma once

#include <tuple>

#include "../methods/noise_quant.h"
#include "elementwise.h"

namespace fastq {

// Those of fastq/reference/philox.py: the size of a rounding error.
inline double half_step(int64_t noise) {
  return noise == int64_t(Noise::uniform) ? 1.0 : 0.5;
}

inline Arguments noise_quant_arguments(const char* op, const Tensor& seed, int64_t qmin, int64_t qmax, int64_t axis,
                                       int64_t group_size, double eps, bool clipped, int64_t noise) {
  Arguments a =
      clipped
          ? arguments<NoiseQuant<true>>(op, Method::noise_quant_clipped, qmin, qmax, axis, group_size, eps, {"step"})
          : arguments<NoiseQuant<false>>(op, Method::noise_quant, qmin, qmax, axis, group_size, eps, {"step"});
  a.seed = seed;
  a.noise = noise;
  a.noise_scale = half_step(noise);
  return a;
}

template <const Runner& runner>
Tensor noise_quant_forward(Tensor x, Tensor step, Tensor seed, int64_t qmin, int64_t qmax, int64_t axis,
                           int64_t group_size, double eps, bool clipped, int64_t noise) {
  return run_forward(
      runner, noise_quant_arguments("noise_quant_forward", seed, qmin, qmax, axis, group_size, eps, clipped, noise), x,
      {step});
}

template <const Runner& runner>
std::tuple<Tensor, Tensor> noise_quant_backward(Tensor grad, Tensor x, Tensor step, Tensor seed, int64_t qmin,
                                                int64_t qmax, int64_t axis, int64_t group_size, double eps,
                                                bool clipped, int64_t noise, double grad_scale, int64_t grad_norm) {
  Arguments a = noise_quant_arguments("noise_quant_backward", seed, qmin, qmax, axis, group_size, eps, clipped, noise);
  a.scales[0] = grad_scale * gradient_norm(grad_norm, x, step, qmax);
  std::vector<Tensor> d = run_backward(runner, a, grad, x, {step});
  return {d[0], d[1]};
}

}  // namespace fastq
