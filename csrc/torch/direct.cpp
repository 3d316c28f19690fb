// Between torch and the loops of direct quantization: checks, layouts, allocation.
#include "direct.h"

#include <algorithm>
#include <cmath>

namespace fastq {

namespace {

#define FASTQ_DIRECT_CHECK(condition, ...) STD_TORCH_CHECK(condition, "fastq::", op, ": ", __VA_ARGS__)

void check_count(const char* op, int64_t levels) {
  FASTQ_DIRECT_CHECK(2 <= levels && levels <= kMostLevels && (levels & (levels - 1)) == 0,
                     "levels must be 2^b with b from 1 to 8, got ", levels);
}

void check_like(const char* op, const char* name, const Tensor& t, const Tensor& codes) {
  FASTQ_DIRECT_CHECK(t.device() == codes.device(), name, " must be on the device of codes");
  const auto sizes = t.sizes(), wanted = codes.sizes();
  FASTQ_DIRECT_CHECK(std::equal(sizes.begin(), sizes.end(), wanted.begin(), wanted.end()), name,
                     " must have the shape of codes, ", shape_of(codes), ", got ", shape_of(t));
}

DType dtype_of(const char* op, const char* name, ScalarType type) {
  switch (type) {
    case ScalarType::Float: return DType::f32;
    case ScalarType::BFloat16: return DType::bf16;
    case ScalarType::Half: return DType::f16;
    default: FASTQ_DIRECT_CHECK(false, name, " must be float32, bfloat16 or float16, got ", type);
  }
}

// Checked, with the levels contiguous in `held`.
DirectCall call_of(const char* op, const Tensor& codes, const Tensor* levels, std::optional<Tensor>* held) {
  refuse_gradients(op, codes);
  FASTQ_DIRECT_CHECK(codes.scalar_type() == ScalarType::Byte, "codes must be uint8, got ", codes.scalar_type());
  DirectCall c = {};
  c.numel = codes.numel();
  if (levels != nullptr) {
    refuse_gradients(op, *levels);
    FASTQ_DIRECT_CHECK(levels->scalar_type() == ScalarType::Float, "levels must be float32, got ",
                       levels->scalar_type());
    FASTQ_DIRECT_CHECK(levels->device() == codes.device(), "levels must be on the device of codes");
    FASTQ_DIRECT_CHECK(levels->dim() == 1, "levels must have shape (2^b,), got ", shape_of(*levels));
    check_count(op, levels->numel());
    *held = levels->is_contiguous() ? *levels : torch::stable::contiguous(*levels);
    c.levels = int(levels->numel());
    c.level = static_cast<const float*>((*held)->const_data_ptr());
  }
  return c;
}

// Codes in memory without gaps; copied only where they have some.
Tensor dense_of(const Tensor& codes) {
  return is_dense(codes) ? codes : in_layout_of(codes, torch::stable::empty_like(codes));
}

Tensor floats(const Tensor& like, int64_t elements) {
  const int64_t stride = 1;
  return allocate(like, 1, &elements, &stride, aoti_torch_dtype_float32());
}

int32_t number_of(DType dtype) {
  return dtype == DType::f32    ? aoti_torch_dtype_float32()
         : dtype == DType::bf16 ? aoti_torch_dtype_bfloat16()
                                : aoti_torch_dtype_float16();
}

}  // namespace

Tensor run_direct_weight(const DirectRunner& runner, const Tensor& codes, const Tensor& levels, ScalarType dtype) {
  const char* op = "direct_weight_forward";
  std::optional<Tensor> held;
  DirectCall c = call_of(op, codes, &levels, &held);
  c.dtype = dtype_of(op, "dtype", dtype);
  const Tensor dense = dense_of(codes);
  Tensor w = allocate(codes, dense.dim(), dense.sizes().data(), dense.strides().data(), number_of(c.dtype));
  if (c.numel == 0) return w;
  c.codes = static_cast<const uint8_t*>(dense.const_data_ptr());
  c.w = w.mutable_data_ptr();
  runner.weight(c, codes);
  return w;  // what is not dense was copied into the very strides that torch.empty_like(codes) has
}

Tensor run_direct_gradient(const DirectRunner& runner, const Tensor& grad, const Tensor& codes, int64_t levels) {
  const char* op = "direct_weight_backward";
  check_count(op, levels);
  refuse_gradients(op, grad);
  DirectCall c = call_of(op, codes, nullptr, nullptr);
  c.levels = int(levels);
  c.dtype = dtype_of(op, "grad", grad.scalar_type());
  check_like(op, "grad", grad, codes);
  Tensor result = floats(codes, levels);
  if (c.numel == 0) return torch::stable::zero_(result);
  const Tensor dense = dense_of(codes), g = in_layout_of(grad, dense);
  Tensor partial = floats(codes, c.chunks() * levels);
  c.codes = static_cast<const uint8_t*>(dense.const_data_ptr());
  c.g = g.const_data_ptr();
  c.partial = static_cast<float*>(partial.mutable_data_ptr());
  c.gradient = static_cast<float*>(result.mutable_data_ptr());
  runner.gradient(c, codes);
  return result;
}

void run_direct_update(const DirectRunner& runner, const Tensor& codes, const std::optional<Tensor>& residual,
                       const Tensor& levels, const Tensor& grad, double lr, double rho) {
  const char* op = "direct_update_";
  std::optional<Tensor> held;
  DirectCall c = call_of(op, codes, &levels, &held);
  refuse_gradients(op, grad);
  c.dtype = dtype_of(op, "grad", grad.scalar_type());
  check_like(op, "grad", grad, codes);
  if (residual) {
    refuse_gradients(op, *residual);
    c.residual_dtype = dtype_of(op, "residual", residual->scalar_type());
    check_like(op, "residual", *residual, codes);
  }
  FASTQ_DIRECT_CHECK(std::isfinite(lr), "lr must be finite, got ", lr);
  FASTQ_DIRECT_CHECK(0 <= rho && rho <= 1, "rho must be from 0 to 1, got ", rho);
  FASTQ_DIRECT_CHECK(residual || rho == 0, "without a residual rho must be 0, got ", rho);
  if (c.numel == 0) return;
  Tensor dense = dense_of(codes);
  const Tensor g = in_layout_of(grad, dense);
  std::optional<Tensor> kept;
  if (residual) kept = in_layout_of(*residual, dense);
  c.new_codes = static_cast<uint8_t*>(dense.mutable_data_ptr());
  c.codes = c.new_codes;
  c.residual = kept ? kept->mutable_data_ptr() : nullptr;
  c.g = g.const_data_ptr();
  c.lr = float(lr);
  c.rho = float(rho);
  runner.update(c, codes);
  // What was copied goes back where it came from.
  Tensor to = codes;
  if (dense.get() != codes.get()) torch::stable::copy_(to, dense);
  if (kept && kept->get() != residual->get()) {
    Tensor place = *residual;
    torch::stable::copy_(place, *kept);
  }
}

}  // namespace fastq
