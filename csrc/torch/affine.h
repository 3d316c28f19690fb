// The operators fastq::affine_forward and fastq::affine_backward for one device's Runner. Their schemas:
// fastq/ops/affine.py.
#pragma once

#include <tuple>

#include "../methods/affine.h"
#include "elementwise.h"

namespace fastq {

// There is no step to keep away from 0 and no boundary to choose: core's convention has neither.
inline Arguments affine_arguments(const char* op, bool learnable, int64_t qmin, int64_t qmax, int64_t axis) {
  const auto with = [&]<class M>(M, Method method) {
    return arguments<M>(op, method, qmin, qmax, axis, 0, 0.0, {"scale", "zero_point"});
  };
  if (!learnable) return with(Affine<Learns::nothing>(), Method::affine);
  return axis < 0 ? with(Affine<Learns::per_tensor>(), Method::affine_per_tensor)
                  : with(Affine<Learns::per_channel>(), Method::affine_per_channel);
}

template <const Runner& runner>
Tensor affine_forward(Tensor x, Tensor scale, Tensor zero_point, int64_t qmin, int64_t qmax, int64_t axis) {
  return run_forward(runner, affine_arguments("affine_forward", false, qmin, qmax, axis), x, {scale, zero_point});
}

template <const Runner& runner>
std::tuple<Tensor, Tensor, Tensor> affine_backward(Tensor grad, Tensor x, Tensor scale, Tensor zero_point, int64_t qmin,
                                                   int64_t qmax, int64_t axis, bool learnable, double grad_factor) {
  Arguments a = affine_arguments("affine_backward", learnable, qmin, qmax, axis);
  a.scales[0] = a.scales[1] = grad_factor;
  std::vector<Tensor> d = run_backward(runner, a, grad, x, {scale, zero_point});
  if (!learnable) return {d[0], workspace(scale, 0), workspace(zero_point, 0)};
  return {d[0], d[1], d[2]};
}

}  // namespace fastq
