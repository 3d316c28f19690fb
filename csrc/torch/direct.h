// The operators of direct quantization for one device's Runner. Their schemas: fastq/ops/direct.py.
#pragma once

#include <optional>

#include "../cpu/direct.h"
#include "elementwise.h"

namespace fastq {

using torch::headeronly::ScalarType;

// A device's way to run a filled-in DirectCall.
struct DirectRunner {
  void (*weight)(DirectCall&, const Tensor& codes);
  void (*gradient)(DirectCall&, const Tensor& codes);
  void (*update)(DirectCall&, const Tensor& codes);
};

Tensor run_direct_weight(const DirectRunner&, const Tensor& codes, const Tensor& levels, ScalarType dtype);
Tensor run_direct_gradient(const DirectRunner&, const Tensor& grad, const Tensor& codes, int64_t levels);
void run_direct_update(const DirectRunner&, const Tensor& codes, const std::optional<Tensor>& residual,
                       const Tensor& levels, const Tensor& grad, double lr, double rho);

template <const DirectRunner& runner>
Tensor direct_weight_forward(Tensor codes, Tensor levels, ScalarType dtype) {
  return run_direct_weight(runner, codes, levels, dtype);
}

template <const DirectRunner& runner>
Tensor direct_weight_backward(Tensor grad, Tensor codes, int64_t levels) {
  return run_direct_gradient(runner, grad, codes, levels);
}

template <const DirectRunner& runner>
void direct_update(Tensor codes, std::optional<Tensor> residual, Tensor levels, Tensor grad, double lr, double rho) {
  run_direct_update(runner, codes, residual, levels, grad, lr, rho);
}

template <const DirectRunner& runner, class Library>
void implement_direct(Library& m) {
  m.impl("direct_weight_forward", TORCH_BOX(&direct_weight_forward<runner>));
  m.impl("direct_weight_backward", TORCH_BOX(&direct_weight_backward<runner>));
  m.impl("direct_update_", TORCH_BOX(&direct_update<runner>));
}

}  // namespace fastq
