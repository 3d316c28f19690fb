// The operators fastq::dsq_forward and fastq::dsq_backward for one device's Runner. Their schemas: fastq/ops/dsq.py.
#pragma once

#include <tuple>

#include "../methods/dsq.h"
#include "elementwise.h"

namespace fastq {

inline Arguments dsq_arguments(const char* op, bool learned, double alpha, int64_t levels, int64_t axis,
                               int64_t group_size) {
  const std::array<const char*, kMaxParameters> names = {"lower", "upper", "alpha"};
  Arguments a = learned ? arguments<DSQ<true>>(op, Method::dsq_alpha, 0, levels, axis, group_size, 1e-8, names)
                        : arguments<DSQ<false>>(op, Method::dsq, 0, levels, axis, group_size, 1e-8, names);
  a.constants[0] = alpha;
  a.constants[1] = 1e-4;  // fastq.reference.dsq.ALPHA_RANGE
  a.constants[2] = 0.99;
  return a;
}

template <const Runner& runner>
Tensor dsq_forward(Tensor x, Tensor lower, Tensor upper, int64_t levels, int64_t axis, int64_t group_size) {
  return run_forward(runner, dsq_arguments("dsq_forward", false, 0.5, levels, axis, group_size), x, {lower, upper});
}

template <const Runner& runner>
std::tuple<Tensor, Tensor, Tensor, Tensor> dsq_backward(Tensor grad, Tensor x, Tensor lower, Tensor upper,
                                                        std::optional<Tensor> alpha, double constant, int64_t levels,
                                                        int64_t axis, int64_t group_size) {
  Arguments a = dsq_arguments("dsq_backward", alpha.has_value(), constant, levels, axis, group_size);
  a.scales[0] = a.scales[1] = a.scales[2] = 1.0;
  std::vector<Tensor> parameters = {lower, upper};
  if (alpha) parameters.push_back(*alpha);
  std::vector<Tensor> d = run_backward(runner, a, grad, x, parameters);
  if (!alpha) d.push_back(workspace(lower, 0));
  return {d[0], d[1], d[2], d[3]};
}

}  // namespace fastq
