// The operator fastq::dampening for one device's Runner. Its schema: fastq/ops/dampening.py.
#pragma once

#include <tuple>

#include "../methods/dampening.h"
#include "elementwise.h"

namespace fastq {

inline Arguments dampening_arguments(const char* op, int64_t qmin, int64_t qmax, int64_t axis, int64_t group_size,
                                     double eps, bool gradient) {
  const auto with = [&]<class M>(M, Method method) {
    return arguments<M>(op, method, qmin, qmax, axis, group_size, eps, {"step"});
  };
  Arguments a =
      gradient ? with(Dampening<true>(), Method::dampening) : with(Dampening<false>(), Method::dampening_loss);
  a.total = true;
  a.output = gradient;
  return a;
}

template <const Runner& runner>
std::tuple<Tensor, Tensor> dampening(Tensor w, Tensor step, int64_t qmin, int64_t qmax, int64_t axis,
                                     int64_t group_size, double eps, bool gradient) {
  const Arguments a = dampening_arguments("dampening", qmin, qmax, axis, group_size, eps, gradient);
  const std::array<Tensor, 2> result = run_forward_sums(runner, a, w, {step});
  return {result[0], result[1]};
}

}  // namespace fastq
