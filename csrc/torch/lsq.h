// The operators fastq::lsq_forward and fastq::lsq_backward for one device's Runner. Their schemas: fastq/ops/lsq.py.
#pragma once

#include <tuple>

#include "../methods/lsq.h"
#include "elementwise.h"

namespace fastq {

inline Arguments lsq_arguments(const char* op, bool offset, int64_t qmin, int64_t qmax, int64_t axis,
                               int64_t group_size, double eps) {
  return offset ? arguments<LSQ<true>>(op, Method::lsq_offset, qmin, qmax, axis, group_size, eps, {"step", "offset"})
                : arguments<LSQ<false>>(op, Method::lsq, qmin, qmax, axis, group_size, eps, {"step"});
}

inline std::vector<Tensor> lsq_parameters(const Tensor& step, const std::optional<Tensor>& offset) {
  return offset ? std::vector<Tensor>{step, *offset} : std::vector<Tensor>{step};
}

template <const Runner& runner>
Tensor lsq_forward(Tensor x, Tensor step, std::optional<Tensor> offset, int64_t qmin, int64_t qmax, int64_t axis,
                   int64_t group_size, double eps) {
  return run_forward(runner, lsq_arguments("lsq_forward", offset.has_value(), qmin, qmax, axis, group_size, eps), x,
                     lsq_parameters(step, offset));
}

template <const Runner& runner>
std::tuple<Tensor, Tensor, Tensor> lsq_backward(Tensor grad, Tensor x, Tensor step, std::optional<Tensor> offset,
                                                int64_t qmin, int64_t qmax, int64_t axis, int64_t group_size,
                                                double eps, int64_t boundary, double grad_scale, int64_t grad_norm,
                                                double offset_grad_scale) {
  Arguments a = lsq_arguments("lsq_backward", offset.has_value(), qmin, qmax, axis, group_size, eps);
  a.boundary = boundary;
  a.scales[0] = grad_scale * gradient_norm(grad_norm, x, step, qmax);
  a.scales[1] = offset_grad_scale;
  std::vector<Tensor> d = run_backward(runner, a, grad, x, lsq_parameters(step, offset));
  if (!offset) d.push_back(workspace(step, 0));
  return {d[0], d[1], d[2]};
}

}  // namespace fastq
