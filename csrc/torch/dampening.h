// The operators fastq::dampening_forward and fastq::dampening_backward for one device's Runner. Their schemas:
// fastq/ops/dampening.py.
#pragma once

#include "../methods/dampening.h"
#include "elementwise.h"

namespace fastq {

inline Arguments dampening_arguments(const char* op, int64_t qmin, int64_t qmax, int64_t axis, int64_t group_size,
                                     double eps) {
  Arguments a = arguments<Dampening<false>>(op, Method::dampening, qmin, qmax, axis, group_size, eps, {"step"});
  a.total = true;
  a.output = false;
  return a;
}

// `factor` is c.
inline Arguments dampening_gradient_arguments(const char* op, int64_t qmin, int64_t qmax, int64_t axis,
                                              int64_t group_size, double eps, double factor) {
  Arguments a =
      arguments<Dampening<true>>(op, Method::dampening_gradient, qmin, qmax, axis, group_size, eps, {"step", "grad"});
  a.shared[1] = true;
  a.constants[0] = 2 * factor;
  return a;
}

template <const Runner& runner>
Tensor dampening_forward(Tensor w, Tensor step, int64_t qmin, int64_t qmax, int64_t axis, int64_t group_size,
                         double eps) {
  const Arguments a = dampening_arguments("dampening_forward", qmin, qmax, axis, group_size, eps);
  return run_forward_sums(runner, a, w, {step})[1];
}

template <const Runner& runner>
Tensor dampening_backward(Tensor grad, Tensor w, Tensor step, int64_t qmin, int64_t qmax, int64_t axis,
                          int64_t group_size, double eps, double factor) {
  const Arguments a = dampening_gradient_arguments("dampening_backward", qmin, qmax, axis, group_size, eps, factor);
  return run_forward(runner, a, w, {step, grad});
}

}  // namespace fastq
