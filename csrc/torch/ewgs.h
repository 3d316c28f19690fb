// The operators fastq::ewgs_forward and fastq::ewgs_backward for one device's Runner. Their schemas: fastq/ops/ewgs.py.
#pragma once

#include <tuple>

#include "../methods/ewgs.h"
#include "elementwise.h"

namespace fastq {

inline Arguments ewgs_arguments(const char* op, int64_t levels, double delta, int64_t axis, int64_t group_size,
                                double eps) {
  Arguments a = arguments<EWGS>(op, Method::ewgs, 0, 1, axis, group_size, eps, {"lower", "upper"});
  a.constants[0] = double(levels);
  a.constants[1] = delta;
  return a;
}

template <const Runner& runner>
Tensor ewgs_forward(Tensor x, Tensor lower, Tensor upper, int64_t levels, int64_t axis, int64_t group_size,
                    double eps) {
  return run_forward(runner, ewgs_arguments("ewgs_forward", levels, 0.0, axis, group_size, eps), x, {lower, upper});
}

template <const Runner& runner>
std::tuple<Tensor, Tensor, Tensor> ewgs_backward(Tensor grad, Tensor x, Tensor lower, Tensor upper, int64_t levels,
                                                 int64_t axis, int64_t group_size, double eps, int64_t boundary,
                                                 double delta) {
  Arguments a = ewgs_arguments("ewgs_backward", levels, delta, axis, group_size, eps);
  a.boundary = boundary;
  a.scales[0] = a.scales[1] = 1.0;
  std::vector<Tensor> d = run_backward(runner, a, grad, x, {lower, upper});
  return {d[0], d[1], d[2]};
}

}  // namespace fastq
