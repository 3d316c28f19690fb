// Between torch and the loops: takes tensors, fills in a Call, allocates, runs. Everything here is torch's stable ABI,
// so one build serves every torch >= 2.10.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <optional>
#include <vector>

#include "../cpu/call.h"

namespace fastq {

using torch::stable::Tensor;

// Where the gradient passes, as the schemas number it.
enum Boundary : int64_t { kOpen = 0, kClosed = 1, kRounded = 2 };

// What a method's operators take beside their tensors.
struct Arguments {
  const char* op;
  Method method;
  int64_t qmin, qmax, axis, group_size;
  double eps;
  int64_t boundary = kOpen;
  std::vector<double> scales;  // of the parameters' gradients, backward only
};

// A device's way to run a filled-in Call. CPU and CUDA libraries each have one.
struct Runner {
  void (*forward)(Call&, const Tensor& x);
  void (*backward)(Call&, const Tensor& x);
};

Tensor run_forward(const Runner&, const Arguments&, const Tensor& x, const std::vector<Tensor>& parameters);

// dx, then the gradient of each parameter.
std::vector<Tensor> run_backward(const Runner&, const Arguments&, const Tensor& g, const Tensor& x,
                                 const std::vector<Tensor>& parameters);

// 1 / sqrt(N * qmax) with N = elements of x per parameter (norm 1) or all of them (norm 2); 1 for norm 0.
double gradient_norm(int64_t norm, const Tensor& x, const Tensor& parameter, int64_t qmax);

}  // namespace fastq
