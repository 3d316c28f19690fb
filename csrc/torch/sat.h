// The operators fastq::sat_forward and fastq::sat_backward for one device's Runner. Their schemas: fastq/ops/sat.py.
#pragma once

#include <algorithm>
#include <tuple>

#include "../cpu/sat.h"
#include "elementwise.h"

namespace fastq {

// Where memory is not in row-major order, its dimensions; with more of them than an order holds, a copy in that order.
inline Tensor sat_dense(const Tensor& w, SatOrder& order) {
  order = {};
  if (w.is_contiguous()) return w;
  const Tensor dense = is_dense(w) ? w : in_layout_of(w, torch::stable::empty_like(w));
  const std::vector<int64_t> dimensions = memory_order(dense);
  if (dense.is_contiguous() || dimensions.size() > size_t(kSatDims)) return torch::stable::contiguous(dense);
  for (int64_t d : dimensions) {
    int64_t logical = 1;
    for (int64_t after = d + 1; after < w.dim(); ++after) logical *= w.size(after);
    order.size[order.dims] = w.size(d);
    order.logical[order.dims] = logical;
    order.memory[order.dims++] = dense.stride(d);
  }
  return dense;
}

inline Tensor sat_array(const Tensor& like, int64_t elements, int32_t dtype) {
  const int64_t stride = 1;
  return allocate(like, 1, &elements, &stride, dtype);
}

template <const Runner& runner>
std::tuple<Tensor, Tensor, Tensor> sat_forward(Tensor w, int64_t bits, int64_t scheme, int64_t rescale, int64_t n_out) {
  refuse_gradients("sat_forward", w);
  STD_TORCH_CHECK(0 <= bits && bits <= 8, "fastq::sat_forward: bits must be from 1 to 8, or 0 for none, got ", bits);
  STD_TORCH_CHECK(0 <= scheme && scheme <= 2 && (scheme != 2 || bits == 2),
                  "fastq::sat_forward: scheme must be 0, 1 or (with 2 bits) 2, got ", scheme, " with ", bits, " bits");
  STD_TORCH_CHECK(0 <= rescale && rescale <= 2, "fastq::sat_forward: rescale must be 0, 1 or 2, got ", rescale);
  STD_TORCH_CHECK(n_out >= 1, "fastq::sat_forward: n_out must be at least 1, got ", n_out);
  SatCall c = {};
  c.dtype = storage_type("sat_forward", "w", w);
  const Tensor x = sat_dense(w, c.order);
  c.numel = w.numel();
  c.rule = {int(bits == 0 ? 0 : (int64_t(1) << bits) - (scheme == 0)), scheme != 0, scheme == 2, SatRescale(rescale),
            double(n_out)};
  Tensor y = allocate_like(x);
  Tensor scale = sat_array(w, 3, aoti_torch_dtype_float64()), index = sat_array(w, 1, aoti_torch_dtype_int64());
  if (c.numel == 0) {
    torch::stable::zero_(scale);
    return {y, scale, torch::stable::fill_(index, -1)};
  }
  const int64_t chunks = c.chunks();
  // One workspace of 8-byte places: code_sums [2], candidates, sums [4], largest (chunks and one more).
  const Tensor work = sat_array(w, 8 * chunks + 1, aoti_torch_dtype_float64());
  const Tensor codes = sat_array(w, bits == 0 ? 0 : c.numel, aoti_torch_dtype_uint8());
  double* place = static_cast<double*>(work.mutable_data_ptr());
  c.code_sums = reinterpret_cast<int64_t*>(place);
  c.candidates = c.code_sums + 2 * chunks;
  c.sums = place + 3 * chunks;
  c.largest = place + 7 * chunks;
  c.codes = static_cast<uint8_t*>(codes.mutable_data_ptr());
  c.w = x.const_data_ptr();
  c.out = y.mutable_data_ptr();
  c.scale = static_cast<double*>(scale.mutable_data_ptr());
  c.index = static_cast<int64_t*>(index.mutable_data_ptr());
  runner.sat_forward(c, w);
  return {x.get() == w.get() ? y : restore(y, w), scale, index};
}

template <const Runner& runner>
Tensor sat_backward(Tensor grad, Tensor w, Tensor scale, Tensor index, bool grad_through_max) {
  using torch::headeronly::ScalarType;
  for (const Tensor& t : {grad, w}) refuse_gradients("sat_backward", t);
  const auto of_shape = [](const Tensor& t, const Tensor& like) {
    return std::equal(t.sizes().begin(), t.sizes().end(), like.sizes().begin(), like.sizes().end());
  };
  STD_TORCH_CHECK(grad.scalar_type() == w.scalar_type() && grad.device() == w.device() && of_shape(grad, w),
                  "fastq::sat_backward: grad must have the shape, dtype and device of w");
  STD_TORCH_CHECK(scale.scalar_type() == ScalarType::Double && scale.numel() == 3 && scale.device() == w.device() &&
                      index.scalar_type() == ScalarType::Long && index.numel() == 1 && index.device() == w.device(),
                  "fastq::sat_backward: scale and index must be what sat_forward gave: 3 float64, 1 int64");
  SatCall c = {};
  c.dtype = storage_type("sat_backward", "w", w);
  const Tensor x = sat_dense(w, c.order);
  c.numel = w.numel();
  c.through_max = grad_through_max;
  Tensor dw = allocate_like(x);
  if (c.numel == 0) return dw;
  const Tensor g = in_layout_of(grad, x), held = torch::stable::contiguous(scale);
  const Tensor partial = sat_array(w, c.chunks(), aoti_torch_dtype_float64());
  c.w = x.const_data_ptr();
  c.g = g.const_data_ptr();
  c.out = dw.mutable_data_ptr();
  c.scale = static_cast<double*>(held.mutable_data_ptr());
  c.index = static_cast<int64_t*>(index.mutable_data_ptr());
  c.partial = partial.mutable_data_ptr();
  runner.sat_backward(c, w);
  return x.get() == w.get() ? dw : restore(dw, w);
}

}  // namespace fastq
