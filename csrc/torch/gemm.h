// The operators of the integer engine for one device's Runner. Their schemas: fastq/ops/int_linear.py and quantize.py.
#pragma once

#include <optional>
#include <tuple>

#include "../cpu/gemm.h"
#include "elementwise.h"

namespace fastq {

using torch::headeronly::ScalarType;

// A device's way to run a filled-in call, and the layout that it reads. A device without a way leaves the place empty.
struct GemmRunner {
  Layout layout;
  void (*product)(GemmCall&, const Tensor& x);
  void (*quantize)(QuantizeCall&, const Tensor& x);
  void (*rows)(QuantizeCall&, const Tensor& x);
  void (*blocks)(PackCall&, const Tensor& fields);
};

// The arguments that int_linear and int_conv2d share, in the order of their schemas.
struct GemmOperand {
  const Tensor &weight, &scale;
  const std::optional<Tensor>& zero;
  const Tensor& sums;
  const std::vector<int64_t>& form;  // n, k, bits, group_size
};
struct GemmEpilogue {
  const std::optional<Tensor>& x_scale;
  int64_t x_zero;
  const std::optional<Tensor>&bias, &multiplier, &addend, &residual;
  int64_t activation;
  ScalarType out_dtype;
  const std::optional<Tensor>& out_scale;
  const std::vector<int64_t>& codes;  // lo, hi, zp
};

// `window`: the 12 numbers of a convolution, or null.
Tensor run_product(const char* op, const GemmRunner&, const Tensor& x, const GemmOperand&,
                   const std::vector<int64_t>* window, const GemmEpilogue&);
Tensor run_quantize(const GemmRunner&, const Tensor& x, const Tensor& scale, const std::optional<Tensor>& offset,
                    const std::vector<int64_t>& codes, ScalarType dtype);
std::tuple<Tensor, Tensor> run_quantize_per_token(const GemmRunner&, const Tensor& x, int64_t bits);

Tensor run_pack_blocks(const GemmRunner&, const Tensor& fields, int64_t bits);

using OptionalTensor = std::optional<Tensor>;
using Numbers = std::vector<int64_t>;

template <const GemmRunner& runner>
Tensor int_linear(Tensor x, Tensor weight, Tensor scale, OptionalTensor zero, Tensor sums, Numbers form,
                  OptionalTensor x_scale, int64_t x_zero, OptionalTensor bias, OptionalTensor multiplier,
                  OptionalTensor addend, OptionalTensor residual, int64_t activation, ScalarType out_dtype,
                  OptionalTensor out_scale, Numbers codes) {
  return run_product("int_linear", runner, x, {weight, scale, zero, sums, form}, nullptr,
                     {x_scale, x_zero, bias, multiplier, addend, residual, activation, out_dtype, out_scale, codes});
}

template <const GemmRunner& runner>
Tensor int_conv2d(Tensor x, Tensor weight, Tensor scale, OptionalTensor zero, Tensor sums, Numbers form, Numbers window,
                  OptionalTensor x_scale, int64_t x_zero, OptionalTensor bias, OptionalTensor multiplier,
                  OptionalTensor addend, OptionalTensor residual, int64_t activation, ScalarType out_dtype,
                  OptionalTensor out_scale, Numbers codes) {
  return run_product("int_conv2d", runner, x, {weight, scale, zero, sums, form}, &window,
                     {x_scale, x_zero, bias, multiplier, addend, residual, activation, out_dtype, out_scale, codes});
}

template <const GemmRunner& runner>
Tensor quantize(Tensor x, Tensor scale, OptionalTensor offset, Numbers codes, ScalarType dtype) {
  return run_quantize(runner, x, scale, offset, codes, dtype);
}

template <const GemmRunner& runner>
std::tuple<Tensor, Tensor> quantize_per_token(Tensor x, int64_t bits) {
  return run_quantize_per_token(runner, x, bits);
}

template <const GemmRunner& runner>
Tensor pack_blocks(Tensor fields, int64_t bits) {
  return run_pack_blocks(runner, fields, bits);
}

template <const GemmRunner& runner, class Library>
void implement_gemm(Library& m) {
  m.impl("int_linear", TORCH_BOX(&int_linear<runner>));
  m.impl("int_conv2d", TORCH_BOX(&int_conv2d<runner>));
  m.impl("quantize", TORCH_BOX(&quantize<runner>));
  m.impl("quantize_per_token", TORCH_BOX(&quantize_per_token<runner>));
}

}  // namespace fastq
