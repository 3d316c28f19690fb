// The operators fastq::frozen_lsq_forward and fastq::frozen_lsq_backward for one device's Runner. Their schemas:
// fastq/ops/frozen_lsq.py.
#pragma once

#include <tuple>

#include "../methods/frozen_lsq.h"
#include "elementwise.h"

namespace fastq {

inline Arguments frozen_lsq_arguments(const char* op, const Tensor& freeze, int64_t qmin, int64_t qmax, int64_t axis,
                                      int64_t group_size, double eps) {
  Arguments a = arguments<FrozenLSQ>(op, Method::frozen_lsq, qmin, qmax, axis, group_size, eps, {"step"});
  a.words = freeze;
  return a;
}

template <const Runner& runner>
Tensor frozen_lsq_forward(Tensor x, Tensor step, Tensor freeze, int64_t qmin, int64_t qmax, int64_t axis,
                          int64_t group_size, double eps) {
  return run_forward(runner, frozen_lsq_arguments("frozen_lsq_forward", freeze, qmin, qmax, axis, group_size, eps), x,
                     {step});
}

template <const Runner& runner>
std::tuple<Tensor, Tensor> frozen_lsq_backward(Tensor grad, Tensor x, Tensor step, Tensor freeze, int64_t qmin,
                                               int64_t qmax, int64_t axis, int64_t group_size, double eps,
                                               int64_t boundary, double grad_scale, int64_t grad_norm) {
  Arguments a = frozen_lsq_arguments("frozen_lsq_backward", freeze, qmin, qmax, axis, group_size, eps);
  a.boundary = boundary;
  a.scales[0] = grad_scale * gradient_norm(grad_norm, x, step, qmax);
  std::vector<Tensor> d = run_backward(runner, a, grad, x, {step});
  return {d[0], d[1]};
}

}  // namespace fastq
