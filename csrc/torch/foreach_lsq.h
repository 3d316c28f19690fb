// The operators fastq::foreach_lsq_forward and fastq::foreach_lsq_backward for one device's Runner: LSQ of many tensors
// in one pass, each with its own shape, range and granularity. Their schemas: fastq/ops/foreach.py.
#pragma once

#include "lsq.h"

namespace fastq {

struct ForeachLSQ {
  std::vector<Arguments> arguments;
  std::vector<std::vector<Tensor>> parameters;

  ForeachLSQ(const char* op, const std::vector<Tensor>& x, const std::vector<Tensor>& step,
             const std::vector<int64_t>& qmin, const std::vector<int64_t>& qmax, const std::vector<int64_t>& axis,
             const std::vector<int64_t>& group_size, double eps) {
    const size_t n = x.size();
    STD_TORCH_CHECK(
        step.size() == n && qmin.size() == n && qmax.size() == n && axis.size() == n && group_size.size() == n,
        "fastq::", op, ": x, step, qmin, qmax, axis and group_size must be lists of one length, got ", n, ", ",
        step.size(), ", ", qmin.size(), ", ", qmax.size(), ", ", axis.size(), " and ", group_size.size());
    for (size_t i = 0; i < n; ++i) {
      STD_TORCH_CHECK(x[i].device() == x[0].device(), "fastq::", op, ": all tensors must be on one device");
      arguments.push_back(lsq_arguments(op, false, qmin[i], qmax[i], axis[i], group_size[i], eps));
      parameters.push_back({step[i]});
    }
  }
};

template <const Runner& runner>
std::vector<Tensor> foreach_lsq_forward(std::vector<Tensor> x, std::vector<Tensor> step, std::vector<int64_t> qmin,
                                        std::vector<int64_t> qmax, std::vector<int64_t> axis,
                                        std::vector<int64_t> group_size, double eps) {
  const ForeachLSQ all("foreach_lsq_forward", x, step, qmin, qmax, axis, group_size, eps);
  return run_forward_many(runner, all.arguments, x, all.parameters);
}

// Every dx, then every dstep.
template <const Runner& runner>
std::vector<Tensor> foreach_lsq_backward(std::vector<Tensor> grad, std::vector<Tensor> x, std::vector<Tensor> step,
                                         std::vector<int64_t> qmin, std::vector<int64_t> qmax,
                                         std::vector<int64_t> axis, std::vector<int64_t> group_size, double eps,
                                         int64_t boundary, double grad_scale, int64_t grad_norm) {
  STD_TORCH_CHECK(grad.size() == x.size(), "fastq::foreach_lsq_backward: grad must have as many tensors as x, ",
                  x.size(), ", got ", grad.size());
  ForeachLSQ all("foreach_lsq_backward", x, step, qmin, qmax, axis, group_size, eps);
  for (size_t i = 0; i < x.size(); ++i) {
    all.arguments[i].boundary = boundary;
    all.arguments[i].scales[0] = grad_scale * gradient_norm(grad_norm, x[i], step[i], qmax[i]);
  }
  std::vector<std::vector<Tensor>> gradients = run_backward_many(runner, all.arguments, grad, x, all.parameters);
  std::vector<Tensor> result;
  for (int k = 0; k < 2; ++k)
    for (auto& of_one : gradients) result.push_back(of_one[k]);
  return result;
}

}  // namespace fastq
