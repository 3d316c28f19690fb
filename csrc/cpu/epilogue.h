// From sums to the output, for a block of rows and columns, a vector of columns at a time.
#pragma once

#include <type_traits>

#include "gemm.h"
#include "sums.h"

namespace fastq {
inline namespace FASTQ_ISA {

typedef uint8_t CodeBytes __attribute__((vector_size(FASTQ_VECTOR_BYTES / 4)));

FASTQ_HD int64_t least(int64_t a, int64_t b) {
  return a < b ? a : b;
}
FASTQ_HD int64_t multiple(int64_t n, int64_t of) {
  return (n + of - 1) / of * of;
}

template <class T>
FASTQ_HD void fill_zeros(T* to, int64_t from, int64_t end) {
  for (int64_t i = from; i < end; ++i) to[i] = T(0);
}

// `n` elements, fewer than a vector has in the last one.
template <class S>
FASTQ_HD F32 load(const typename S::Element* from, int64_t n) {
  if (n >= kWidth) return S::load(from);
  typename S::Element tail[kWidth] = {};
  std::memcpy(tail, from, n * sizeof(tail[0]));
  return S::load(tail);
}
template <class S>
FASTQ_HD void store(typename S::Element* to, int64_t n, F32 v) {
  if (n >= kWidth) return S::store(to, v);
  typename S::Element tail[kWidth];
  S::store(tail, v);
  std::memcpy(to, tail, n * sizeof(tail[0]));
}

template <class S>
struct FloatsOf {
  using Element = typename S::Element;
  FASTQ_HD static void load(const Element* from, int64_t n, float* to) {
    for (int64_t i = 0; i < n; i += kWidth) fastq::store<Float32>(to + i, n - i, fastq::load<S>(from + i, n - i));
  }
};

template <class Body>
FASTQ_HD void each_float(Stored type, const Body& body) {
  switch (type) {
    case Stored::bf16: return body(BFloat16());
    case Stored::f16: return body(Float16());
    default: return body(Float32());
  }
}

struct Block {
  int64_t row, rows, column, columns, group;
};

// What belongs to a block's columns, with room for whole vectors. Of sums of codes, `zero` is what was stored as the
// zero and `sums` the zero-point of x times the weight's sums.
template <int64_t kColumns>
struct alignas(64) Columns {
  float scale[kColumns], bias[kColumns], multiplier[kColumns], addend[kColumns];
  int32_t zero[kColumns], sums[kColumns];

  FASTQ_HD static void copy(const float* from, const Block& b, float* to) {
    if (from == nullptr) return;
    for (int64_t j = 0; j < kColumns; ++j) to[j] = j < b.columns ? from[b.column + j] : 0.0f;
  }
  FASTQ_HD void set(const GemmCall& c, const Block& b) {
    copy(c.bias, b, bias);
    copy(c.multiplier, b, multiplier);
    copy(c.addend, b, addend);
  }
  FASTQ_HD void set_scale(const GemmCall& c, const Block& b, int64_t scale_group) {
    const bool given = scale_group < c.scale_groups;  // rows of no element have no groups
    for (int64_t j = 0; j < kColumns; ++j)
      scale[j] = given && j < b.columns ? c.scale[(b.column + j) * c.scale_step + scale_group] : 0.0f;
  }
  FASTQ_HD void set_zeros(const GemmCall& c, const Block& b, int64_t scale_group, int32_t middle, int32_t x_zero) {
    for (int64_t j = 0; j < kColumns; ++j) {
      const int64_t n = b.column + (j < b.columns ? j : 0);
      zero[j] = sums[j] = 0;
      if (scale_group >= c.scale_groups) continue;
      zero[j] = middle + (c.zero == nullptr ? 0 : c.zero[n * c.scale_step + scale_group]);
      sums[j] = int32_t(uint32_t(x_zero) * uint32_t(c.sums[n * c.scale_groups + scale_group]));
    }
  }
};

// A vector of `corrected` sums, of row totals R.
template <int64_t kColumns>
FASTQ_HD I32 corrected_sums(const uint32_t* from, const Columns<kColumns>& of, int64_t j, uint32_t total) {
  return I32(load_bits<U32>(from) - load_bits<U32>(of.zero + j) * total - load_bits<U32>(of.sums + j));
}

// Codes of numbers that are within their range, rounded.
FASTQ_HD void store_codes(void* to, int64_t n, F32 code, int32_t zero) {
#if FASTQ_VECTOR_BYTES == 64
  const __m512i whole = _mm512_cvt_roundps_epi32(__m512(code), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  const __m128i bytes = _mm512_cvtepi32_epi8(_mm512_add_epi32(whole, _mm512_set1_epi32(zero)));
  if (n >= kWidth) return _mm_storeu_si128(static_cast<__m128i*>(to), bytes);
#else
  const CodeBytes bytes =
      __builtin_convertvector(__builtin_convertvector(round_clipped(code, float()), I32) + zero, CodeBytes);
#endif
  std::memcpy(to, &bytes, least(n, kWidth));
}

// Whether any lane of a mask is set.
FASTQ_HD bool any(I32 mask) {
#if FASTQ_VECTOR_BYTES == 64
  return _mm512_test_epi32_mask(__m512i(mask), __m512i(mask)) != 0;
#elif FASTQ_VECTOR_BYTES == 32
  return _mm256_movemask_ps(__m256(mask)) != 0;
#elif defined(FASTQ_SSE)
  return _mm_movemask_ps(__m128(mask)) != 0;
#else
  return (mask[0] | mask[1] | mask[2] | mask[3]) != 0;
#endif
}

// code_of without a division where that cannot matter. v * (1 / scale), or a sum times (its scale / scale), is within
// 4 * 2^-24 of the quotient, relatively, so within 2^-13 where it is not clipped, and codes are at most 256: only that
// close to half a code can the two round to different ones. There, and for NaN, the division decides.
struct Coder {
  F32 scale, inverse, low, high;
  float lowest, highest;
  bool quick;

  FASTQ_HD Coder(float of, float from, float to)
      : scale(splat<F32>(of)),
        inverse(splat<F32>(1.0f / of)),
        low(splat<F32>(from)),
        high(splat<F32>(to)),
        lowest(from),
        highest(to),
        quick(of > 1e-30f && of < 1e30f) {}  // beyond, the inverse may have fewer bits

  FASTQ_HD F32 code(F32 v) const {
    if (!quick) return code_of(v, scale, lowest, highest);
    const F32 q = clipped(v * inverse);
    return close(distance(q)) ? code_of(v, scale, lowest, highest) : round_clipped(q, float());
  }
  // NaN stays.
  FASTQ_HD F32 clipped(F32 q) const {
#if FASTQ_VECTOR_BYTES == 64
    return F32(_mm512_min_ps(__m512(high), _mm512_max_ps(__m512(low), __m512(q))));
#else
    return clip(q, lowest, highest);
#endif
  }
  // How far q is from its code, as bits, whose order is that of numbers; NaN is farther than all.
  FASTQ_HD static I32 distance(F32 q) {
#if FASTQ_VECTOR_BYTES == 64
    const F32 rest = F32(_mm512_reduce_ps(__m512(q), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
#else
    const F32 rest = q - round_clipped(q, float());
#endif
    return I32(rest) & 0x7fffffff;
  }
  // Whether in a lane the division decides.
  FASTQ_HD static bool close(I32 distance) {
#if FASTQ_VECTOR_BYTES == 64
    return _mm512_cmpgt_epi32_mask(__m512i(distance), _mm512_set1_epi32(kClose)) != 0;
#else
    return any(distance > kClose);
#endif
  }
  static constexpr int32_t kClose = 0x3effe000;  // of 0.5 - 2^-12
};

// From `+ bias` to the output, a vector at a time.
template <int64_t kColumns>
struct Output {
  const GemmCall& c;
  const EpilogueParts parts;
  const bool codes;
  const Coder coder;

  FASTQ_HD explicit Output(const GemmCall& call)
      : c(call),
        parts(call.parts()),
        codes(is_code(call.out_type)),
        coder(codes ? *call.out_scale : 1.0f, float(call.low - call.out_zero), float(call.high - call.out_zero)) {}

  // Of row i of the block, column j and those that follow it.
  FASTQ_HD void put(const Block& b, const Columns<kColumns>& of, int64_t i, int64_t j, F32 v) const {
    const int64_t at = (b.row + i) * c.n + b.column + j, left = b.columns - j;
    F32 residual = v;
    if (parts.residual)
      each_float(c.residual_type, [&](auto s) {
        using S = decltype(s);
        residual = load<S>(static_cast<const typename S::Element*>(c.residual) + at, left);
      });
    v = finished(v, parts, parts.bias ? load_bits<F32>(of.bias + j) : v,
                 parts.multiplier ? load_bits<F32>(of.multiplier + j) : v,
                 parts.addend ? load_bits<F32>(of.addend + j) : v, residual);
    if (codes) return store_codes(static_cast<uint8_t*>(c.out) + at, left, coder.code(v), c.out_zero);
    each_float(c.out_type, [&](auto s) {
      using S = decltype(s);
      store<S>(static_cast<typename S::Element*>(c.out) + at, left, v);
    });
  }
};

// What is subtracted from a sum for its row: nothing; the same for all columns; for each its own.
enum class Totals { none, shared, columns };

// Sums of codes to codes, by columns: what belongs to a column stays in registers. What an epilogue lacks is made of
// numbers that change no code: + 0, * 1; `kPlain`: it has a scale alone. A ReLU is a lowest code (of `coder`). `sums`
// [rows][kColumns] begins with the block's first column; `total(i)` is a row's.
template <Totals kTotals, bool kResidual, bool kPlain, int kVectors, int64_t kColumns, class Total>
FASTQ_HD void codes_of_sums(const GemmCall& c, const Block& b, const Columns<kColumns>& of, const uint32_t* sums,
                            const Total& total, const Coder& coder, int64_t j) {
  const EpilogueParts parts = c.parts();
  const F32 zeros = {}, x_scale = splat<F32>(c.x_scale == nullptr ? 1.0f : *c.x_scale);
  F32 scale[kVectors], direct[kVectors], bias[kVectors], multiplier[kVectors], addend[kVectors];
  U32 zero[kVectors], of_sums[kVectors];
  for (int k = 0; k < kVectors; ++k) {
    const int64_t at = j + k * kWidth;
    scale[k] = load_bits<F32>(of.scale + at) * x_scale, direct[k] = scale[k] * coder.inverse;
    bias[k] = parts.bias ? load_bits<F32>(of.bias + at) : zeros;
    multiplier[k] = parts.multiplier ? load_bits<F32>(of.multiplier + at) : splat<F32>(1.0f);
    addend[k] = parts.addend ? load_bits<F32>(of.addend + at) : zeros;
    zero[k] = load_bits<U32>(of.zero + at), of_sums[k] = load_bits<U32>(of.sums + at);
  }
  // Bytes are written, which may be anything: what is read of `c` in the loop would be read in each turn.
  const int64_t n = c.n, rows = b.rows, first = b.row * n + b.column + j;
  uint8_t* const out = static_cast<uint8_t*>(c.out) + first;
  const auto numbers = c.residual_type;
  const void* const residual = c.residual;
  const int32_t out_zero = c.out_zero;
  const uint32_t middle = uint32_t(of.zero[j]);
  const Coder by = coder;
  for (int64_t i = 0; i < rows; ++i) {
    F32 v[kVectors], q[kVectors];
    I32 distance = {};
    uint32_t row = 0;
    if constexpr (kTotals != Totals::none) row = total(i);
    for (int k = 0; k < kVectors; ++k) {
      U32 sum = load_bits<U32>(sums + i * kColumns + j + k * kWidth) - of_sums[k];
      if constexpr (kTotals == Totals::shared) sum -= middle * row;
      if constexpr (kTotals == Totals::columns) sum -= zero[k] * row;
      const F32 number = __builtin_convertvector(I32(sum), F32);
      v[k] = number * scale[k];
      if constexpr (!kPlain) v[k] = (v[k] + bias[k]) * multiplier[k] + addend[k];
      if constexpr (kResidual)
        each_float(numbers, [&](auto s) {
          using S = decltype(s);
          v[k] = v[k] + load<S>(static_cast<const typename S::Element*>(residual) + first + i * n + k * kWidth, kWidth);
        });
      q[k] = by.clipped(kPlain ? number * direct[k] : v[k] * by.inverse);
      const I32 of = Coder::distance(q[k]);
      distance = k == 0 ? of : of > distance ? of : distance;
    }
    if (__builtin_expect(Coder::close(distance), 0))
      for (int k = 0; k < kVectors; ++k) q[k] = code_of(v[k], by.scale, by.lowest, by.highest);
    for (int k = 0; k < kVectors; ++k) store_codes(out + i * n + k * kWidth, kWidth, q[k], out_zero);
  }
}

template <Totals kTotals, int64_t kColumns, class Total>
FASTQ_HD int64_t codes_by_columns(const GemmCall& c, const Block& b, const Columns<kColumns>& of, const uint32_t* sums,
                                  const Total& total, const Coder& coder) {
  const EpilogueParts parts = c.parts();
  const auto run = [&](auto residual, auto plain) {
    constexpr bool kResidual = residual, kPlain = plain;
    int64_t j = 0;
    for (; j + 2 * kWidth <= b.columns; j += 2 * kWidth)
      codes_of_sums<kTotals, kResidual, kPlain, 2>(c, b, of, sums, total, coder, j);
    for (; j + kWidth <= b.columns; j += kWidth)
      codes_of_sums<kTotals, kResidual, kPlain, 1>(c, b, of, sums, total, coder, j);
    return j;
  };
  if (parts.residual) return run(std::true_type(), std::false_type());
  if (parts.bias || parts.multiplier || parts.addend) return run(std::false_type(), std::false_type());
  return run(std::false_type(), std::true_type());
}

// The same to floating point numbers without more than a bias.
template <class S, bool kTotals, bool kBias, int64_t kColumns, class Total>
FASTQ_HD void floats_of_sums(const GemmCall& c, const Block& b, const Columns<kColumns>& of, const uint32_t* sums,
                             const Total& total, int64_t j) {
  const F32 scale = load_bits<F32>(of.scale + j), bias = kBias ? load_bits<F32>(of.bias + j) : scale;
  const U32 zero = load_bits<U32>(of.zero + j), of_sums = load_bits<U32>(of.sums + j);
  const F32 shared = scale * (c.x_scale == nullptr ? 1.0f : *c.x_scale);
  for (int64_t i = 0; i < b.rows; ++i) {
    U32 sum = load_bits<U32>(sums + i * kColumns + j) - of_sums;
    if constexpr (kTotals) sum -= zero * total(i);
    const F32 by = c.x_scale_step == 0 ? shared : scale * c.x_scale[b.row + i];
    F32 v = __builtin_convertvector(I32(sum), F32) * by;
    if constexpr (kBias) v = v + bias;
    S::store(static_cast<typename S::Element*>(c.out) + (b.row + i) * c.n + b.column + j, v);
  }
}

// Whole vectors of columns by the two above, where they serve; how many columns that were.
template <int64_t kColumns, class Total>
FASTQ_HD int64_t quick_columns(const GemmCall& c, const Block& b, const Columns<kColumns>& of, const uint32_t* sums,
                               bool totals, const Total& total) {
  const EpilogueParts parts = c.parts();
  if (c.scale_groups != 1) return 0;
  int64_t j = 0;
  if (is_code(c.out_type)) {
    // The code of what a ReLU leaves is the larger one of its code and that of 0.
    const float low = float(c.low - c.out_zero);
    const bool relu = parts.activation == Activation::relu;
    const Coder coder(*c.out_scale, relu && low < 0.0f ? 0.0f : low, float(c.high - c.out_zero));
    if (!coder.quick || parts.activation > Activation::relu || c.x_scale_step != 0) return 0;
    if (!totals) return codes_by_columns<Totals::none>(c, b, of, sums, total, coder);
    if (c.zero == nullptr) return codes_by_columns<Totals::shared>(c, b, of, sums, total, coder);
    return codes_by_columns<Totals::columns>(c, b, of, sums, total, coder);
  } else if (!parts.multiplier && !parts.addend && !parts.residual && parts.activation == Activation::none) {
    each_float(c.out_type, [&](auto s) {
      using S = decltype(s);
      for (; j + kWidth <= b.columns; j += kWidth) {
        if (totals && parts.bias)
          floats_of_sums<S, true, true>(c, b, of, sums, total, j);
        else if (totals)
          floats_of_sums<S, true, false>(c, b, of, sums, total, j);
        else if (parts.bias)
          floats_of_sums<S, false, true>(c, b, of, sums, total, j);
        else
          floats_of_sums<S, false, false>(c, b, of, sums, total, j);
      }
    });
  }
  return j;
}

// y (+)= numbers(i, j) * (x_scale * scale); of the last group of K the output follows.
template <int64_t kColumns, class Numbers>
FASTQ_HD void fold(const GemmCall& c, const Block& b, const Columns<kColumns>& of, int64_t scale_group,
                   const Numbers& numbers, float* y, int64_t from = 0) {
  const Output<kColumns> output(c);
  const bool last = scale_group + 1 >= c.scale_groups;
  for (int64_t i = 0; i < b.rows; ++i) {
    const F32 x_scale = splat<F32>(c.x_scale == nullptr ? 1.0f : c.x_scale[(b.row + i) * c.x_scale_step]);
    for (int64_t j = from; j < b.columns; j += kWidth) {
      float* sum = y + i * kColumns + j;
      F32 v = scaled(numbers(i, j), x_scale, load_bits<F32>(of.scale + j));
      if (scale_group > 0) v = load_bits<F32>(sum) + v;
      if (last)
        output.put(b, of, i, j, v);
      else
        store_bits(sum, v);
    }
  }
}

}  // namespace FASTQ_ISA
}  // namespace fastq
