// Between torch and the loops: takes tensors, fills in a Call, allocates, runs. Everything here is torch's stable ABI,
// so one build serves every torch >= 2.10.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <array>
#include <optional>
#include <string>
#include <vector>

#include "../cpu/call.h"

#if !defined(STABLE_TORCH_ERROR_CODE_CHECK)  // its name before torch 2.13
#define STABLE_TORCH_ERROR_CODE_CHECK TORCH_ERROR_CODE_CHECK
#endif

namespace fastq {

using torch::stable::Tensor;

// Where the gradient passes, as the schemas number it.
enum Boundary : int64_t { kOpen = 0, kClosed = 1, kRounded = 2 };

// What a method's operators take beside their tensors, and the counts of the method's struct.
struct Arguments {
  const char* op;
  Method method;
  int parameters, prepared_values, gradients, forward_sums;
  Word word;
  int64_t qmin, qmax, axis, group_size;
  double eps;
  std::array<const char*, kMaxParameters> names;  // of the parameters, for messages
  int64_t boundary = kOpen;
  double scales[kMaxParameters] = {};    // of the gradients, backward only
  double constants[kMaxConstants] = {};  // the method's own numbers
  bool shared[kMaxParameters] = {};      // a parameter of one element, whatever the granularity
  std::optional<Tensor> words = {};      // Word::memory: int32, of the shape of x
  std::optional<Tensor> seed = {};       // Word::noise: int64, one element
  int64_t noise = 0;                     // its kind, as enum Noise numbers them
  double noise_scale = 1.0;
  bool total = false;  // the sums of the forward pass are those of all channels together
  bool output = true;  // y is wanted; M::kOutput says so, too
};

// M is the struct in csrc/methods that `method` names.
template <class M>
Arguments arguments(const char* op, Method method, int64_t qmin, int64_t qmax, int64_t axis, int64_t group_size,
                    double eps, std::array<const char*, kMaxParameters> names) {
  return {op,   method, M::kParameters, M::kPrepared, M::kGradients, M::kForwardSums, M::kWord, qmin,
          qmax, axis,   group_size,     eps,          names};
}

struct SatCall;

// A device's way to run a filled-in Call. CPU and CUDA libraries each have one.
struct Runner {
  void (*forward)(Call&, const Tensor& x);
  void (*backward)(Call&, const Tensor& x);
  bool prepares_columns;  // needs Call::prepared where parameters lie along a row
  // The same for many calls of one device at once. Each has its own method, dtype and geometry.
  void (*forward_many)(std::vector<Call>&, const Tensor& x);
  void (*backward_many)(std::vector<Call>&, const Tensor& x);
  void (*sat_forward)(SatCall&, const Tensor& w);
  void (*sat_backward)(SatCall&, const Tensor& w);
};

Tensor run_forward(const Runner&, const Arguments&, const Tensor& x, const std::vector<Tensor>& parameters);

// y, and the sums of the forward pass: fp64, [sums, channels] (`total`: [sums, 1]).
std::array<Tensor, 2> run_forward_sums(const Runner&, const Arguments&, const Tensor& x,
                                       const std::vector<Tensor>& parameters);

// Word::state: y goes over x, and the two planes, int32 and of the shape of x, are changed as well. Any strides are
// right.
void run_in_place(const Runner&, const Arguments&, Tensor& x, const std::vector<Tensor>& parameters,
                  const std::array<Tensor, 2>& planes, std::array<const char*, 2> names);

// dx, then the gradients: the method's i-th sum has the shape of its i-th parameter.
std::vector<Tensor> run_backward(const Runner&, const Arguments&, const Tensor& g, const Tensor& x,
                                 const std::vector<Tensor>& parameters);

// Many tensors in one pass: each with its arguments and parameters. Backward: every dx, then the gradients of each.
std::vector<Tensor> run_forward_many(const Runner&, const std::vector<Arguments>&, const std::vector<Tensor>& x,
                                     const std::vector<std::vector<Tensor>>& parameters);
std::vector<std::vector<Tensor>> run_backward_many(const Runner&, const std::vector<Arguments>&,
                                                   const std::vector<Tensor>& g, const std::vector<Tensor>& x,
                                                   const std::vector<std::vector<Tensor>>& parameters);
std::vector<std::array<Tensor, 2>> run_forward_sums_many(const Runner&, const std::vector<Arguments>&,
                                                         const std::vector<Tensor>& x,
                                                         const std::vector<std::vector<Tensor>>& parameters);
void run_in_place_many(const Runner&, const std::vector<Arguments>&, const std::vector<Tensor>& x,
                       const std::vector<std::vector<Tensor>>& parameters,
                       const std::vector<std::array<Tensor, 2>>& planes, std::array<const char*, 2> names);

// What operators with loops of their own need as well.
std::string shape_of(const Tensor& t);
DType storage_type(const char* op, const char* name, const Tensor& x);
void refuse_gradients(const char* op, const Tensor& t);
std::vector<int64_t> memory_order(const Tensor& t);
bool is_dense(const Tensor& t);
bool same_layout(const Tensor& a, const Tensor& b);
Tensor allocate(const Tensor& like, int64_t dim, const int64_t* sizes, const int64_t* strides, int32_t dtype = -1);
Tensor allocate_like(const Tensor& t);
Tensor in_layout_of(const Tensor& t, const Tensor& like);
Tensor restore(const Tensor& out, const Tensor& x);

// An uninitialised vector with the dtype and device of `like`.
Tensor workspace(const Tensor& like, int64_t elements);

// 1 / sqrt(N * qmax) with N = elements of x per parameter (norm 1) or all of them (norm 2); 1 for norm 0.
double gradient_norm(int64_t norm, const Tensor& x, const Tensor& parameter, int64_t qmax);

}  // namespace fastq
