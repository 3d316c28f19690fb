// The operators fastq::qil_forward and fastq::qil_backward for one device's Runner. Their schemas: fastq/ops/qil.py.
#pragma once

#include <tuple>

#include "../methods/qil.h"
#include "elementwise.h"

namespace fastq {

inline Arguments qil_arguments(const char* op, bool weight, bool gamma, int64_t levels, int64_t axis,
                               int64_t group_size, double eps) {
  const auto with = [&]<class M>(M, Method method) {
    Arguments a = arguments<M>(op, method, 0, 1, axis, group_size, eps, {"center", "width", "gamma"});
    a.constants[0] = double(levels);
    a.scales[0] = a.scales[1] = a.scales[2] = 1.0;
    return a;
  };
  STD_TORCH_CHECK(weight || !gamma, "fastq::", op, ": gamma is for weights");
  if (gamma) return with(QIL<Transforms::weight_by_power>(), Method::qil_power);
  return weight ? with(QIL<Transforms::weight>(), Method::qil_weight)
                : with(QIL<Transforms::activation>(), Method::qil_activation);
}

inline std::vector<Tensor> qil_parameters(const Tensor& center, const Tensor& width,
                                          const std::optional<Tensor>& gamma) {
  return gamma ? std::vector<Tensor>{center, width, *gamma} : std::vector<Tensor>{center, width};
}

template <const Runner& runner>
Tensor qil_forward(Tensor x, Tensor center, Tensor width, std::optional<Tensor> gamma, int64_t levels, bool weight,
                   int64_t axis, int64_t group_size, double eps) {
  return run_forward(runner, qil_arguments("qil_forward", weight, gamma.has_value(), levels, axis, group_size, eps), x,
                     qil_parameters(center, width, gamma));
}

template <const Runner& runner>
std::tuple<Tensor, Tensor, Tensor, Tensor> qil_backward(Tensor grad, Tensor x, Tensor center, Tensor width,
                                                        std::optional<Tensor> gamma, int64_t levels, bool weight,
                                                        int64_t axis, int64_t group_size, double eps) {
  const Arguments a = qil_arguments("qil_backward", weight, gamma.has_value(), levels, axis, group_size, eps);
  std::vector<Tensor> d = run_backward(runner, a, grad, x, qil_parameters(center, width, gamma));
  if (!gamma) d.push_back(workspace(center, 0));
  return {d[0], d[1], d[2], d[3]};
}

}  // namespace fastq
