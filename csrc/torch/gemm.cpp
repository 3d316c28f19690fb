// Between torch and the loops of the integer engine: checks, allocation.
#include "gemm.h"

#include <algorithm>
#include <initializer_list>
#include <limits>

namespace fastq {

namespace {

#define FASTQ_GEMM_CHECK(condition, ...) STD_TORCH_CHECK(condition, "fastq::", op, ": ", __VA_ARGS__)

// No product of two such numbers leaves int64.
constexpr int64_t kMostLength = std::numeric_limits<int32_t>::max();

Stored stored(const char* op, const char* name, ScalarType type, const char* allowed) {
  switch (type) {
    case ScalarType::Float: return Stored::f32;
    case ScalarType::BFloat16: return Stored::bf16;
    case ScalarType::Half: return Stored::f16;
    case ScalarType::Char: return Stored::i8;
    case ScalarType::Byte: return Stored::u8;
    case ScalarType::Int: return Stored::i32;
    default: FASTQ_GEMM_CHECK(false, name, " must be ", allowed, ", got ", type);
  }
}

const char* const kFloats = "float32, bfloat16 or float16";

Stored float_of(const char* op, const char* name, const Tensor& t) {
  const Stored type = stored(op, name, t.scalar_type(), kFloats);
  FASTQ_GEMM_CHECK(type == Stored::f32 || type == Stored::bf16 || type == Stored::f16, name, " must be ", kFloats,
                   ", got ", t.scalar_type());
  return type;
}

// Of int8 or uint8: lo <= zp <= hi, all of them codes.
void set_codes(const char* op, Stored type, const std::vector<int64_t>& codes, int32_t& low, int32_t& high,
               int32_t& zero) {
  const int64_t lowest = type == Stored::i8 ? -128 : 0, highest = lowest + 255;
  FASTQ_GEMM_CHECK(codes.size() == 3, "codes must be three numbers: lowest, highest, zero-point; got ", codes.size());
  FASTQ_GEMM_CHECK(lowest <= codes[0] && codes[0] <= codes[2] && codes[2] <= codes[1] && codes[1] <= highest,
                   "codes must be lowest <= zero-point <= highest within ", lowest, " to ", highest, ", got ", codes[0],
                   ", ", codes[2], " and ", codes[1]);
  low = int32_t(codes[0]);
  high = int32_t(codes[1]);
  zero = int32_t(codes[2]);
}

// Contiguous, of `type`, on the device of `x`, with the number of elements in one of `counts`.
const void* array(const char* op, const char* name, const Tensor& t, const Tensor& x, ScalarType type,
                  std::initializer_list<int64_t> counts) {
  FASTQ_GEMM_CHECK(t.device() == x.device(), name, " must be on the device of x");
  FASTQ_GEMM_CHECK(t.scalar_type() == type, name, " must be ", type, ", got ", t.scalar_type());
  FASTQ_GEMM_CHECK(t.is_contiguous(), name, " must be contiguous");
  const int64_t have = t.numel();
  FASTQ_GEMM_CHECK(std::find(counts.begin(), counts.end(), have) != counts.end(), name, " must have ",
                   *(counts.end() - 1), " elements", counts.size() > 1 ? " or one" : "", ", got shape ", shape_of(t));
  return t.const_data_ptr();
}

const float* floats(const char* op, const char* name, const std::optional<Tensor>& t, const Tensor& x,
                    std::initializer_list<int64_t> counts) {
  return t ? static_cast<const float*>(array(op, name, *t, x, ScalarType::Float, counts)) : nullptr;
}

using Sizes = std::vector<int64_t>;

// The strides of (B, C, H, W) with the channels last in memory, or of (M, N).
Sizes channels_last(const Sizes& s) {
  if (s.size() == 2) return {s[1], 1};
  return {s[2] * s[3] * s[1], 1, s[3] * s[1], s[1]};
}

void check_layout(const char* op, const char* name, const Tensor& t, const Sizes& sizes) {
  const auto have = t.sizes();
  FASTQ_GEMM_CHECK(std::equal(have.begin(), have.end(), sizes.begin(), sizes.end()), name,
                   " must have the output's shape, got ", shape_of(t));
  const Sizes strides = channels_last(sizes);
  for (size_t d = 0; d < sizes.size(); ++d)
    FASTQ_GEMM_CHECK(sizes[d] == 1 || t.numel() == 0 || t.stride(d) == strides[d], name, " must be contiguous",
                     sizes.size() == 4 ? ", with the channels last" : "");
}

void set_weight(const char* op, GemmCall& c, const GemmRunner& runner, const Tensor& x, const GemmOperand& w) {
  FASTQ_GEMM_CHECK(w.form.size() == 4, "form must be four numbers: n, k, bits, group_size; got ", w.form.size());
  c.n = w.form[0];
  c.k = w.form[1];
  const int64_t bits = w.form[2], group_size = w.form[3];
  FASTQ_GEMM_CHECK(0 <= c.n && c.n <= kMostLength && 0 <= c.k && c.k <= kMostLength,
                   "form must have n and k from 0 to 2^31 - 1, got ", c.n, " and ", c.k);
  FASTQ_GEMM_CHECK(bits == 2 || bits == 3 || bits == 4 || bits == 8, "form must have 2, 3, 4 or 8 bits, got ", bits);
  FASTQ_GEMM_CHECK(0 <= group_size && group_size <= kMostLength && group_size % 16 == 0,
                   "form must have a multiple of 16 as group_size, or 0, got ", group_size);
  c.bits = int(bits);
  c.layout = runner.layout;
  c.row_bytes = row_bytes(c.layout, c.bits, c.k);
  c.group_size = group_size > 0 ? group_size : std::max<int64_t>(c.k, 1);
  c.scale_groups = group_size > 0 ? (c.k + group_size - 1) / group_size : 1;
  const Tensor& data = w.weight;
  const int64_t rows = stored_rows(c.layout, c.n);
  FASTQ_GEMM_CHECK(data.dim() == 2 && data.size(0) == rows && data.size(1) == c.row_bytes, "weight must have shape (",
                   rows, ", ", c.row_bytes, ") for ", c.n, " rows of ", c.k, " fields of ", bits, " bits, got ",
                   shape_of(data));
  c.weight = static_cast<const uint8_t*>(array(op, "weight", data, x, ScalarType::Byte, {rows * c.row_bytes}));
  const int64_t scales = c.n * c.scale_groups;
  if (group_size > 0) {
    c.scale = floats(op, "weight_scale", w.scale, x, {scales});
  } else {
    c.scale = floats(op, "weight_scale", w.scale, x, {1, scales});
  }
  const bool shared = group_size == 0 && w.scale.numel() == 1;
  c.scale_step = shared ? 0 : c.scale_groups;
  if (w.zero)
    c.zero = static_cast<const int32_t*>(
        array(op, "weight_zero", *w.zero, x, ScalarType::Int, {shared ? int64_t(1) : scales}));
  c.sums = static_cast<const int32_t*>(array(op, "weight_sums", w.sums, x, ScalarType::Int, {scales}));
}

void set_window(const char* op, GemmCall& c, const Tensor& x, const std::vector<int64_t>& window) {
  FASTQ_GEMM_CHECK(window.size() == 12, "window must be 12 numbers, got ", window.size());
  const auto [channels, kh, kw, sh, sw] = std::array{window[0], window[1], window[2], window[3], window[4]};
  const auto [left, right, top, bottom] = std::array{window[5], window[6], window[7], window[8]};
  const auto [dh, dw, groups] = std::array{window[9], window[10], window[11]};
  for (size_t i = 0; i < window.size(); ++i) {
    const int64_t lowest = i == 0 || (5 <= i && i <= 8) ? 0 : 1;
    FASTQ_GEMM_CHECK(lowest <= window[i] && window[i] <= kMostLength, "window must have numbers from ", lowest,
                     " to 2^31 - 1, got ", window[i], " at place ", i);
  }
  FASTQ_GEMM_CHECK(x.dim() == 4, "x must have shape (B, C, H, W), got ", shape_of(x));
  for (int64_t d = 0; d < 4; ++d)
    FASTQ_GEMM_CHECK(x.size(d) <= kMostLength, "x must have sizes below 2^31, got ", shape_of(x));
  FASTQ_GEMM_CHECK(x.size(1) == channels * groups, "x must have ", channels * groups, " channels, got ", shape_of(x));
  // First without channels: the product of three could leave int64.
  FASTQ_GEMM_CHECK(kh * kw <= kMostLength && kh * kw * channels == c.k, "form must have k = ", channels, " * ", kh,
                   " * ", kw, " by the window, got ", c.k);
  FASTQ_GEMM_CHECK(c.n % groups == 0, "form must have n divided by the ", groups, " groups, got ", c.n);
  FASTQ_GEMM_CHECK(c.scale_groups == 1 && c.group_size == std::max<int64_t>(c.k, 1),
                   "form must have no group_size in a convolution");
  check_layout(op, "x", x, {x.size(0), x.size(1), x.size(2), x.size(3)});
  const int64_t h = x.size(2) + top + bottom - dh * (kh - 1) - 1, w = x.size(3) + left + right - dw * (kw - 1) - 1;
  FASTQ_GEMM_CHECK(h >= 0 && w >= 0, "the kernel must not exceed the padded image of x, ", shape_of(x));
  c.convolution = true;
  c.window = {x.size(0), x.size(2), x.size(3), channels, groups, kh,         kw,        sh,
              sw,        dh,        dw,        left,     top,    h / sh + 1, w / sw + 1};
  int64_t m = 0;
  FASTQ_GEMM_CHECK(!__builtin_mul_overflow(c.window.oh * c.window.ow, c.window.batch, &m) &&
                       m <= std::numeric_limits<int64_t>::max() / 8 / std::max<int64_t>(c.n, 1),
                   "the output must have fewer than 2^60 elements");
  c.m = m;
}

void set_epilogue(const char* op, GemmCall& c, const Tensor& x, const GemmEpilogue& e, const Sizes& out) {
  if (c.integer()) {
    const int64_t lowest = c.x_type == Stored::i8 ? -128 : 0;
    FASTQ_GEMM_CHECK(lowest <= e.x_zero && e.x_zero <= lowest + 255, "x_zero_point must be a code of ", x.scalar_type(),
                     ", got ", e.x_zero);
  } else {
    FASTQ_GEMM_CHECK(e.x_zero == 0 && !e.x_scale, "x_scale and x_zero_point are for codes, and x is ", x.scalar_type());
  }
  c.x_zero = int32_t(e.x_zero);
  c.x_scale = c.convolution ? floats(op, "x_scale", e.x_scale, x, {1}) : floats(op, "x_scale", e.x_scale, x, {1, c.m});
  c.x_scale_step = e.x_scale && e.x_scale->numel() != 1;
  c.bias = floats(op, "bias", e.bias, x, {c.n});
  c.multiplier = floats(op, "multiplier", e.multiplier, x, {c.n});
  c.addend = floats(op, "addend", e.addend, x, {c.n});
  if (e.residual) {
    c.residual_type = float_of(op, "residual", *e.residual);
    FASTQ_GEMM_CHECK(e.residual->device() == x.device(), "residual must be on the device of x");
    check_layout(op, "residual", *e.residual, out);
    c.residual = e.residual->const_data_ptr();
  }
  FASTQ_GEMM_CHECK(0 <= e.activation && e.activation <= int64_t(Activation::silu),
                   "activation must be a number from 0 to 3, got ", e.activation);
  c.activation = Activation(e.activation);
  c.out_type = stored(op, "out_dtype", e.out_dtype, "float32, bfloat16, float16, int8, uint8 or int32");
  if (is_code(c.out_type)) {
    FASTQ_GEMM_CHECK(e.out_scale.has_value(), "out_scale must be given for codes");
    c.out_scale = floats(op, "out_scale", e.out_scale, x, {1});
    set_codes(op, c.out_type, e.codes, c.low, c.high, c.out_zero);
  }
  FASTQ_GEMM_CHECK(c.out_type != Stored::i32 || (c.integer() && c.scale_groups == 1),
                   "out_dtype int32 is the accumulators of codes under one scale");
}

int32_t number_of(ScalarType type) {
  switch (type) {
    case ScalarType::Float: return aoti_torch_dtype_float32();
    case ScalarType::BFloat16: return aoti_torch_dtype_bfloat16();
    case ScalarType::Half: return aoti_torch_dtype_float16();
    case ScalarType::Char: return aoti_torch_dtype_int8();
    case ScalarType::Byte: return aoti_torch_dtype_uint8();
    default: return aoti_torch_dtype_int32();
  }
}

}  // namespace

Tensor run_product(const char* op, const GemmRunner& runner, const Tensor& x, const GemmOperand& w,
                   const std::vector<int64_t>* window, const GemmEpilogue& e) {
  refuse_gradients(op, x);
  GemmCall c = {};
  c.x_type = stored(op, "x", x.scalar_type(), "int8, uint8, float32, bfloat16 or float16");
  FASTQ_GEMM_CHECK(c.x_type != Stored::i32, "x must be int8, uint8, float32, bfloat16 or float16, got ",
                   x.scalar_type());
  set_weight(op, c, runner, x, w);
  Sizes sizes;
  if (window != nullptr) {
    set_window(op, c, x, *window);
    sizes = {x.size(0), c.n, c.window.oh, c.window.ow};
  } else {
    FASTQ_GEMM_CHECK(x.dim() == 2 && x.size(1) == c.k, "x must have shape (M, ", c.k, "), got ", shape_of(x));
    FASTQ_GEMM_CHECK(x.is_contiguous(), "x must be contiguous");
    c.m = x.size(0);
    FASTQ_GEMM_CHECK(c.m <= kMostLength, "x must have fewer than 2^31 rows, got ", c.m);
    sizes = {c.m, c.n};
  }
  set_epilogue(op, c, x, e, sizes);
  Tensor out = allocate(x, sizes.size(), sizes.data(), channels_last(sizes).data(), number_of(e.out_dtype));
  if (c.m == 0 || c.n == 0) return out;
  c.x = x.const_data_ptr();
  c.out = out.mutable_data_ptr();
  runner.product(c, x);
  return out;
}

Tensor run_quantize(const GemmRunner& runner, const Tensor& x, const Tensor& scale, const std::optional<Tensor>& offset,
                    const std::vector<int64_t>& codes, ScalarType dtype) {
  const char* op = "quantize";
  refuse_gradients(op, x);
  QuantizeCall c = {};
  c.x_type = float_of(op, "x", x);
  FASTQ_GEMM_CHECK(dtype == ScalarType::Char || dtype == ScalarType::Byte, "dtype must be int8 or uint8, got ", dtype);
  set_codes(op, dtype == ScalarType::Char ? Stored::i8 : Stored::u8, codes, c.low, c.high, c.zero);
  c.scale = floats(op, "scale", scale, x, {1});
  c.offset = floats(op, "offset", offset, x, {1});
  const Tensor dense = is_dense(x) ? x : in_layout_of(x, torch::stable::empty_like(x));
  Tensor out = allocate(x, dense.dim(), dense.sizes().data(), dense.strides().data(), number_of(dtype));
  c.rows = 1;
  c.k = x.numel();
  if (c.k == 0) return out;
  c.x = dense.const_data_ptr();
  c.out = out.mutable_data_ptr();
  runner.quantize(c, x);
  return out;
}

std::tuple<Tensor, Tensor> run_quantize_per_token(const GemmRunner& runner, const Tensor& x, int64_t bits) {
  const char* op = "quantize_per_token";
  refuse_gradients(op, x);
  QuantizeCall c = {};
  c.x_type = float_of(op, "x", x);
  FASTQ_GEMM_CHECK(x.dim() == 2, "x must have shape (M, K), got ", shape_of(x));
  FASTQ_GEMM_CHECK(2 <= bits && bits <= 8, "bits must be from 2 to 8, got ", bits);
  const Tensor rows = x.is_contiguous() ? x : torch::stable::contiguous(x);
  c.rows = x.size(0);
  c.k = x.size(1);
  c.high = (1 << (bits - 1)) - 1;
  c.low = -c.high;
  const int64_t one = 1, strides[] = {std::max<int64_t>(c.k, 1), 1};
  Tensor codes = allocate(x, 2, x.sizes().data(), strides, aoti_torch_dtype_int8());
  Tensor scales = allocate(x, 1, &c.rows, &one, aoti_torch_dtype_float32());
  if (c.rows == 0) return {codes, scales};
  c.x = rows.const_data_ptr();
  c.out = codes.mutable_data_ptr();
  c.scales = static_cast<float*>(scales.mutable_data_ptr());
  runner.rows(c, x);
  return {codes, scales};
}

Tensor run_pack_blocks(const GemmRunner& runner, const Tensor& fields, int64_t bits) {
  const char* op = "pack_blocks";
  FASTQ_GEMM_CHECK(fields.dim() == 2 && fields.scalar_type() == ScalarType::Char && fields.is_contiguous(),
                   "fields must be contiguous int8 (N, K), got ", fields.scalar_type(), " ", shape_of(fields));
  FASTQ_GEMM_CHECK(bits == 2 || bits == 3 || bits == 4 || bits == 8, "bits must be 2, 3, 4 or 8, got ", bits);
  PackCall c = {};
  c.n = fields.size(0);
  c.k = fields.size(1);
  c.bits = int(bits);
  const int64_t sizes[] = {stored_rows(Layout::blocks, c.n), row_bytes(Layout::blocks, c.bits, c.k)};
  const int64_t strides[] = {std::max<int64_t>(sizes[1], 1), 1};
  Tensor out = allocate(fields, 2, sizes, strides, aoti_torch_dtype_uint8());
  if (out.numel() == 0) return out;
  c.fields = static_cast<const int8_t*>(fields.const_data_ptr());
  c.blocks = static_cast<uint8_t*>(out.mutable_data_ptr());
  runner.blocks(c, fields);
  return out;
}

}  // namespace fastq
