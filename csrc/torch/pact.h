// The operators fastq::pact_forward and fastq::pact_backward for one device's Runner. Their schemas: fastq/ops/pact.py.
#pragma once

#include <tuple>

#include "../methods/pact.h"
#include "elementwise.h"

namespace fastq {

inline Arguments pact_arguments(const char* op, bool calibrated, bool two_sided, int64_t levels, int64_t axis,
                                int64_t group_size, double eps) {
  const auto with = [&]<class M>(M, Method method) {
    return arguments<M>(op, method, two_sided ? -levels : 0, levels, axis, group_size, eps, {"alpha"});
  };
  if (two_sided) {
    return calibrated ? with(PACT<true, true>(), Method::pact_two_sided)
                      : with(PACT<false, true>(), Method::pact_two_sided_plain);
  }
  return calibrated ? with(PACT<true, false>(), Method::pact) : with(PACT<false, false>(), Method::pact_plain);
}

template <const Runner& runner>
Tensor pact_forward(Tensor x, Tensor alpha, int64_t levels, bool two_sided, int64_t axis, int64_t group_size,
                    double eps) {
  return run_forward(runner, pact_arguments("pact_forward", true, two_sided, levels, axis, group_size, eps), x,
                     {alpha});
}

template <const Runner& runner>
std::tuple<Tensor, Tensor> pact_backward(Tensor grad, Tensor x, Tensor alpha, int64_t levels, bool two_sided,
                                         int64_t axis, int64_t group_size, double eps, bool calibrated) {
  Arguments a = pact_arguments("pact_backward", calibrated, two_sided, levels, axis, group_size, eps);
  a.scales[0] = 1.0 / double(levels);
  std::vector<Tensor> d = run_backward(runner, a, grad, x, {alpha});
  return {d[0], d[1]};
}

}  // namespace fastq
