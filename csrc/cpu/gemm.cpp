// The integer engine on the CPU, for one instruction set: products of packed weights, convolutions, codes.
//
// A task is a block of rows and columns of the output. It goes along K in steps: the step's part of the block's weights
// is unpacked to numbers of one type, f - t, and that of its rows to x - zx, which 16 bits hold whatever the codes;
// then small tiles of dot products, as many elements at a time as a vector has. What a task computes depends on the
// shape alone, so that the number of threads changes no bit.
#include "gemm.h"

#include "vector.h"
#if FASTQ_VECTOR_BYTES == 16
#include <emmintrin.h>
#endif

namespace fastq {
inline namespace FASTQ_ISA {

typedef int16_t I16 __attribute__((vector_size(FASTQ_VECTOR_BYTES)));
typedef uint8_t CodeBytes __attribute__((vector_size(FASTQ_VECTOR_BYTES / 4)));

namespace {

constexpr int kWidth = sizeof(F32) / sizeof(float);

// In lane i the sum of the products of elements 2i and 2i + 1.
FASTQ_HD U32 pair_products(I16 a, I16 b) {
#if FASTQ_VECTOR_BYTES == 64
  return U32(_mm512_madd_epi16(__m512i(a), __m512i(b)));
#elif FASTQ_VECTOR_BYTES == 32
  return U32(_mm256_madd_epi16(__m256i(a), __m256i(b)));
#else
  return U32(_mm_madd_epi16(__m128i(a), __m128i(b)));
#endif
}

// How a product is summed: exactly modulo 2^32, two elements a lane; or in fp32.
struct Integers16 {
  using Element = int16_t;  // of a dot product
  using Wide = uint32_t;    // of an element by itself, and of sums
  using Vector = I16;
  using Sum = U32;
  static constexpr int kStep = 512;  // elements of K at a time
  FASTQ_HD static Sum add(Sum sum, Vector a, Vector b) { return sum + pair_products(a, b); }
  FASTQ_HD static F32 numbers(const Wide* sums) { return __builtin_convertvector(load_bits<I32>(sums), F32); }
};
struct Floats {
  using Element = float;
  using Wide = float;
  using Vector = F32;
  using Sum = F32;
  static constexpr int kStep = 256;
  FASTQ_HD static Sum add(Sum sum, Vector a, Vector b) { return sum + a * b; }
  FASTQ_HD static F32 numbers(const Wide* sums) { return load_bits<F32>(sums); }
};

// The sum over lanes, by halves.
template <class Total, class V>
FASTQ_HD Total sum_of_lanes(V v) {
  Total lane[kWidth];
  std::memcpy(lane, &v, sizeof(v));
  for (int half = kWidth / 2; half > 0; half /= 2)
    for (int j = 0; j < half; ++j) lane[j] += lane[j + half];
  return lane[0];
}

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

// What is stored as x, each element less the zero-point.
template <class T>
struct CodesOf {
  using Element = T;
  template <class To>
  FASTQ_HD static void load(const T* from, int64_t n, int32_t zero, To* to) {
    for (int64_t i = 0; i < n; ++i) to[i] = To(int32_t(from[i]) - zero);
  }
};
template <class S>
struct FloatsOf {
  using Element = typename S::Element;
  FASTQ_HD static void load(const Element* from, int64_t n, int32_t, float* to) {
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

// For the epilogue: what belongs to a block's columns, with room for whole vectors.
template <int64_t kColumns>
struct alignas(64) Columns {
  float scale[kColumns], bias[kColumns], multiplier[kColumns], addend[kColumns];

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
    for (int64_t j = 0; j < kColumns; ++j)
      scale[j] = j < b.columns ? c.scale[(b.column + j) * c.scale_step + scale_group] : 0.0f;
  }
};

// y (+)= sums * (x_scale * scale)
template <class E, int64_t kColumns>
void fold(const GemmCall& c, const Block& b, const Columns<kColumns>& of, const typename E::Wide* sums, bool first,
          float* y) {
  for (int64_t i = 0; i < b.rows; ++i) {
    const F32 x_scale = splat<F32>(c.x_scale == nullptr ? 1.0f : c.x_scale[(b.row + i) * c.x_scale_step]);
    for (int64_t j = 0; j < b.columns; j += kWidth) {
      float* to = y + i * kColumns + j;
      const F32 v = scaled(E::numbers(sums + i * kColumns + j), x_scale, load_bits<F32>(of.scale + j));
      store_bits(to, first ? v : load_bits<F32>(to) + v);
    }
  }
}

FASTQ_HD void store_codes(void* to, int64_t n, F32 code, int32_t zero) {
  const CodeBytes bytes = __builtin_convertvector(__builtin_convertvector(code, I32) + zero, CodeBytes);
  std::memcpy(to, &bytes, least(n, kWidth));
}

// From `+ bias` to the output.
template <int64_t kColumns>
void finish(const GemmCall& c, const Block& b, const Columns<kColumns>& of, float* y) {
  const EpilogueParts parts = c.parts();
  const bool codes = is_code(c.out_type);
  const F32 out_scale = splat<F32>(codes ? *c.out_scale : 1.0f);
  const float low = float(c.low - c.out_zero), high = float(c.high - c.out_zero);
  for (int64_t i = 0; i < b.rows; ++i) {
    const int64_t at = (b.row + i) * c.n + b.column;
    alignas(64) float residual[kColumns];
    if (parts.residual)
      each_float(c.residual_type, [&](auto s) {
        using S = decltype(s);
        FloatsOf<S>::load(static_cast<const typename S::Element*>(c.residual) + at, b.columns, 0, residual);
        fill_zeros(residual, b.columns, multiple(b.columns, kWidth));
      });
    for (int64_t j = 0; j < b.columns; j += kWidth) {
      F32 v = load_bits<F32>(y + i * kColumns + j);
      v = finished(v, parts, parts.bias ? load_bits<F32>(of.bias + j) : v,
                   parts.multiplier ? load_bits<F32>(of.multiplier + j) : v,
                   parts.addend ? load_bits<F32>(of.addend + j) : v, parts.residual ? load_bits<F32>(residual + j) : v);
      const int64_t left = b.columns - j;
      if (codes) {
        store_codes(static_cast<uint8_t*>(c.out) + at + j, left, code_of(v, out_scale, low, high), c.out_zero);
      } else {
        each_float(c.out_type, [&](auto s) {
          using S = decltype(s);
          store<S>(static_cast<typename S::Element*>(c.out) + at + j, left, v);
        });
      }
    }
  }
}

template <int64_t kColumns>
void store_sums(const GemmCall& c, const Block& b, const uint32_t* sums) {
  for (int64_t i = 0; i < b.rows; ++i)
    std::memcpy(static_cast<int32_t*>(c.out) + (b.row + i) * c.n + b.column, sums + i * kColumns,
                b.columns * sizeof(int32_t));
}

// Where a position of the output looks at the image.
struct Position {
  int64_t image, top, left;

  FASTQ_HD Position(const GemmWindow& w, int64_t row) {
    const int64_t i = row / w.ow % w.oh, j = row % w.ow;
    image = row / w.ow / w.oh;
    top = i * w.sh - w.top;
    left = j * w.sw - w.left;
  }
  // The pixel of a tap, or -1 outside.
  FASTQ_HD int64_t pixel(const GemmWindow& w, int64_t u, int64_t v) const {
    const int64_t y = top + u * w.dh, x = left + v * w.dw;
    if (y < 0 || y >= w.height || x < 0 || x >= w.width) return -1;
    return (image * w.height + y) * w.width + x;
  }
};

template <class E, class X>
struct Product {
  using Element = typename E::Element;
  using Wide = typename E::Wide;
  static constexpr int kElements = sizeof(typename E::Vector) / sizeof(Element);
  static constexpr int64_t kColumns = kGemmColumns;
  static constexpr int kTileRows = 4, kTileColumns = 2, kRowColumns = 4;

  struct alignas(64) Scratch {
    Element x[kGemmRows * E::kStep];
    Element weight[kColumns * E::kStep];
    Wide sums[kGemmRows * kColumns];
    float y[kGemmRows * kColumns];
    Columns<kColumns> columns;
  };

  // Elements [first, first + count) of K of the block's weights.
  FASTQ_HD static void load_weights(const GemmCall& c, const Block& b, int64_t scale_group, int64_t first,
                                    int64_t count, Scratch& s) {
    const int64_t padded = multiple(count, kElements);
    for (int64_t j = 0; j < b.columns; ++j) {
      const int64_t n = b.column + j;
      const int32_t zero = c.zero == nullptr ? 0 : c.zero[n * c.scale_step + scale_group];
      Element* to = s.weight + j * E::kStep;
      unpack_rows(c.weight + n * c.row_bytes, c.bits, first, count, Element(zero), to);
      fill_zeros(to, count, padded);
    }
    for (int64_t j = b.columns; j < multiple(b.columns, kRowColumns); ++j)
      fill_zeros(s.weight + j * E::kStep, 0, padded);
  }

  FASTQ_HD static void load_row(const GemmCall& c, const Block& b, int64_t row, int64_t first, int64_t count,
                                Element* to) {
    const auto* x = static_cast<const typename X::Element*>(c.x);
    if (!c.convolution) return X::load(x + row * c.k + first, count, c.x_zero, to);
    const GemmWindow& w = c.window;
    const Position p(w, row);
    if (w.dw == 1 && w.groups == 1) return load_lines(c, p, first, count, to);
    int64_t tap = first / w.channels, channel = first % w.channels;
    for (int64_t done = 0; done < count; ++tap, channel = 0) {
      const int64_t run = least(w.channels - channel, count - done), pixel = p.pixel(w, tap / w.kw, tap % w.kw);
      if (pixel < 0)
        fill_zeros(to, done, done + run);
      else
        X::load(x + (pixel * w.groups + b.group) * w.channels + channel, run, c.x_zero, to + done);
      done += run;
    }
  }

  // Where the taps of a line of the kernel are neighbours in memory: a few channels alone would be short runs.
  FASTQ_HD static void load_lines(const GemmCall& c, const Position& p, int64_t first, int64_t count, Element* to) {
    const GemmWindow& w = c.window;
    const auto* x = static_cast<const typename X::Element*>(c.x);
    const int64_t of_kernel = w.kw * w.channels, of_image = w.width * w.channels;  // elements of a line
    int64_t u = first / of_kernel, v = first % of_kernel;
    for (int64_t done = 0; done < count; ++u, v = 0) {
      const int64_t run = least(of_kernel - v, count - done), y = p.top + u * w.dh, at = p.left * w.channels + v;
      int64_t begin = at < 0 ? least(-at, run) : 0, end = at < of_image ? least(of_image - at, run) : 0;
      if (y < 0 || y >= w.height || begin >= end) begin = end = 0;
      fill_zeros(to + done, 0, begin);
      if (begin < end)
        X::load(x + (p.image * w.height + y) * of_image + at + begin, end - begin, c.x_zero, to + done + begin);
      fill_zeros(to + done, end, run);
      done += run;
    }
  }

  FASTQ_HD static void load_x(const GemmCall& c, const Block& b, int64_t first, int64_t count, Scratch& s) {
    const int64_t padded = multiple(count, kElements);
    for (int64_t i = 0; i < b.rows; ++i) {
      Element* to = s.x + i * E::kStep;
      load_row(c, b, b.row + i, first, count, to);
      fill_zeros(to, count, padded);
    }
    for (int64_t i = b.rows; i < multiple(b.rows, kTileRows); ++i) fill_zeros(s.x + i * E::kStep, 0, padded);
  }

  template <int kR, int kC>
  FASTQ_HD static void tile(const Element* x, const Element* weight, int64_t count, Wide* sums) {
    typename E::Sum sum[kR][kC] = {};
    for (int64_t k = 0; k < count; k += kElements) {
      typename E::Vector of_weight[kC];
      for (int j = 0; j < kC; ++j) of_weight[j] = load_bits<typename E::Vector>(weight + j * E::kStep + k);
      for (int i = 0; i < kR; ++i) {
        const auto of_x = load_bits<typename E::Vector>(x + i * E::kStep + k);
        for (int j = 0; j < kC; ++j) sum[i][j] = E::add(sum[i][j], of_x, of_weight[j]);
      }
    }
    for (int i = 0; i < kR; ++i)
      for (int j = 0; j < kC; ++j) sums[i * kColumns + j] += sum_of_lanes<Wide>(sum[i][j]);
  }

  static void tiles(const Block& b, int64_t count, Scratch& s) {
    int64_t i = 0;
    for (; i + 1 < b.rows; i += kTileRows)
      for (int64_t j = 0; j < b.columns; j += kTileColumns)
        tile<kTileRows, kTileColumns>(s.x + i * E::kStep, s.weight + j * E::kStep, count, s.sums + i * kColumns + j);
    if (i >= b.rows) return;
    for (int64_t j = 0; j < b.columns; j += kRowColumns)
      tile<1, kRowColumns>(s.x + i * E::kStep, s.weight + j * E::kStep, count, s.sums + i * kColumns + j);
  }

  static void run(const GemmCall& c, const Block& b) {
    Scratch s;
    const int64_t used = multiple(b.rows, kTileRows) * kColumns;
    fill_zeros(s.sums, 0, used);
    if (c.scale_groups == 0) fill_zeros(s.y, 0, used);  // K is 0
    s.columns.set(c, b);
    for (int64_t g = 0; g < c.scale_groups; ++g) {
      const int64_t end = least((g + 1) * c.group_size, c.k);
      for (int64_t first = g * c.group_size; first < end; first += E::kStep) {
        const int64_t count = least(E::kStep, end - first);
        load_weights(c, b, g, first, count, s);
        load_x(c, b, first, count, s);
        tiles(b, count, s);
      }
      if (c.out_type == Stored::i32) break;  // the one group's
      s.columns.set_scale(c, b, g);
      fold<E>(c, b, s.columns, s.sums, g == 0, s.y);
      if (g + 1 < c.scale_groups) fill_zeros(s.sums, 0, used);
    }
    output(c, b, s);
  }

  FASTQ_HD static void output(const GemmCall& c, const Block& b, Scratch& s) {
    if constexpr (sizeof(Element) == 2)
      if (c.out_type == Stored::i32) return store_sums<kColumns>(c, b, s.sums);
    finish(c, b, s.columns, s.y);
  }
};

// A convolution whose channels each have a kernel of their own: no dot products, but vectors of channels.
template <class E, class X>
struct Depthwise {
  using Wide = typename E::Wide;
  static constexpr int64_t kColumns = kDepthwiseChannels;
  static constexpr int64_t kTaps = 32;  // at a time

  struct alignas(64) Scratch {
    Wide weight[kTaps * kColumns];
    Wide x[kColumns];
    Wide sums[kDepthwiseRows * kColumns];
    float y[kDepthwiseRows * kColumns];
    Columns<kColumns> columns;
    int32_t channel[kColumns];  // of the input, from the block's first one
  };

  static void load_weights(const GemmCall& c, const Block& b, int64_t first, int64_t count, Scratch& s) {
    using Field = typename E::Element;
    for (int64_t j = 0; j < b.columns; ++j) {
      const int64_t n = b.column + j;
      Field taps[kTaps];
      unpack_rows(c.weight + n * c.row_bytes, c.bits, first, count,
                  Field(c.zero == nullptr ? 0 : c.zero[n * c.scale_step]), taps);
      for (int64_t t = 0; t < count; ++t) s.weight[t * kColumns + j] = Wide(taps[t]);
    }
  }

  static void run(const GemmCall& c, const Block& b) {
    Scratch s;
    const GemmWindow& w = c.window;
    const auto* x = static_cast<const typename X::Element*>(c.x);
    const int64_t each = c.n / w.groups;  // outputs of an input channel
    const int64_t lowest = b.column / each, channels = (b.column + b.columns - 1) / each - lowest + 1;
    for (int64_t j = 0; j < b.columns; ++j) s.channel[j] = int32_t((b.column + j) / each - lowest);
    fill_zeros(s.sums, 0, kDepthwiseRows * kColumns);
    s.columns.set(c, b);
    for (int64_t first = 0; first < c.k; first += kTaps) {
      const int64_t count = least(kTaps, c.k - first);
      load_weights(c, b, first, count, s);
      for (int64_t i = 0; i < b.rows; ++i) {
        const Position p(w, b.row + i);
        for (int64_t t = 0; t < count; ++t) {
          const int64_t pixel = p.pixel(w, (first + t) / w.kw, (first + t) % w.kw);
          if (pixel < 0) continue;
          X::load(x + pixel * w.groups + lowest, channels, c.x_zero, s.x);
          Wide* sums = s.sums + i * kColumns;
          const Wide* weight = s.weight + t * kColumns;
          if (each == 1)
            for (int64_t j = 0; j < b.columns; ++j) sums[j] += s.x[j] * weight[j];
          else
            for (int64_t j = 0; j < b.columns; ++j) sums[j] += s.x[s.channel[j]] * weight[j];
        }
      }
    }
    if constexpr (sizeof(typename E::Element) == 2)
      if (c.out_type == Stored::i32) return store_sums<kColumns>(c, b, s.sums);
    s.columns.set_scale(c, b, 0);
    fold<E>(c, b, s.columns, s.sums, true, s.y);
    finish(c, b, s.columns, s.y);
  }
};

template <class E, class X>
void blocks(const GemmCall& c, int64_t begin, int64_t end) {
  const GemmTasks tasks(c);
  const bool depthwise = c.depthwise();
  const int64_t rows = depthwise ? kDepthwiseRows : kGemmRows, columns = depthwise ? kDepthwiseChannels : kGemmColumns;
  for (int64_t task = begin; task < end; ++task) {
    const int64_t row = task % tasks.row_blocks * rows, of_columns = task / tasks.row_blocks;
    const int64_t column = of_columns % tasks.column_blocks * columns, group = of_columns / tasks.column_blocks;
    const Block b = {row, least(rows, c.m - row), group * tasks.columns + column,
                     least(columns, tasks.columns - column), group};
    if (depthwise)
      Depthwise<E, X>::run(c, b);
    else
      Product<E, X>::run(c, b);
  }
}

void product(const GemmCall& c, int64_t begin, int64_t end) {
  switch (c.x_type) {
    case Stored::i8: return blocks<Integers16, CodesOf<int8_t>>(c, begin, end);
    case Stored::u8: return blocks<Integers16, CodesOf<uint8_t>>(c, begin, end);
    case Stored::bf16: return blocks<Floats, FloatsOf<BFloat16>>(c, begin, end);
    case Stored::f16: return blocks<Floats, FloatsOf<Float16>>(c, begin, end);
    default: return blocks<Floats, FloatsOf<Float32>>(c, begin, end);
  }
}

// Codes of elements [begin, end).
template <class S>
FASTQ_HD void codes(const QuantizeCall& c, int64_t begin, int64_t end, float scale) {
  const auto* x = static_cast<const typename S::Element*>(c.x);
  const float low = float(c.low - c.zero), high = float(c.high - c.zero);
  const F32 step = splat<F32>(scale), offset = splat<F32>(c.offset == nullptr ? 0.0f : *c.offset);
  for (int64_t i = begin; i < end; i += kWidth) {
    F32 v = load<S>(x + i, end - i);
    if (c.offset != nullptr) v = v - offset;
    store_codes(static_cast<uint8_t*>(c.out) + i, end - i, code_of(v, step, low, high), c.zero);
  }
}

void quantize(const QuantizeCall& c, int64_t begin, int64_t end) {
  each_float(c.x_type, [&](auto s) { codes<decltype(s)>(c, begin * kChunk, least(end * kChunk, c.k), *c.scale); });
}

// NaN where one of them is NaN.
template <class V>
FASTQ_HD V larger(V a, V b) {
  return select(a > b, a, select(a == a, b, a));
}

void quantize_rows(const QuantizeCall& c, int64_t begin, int64_t end) {
  each_float(c.x_type, [&](auto s) {
    using S = decltype(s);
    for (int64_t row = begin; row < end; ++row) {
      const auto* x = static_cast<const typename S::Element*>(c.x) + row * c.k;
      F32 most = {};
      for (int64_t i = 0; i < c.k; i += kWidth) most = larger(magnitude_of(load<S>(x + i, c.k - i), float()), most);
      float largest = most[0];
      for (int j = 1; j < kWidth; ++j) largest = larger(largest, float(most[j]));
      c.scales[row] = token_scale(largest, float(c.high));
      codes<S>(c, row * c.k, (row + 1) * c.k, c.scales[row]);
    }
  });
}

}  // namespace

extern const GemmLoops gemm_loops;
const GemmLoops gemm_loops = {product, quantize, quantize_rows};

}  // namespace FASTQ_ISA
}  // namespace fastq
