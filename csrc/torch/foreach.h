// The operators over many tensors for one device's Runner: LSQ, the dampening loss and the oscillation step, each
// tensor with its own shape, range and granularity. Their schemas: fastq/ops/foreach.py.
#pragma once

#include "dampening.h"
#include "lsq.h"
#include "oscillation.h"

namespace fastq {

using Integers64 = std::vector<int64_t>;

// The arguments and the step of each, as `of(i)` gives them.
struct Each {
  std::vector<Arguments> arguments;
  std::vector<std::vector<Tensor>> parameters;

  template <class Of>
  Each(const char* op, const std::vector<Tensor>& x, const std::vector<Tensor>& step, const Integers64& qmin,
       const Integers64& qmax, const Integers64& axis, const Integers64& group_size, const Of& of) {
    const size_t n = x.size();
    STD_TORCH_CHECK(
        step.size() == n && qmin.size() == n && qmax.size() == n && axis.size() == n && group_size.size() == n,
        "fastq::", op, ": x, step, qmin, qmax, axis and group_size must be lists of one length, got ", n, ", ",
        step.size(), ", ", qmin.size(), ", ", qmax.size(), ", ", axis.size(), " and ", group_size.size());
    arguments.reserve(n);
    parameters.reserve(n);
    for (size_t i = 0; i < n; ++i) {
      STD_TORCH_CHECK(x[i].device() == x[0].device(), "fastq::", op, ": all tensors must be on one device");
      arguments.push_back(of(i));
      parameters.push_back({step[i]});
    }
  }
};

template <const Runner& runner>
std::vector<Tensor> foreach_lsq_forward(std::vector<Tensor> x, std::vector<Tensor> step, Integers64 qmin,
                                        Integers64 qmax, Integers64 axis, Integers64 group_size, double eps) {
  const Each each("foreach_lsq_forward", x, step, qmin, qmax, axis, group_size, [&](size_t i) {
    return lsq_arguments("foreach_lsq_forward", false, qmin[i], qmax[i], axis[i], group_size[i], eps);
  });
  return run_forward_many(runner, each.arguments, x, each.parameters);
}

// Every dx, then every dstep.
template <const Runner& runner>
std::vector<Tensor> foreach_lsq_backward(std::vector<Tensor> grad, std::vector<Tensor> x, std::vector<Tensor> step,
                                         Integers64 qmin, Integers64 qmax, Integers64 axis, Integers64 group_size,
                                         double eps, int64_t boundary, double grad_scale, int64_t grad_norm) {
  STD_TORCH_CHECK(grad.size() == x.size(), "fastq::foreach_lsq_backward: grad must have as many tensors as x, ",
                  x.size(), ", got ", grad.size());
  const Each each("foreach_lsq_backward", x, step, qmin, qmax, axis, group_size, [&](size_t i) {
    Arguments a = lsq_arguments("foreach_lsq_backward", false, qmin[i], qmax[i], axis[i], group_size[i], eps);
    a.boundary = boundary;
    a.scales[0] = grad_scale * gradient_norm(grad_norm, x[i], step[i], qmax[i]);
    return a;
  });
  std::vector<std::vector<Tensor>> gradients = run_backward_many(runner, each.arguments, grad, x, each.parameters);
  std::vector<Tensor> result;
  for (int k = 0; k < 2; ++k)
    for (auto& of_one : gradients) result.push_back(of_one[k]);
  return result;
}

// Every total.
template <const Runner& runner>
std::vector<Tensor> foreach_dampening_forward(std::vector<Tensor> w, std::vector<Tensor> step, Integers64 qmin,
                                              Integers64 qmax, Integers64 axis, Integers64 group_size, double eps) {
  const char* op = "foreach_dampening_forward";
  const Each each(op, w, step, qmin, qmax, axis, group_size,
                  [&](size_t i) { return dampening_arguments(op, qmin[i], qmax[i], axis[i], group_size[i], eps); });
  std::vector<Tensor> result;
  for (const auto& of_one : run_forward_sums_many(runner, each.arguments, w, each.parameters))
    result.push_back(of_one[1]);
  return result;
}

// Every dw.
template <const Runner& runner>
std::vector<Tensor> foreach_dampening_backward(std::vector<Tensor> grad, std::vector<Tensor> w,
                                               std::vector<Tensor> step, Integers64 qmin, Integers64 qmax,
                                               Integers64 axis, Integers64 group_size, double eps,
                                               std::vector<double> factor) {
  const char* op = "foreach_dampening_backward";
  STD_TORCH_CHECK(grad.size() == w.size() && factor.size() == w.size(), "fastq::", op,
                  ": grad and factor must have as many entries as w, ", w.size(), ", got ", grad.size(), " and ",
                  factor.size());
  Each each(op, w, step, qmin, qmax, axis, group_size, [&](size_t i) {
    return dampening_gradient_arguments(op, qmin[i], qmax[i], axis[i], group_size[i], eps, factor[i]);
  });
  for (size_t i = 0; i < w.size(); ++i) each.parameters[i].push_back(grad[i]);
  return run_forward_many(runner, each.arguments, w, each.parameters);
}

template <const Runner& runner>
void foreach_oscillation_step(std::vector<Tensor> weight, std::vector<Tensor> step, std::vector<Tensor> freeze,
                              std::vector<Tensor> track, Integers64 qmin, Integers64 qmax, Integers64 axis,
                              Integers64 group_size, double eps, double momentum, double ema_momentum, int64_t limit,
                              bool count_first) {
  const char* op = "foreach_oscillation_step";
  STD_TORCH_CHECK(freeze.size() == weight.size() && track.size() == weight.size(), "fastq::", op,
                  ": freeze and track must have as many tensors as weight, ", weight.size(), ", got ", freeze.size(),
                  " and ", track.size());
  const Each each(op, weight, step, qmin, qmax, axis, group_size, [&](size_t i) {
    return oscillation_arguments(op, qmin[i], qmax[i], axis[i], group_size[i], eps, momentum, ema_momentum, limit,
                                 count_first);
  });
  std::vector<std::array<Tensor, 2>> planes;
  for (size_t i = 0; i < weight.size(); ++i) planes.push_back({freeze[i], track[i]});
  run_in_place_many(runner, each.arguments, weight, each.parameters, planes, {"freeze", "track"});
}

}  // namespace fastq
