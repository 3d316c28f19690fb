// The operators fastq::channel_error_forward and fastq::channel_error_backward for one device's Runner. Their schemas:
// fastq/ops/channel_error.py.
#pragma once

#include <tuple>

#include "../methods/channel_error.h"
#include "elementwise.h"

namespace fastq {

// The step is one for all channels, whose sums are apart.
inline Arguments channel_error_arguments(const char* op, bool all, int64_t qmin, int64_t qmax, int64_t axis,
                                         double eps) {
  const auto with = [&]<class M>(M, Method method) {
    return arguments<M>(op, method, qmin, qmax, axis, 0, eps, {"step", "step", "grad_error"});
  };
  Arguments a =
      all ? with(ChannelError<true>(), Method::channel_stats) : with(ChannelError<false>(), Method::channel_error);
  a.shared[0] = a.shared[1] = true;
  return a;
}

template <const Runner& runner>
std::tuple<Tensor, Tensor> channel_error_forward(Tensor x, Tensor step, int64_t qmin, int64_t qmax, int64_t axis,
                                                 double eps, bool all) {
  Arguments a = channel_error_arguments("channel_error_forward", all, qmin, qmax, axis, eps);
  a.shared[2] = true;  // nothing is read of it
  const auto [y, sums] = run_forward_sums(runner, a, x, {step, step, step});
  return {y, sums};
}

template <const Runner& runner>
std::tuple<Tensor, Tensor, Tensor> channel_error_backward(Tensor grad, Tensor x, Tensor step, Tensor grad_error,
                                                          int64_t qmin, int64_t qmax, int64_t axis, double eps,
                                                          int64_t boundary, double grad_scale, int64_t grad_norm) {
  Arguments a = channel_error_arguments("channel_error_backward", false, qmin, qmax, axis, eps);
  a.boundary = boundary;
  a.scales[0] = grad_scale * gradient_norm(grad_norm, x, step, qmax);
  a.scales[1] = 1.0;
  std::vector<Tensor> d = run_backward(runner, a, grad, x, {step, step, grad_error});
  return {d[0], d[1], d[2]};
}

}  // namespace fastq
