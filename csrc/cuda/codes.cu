// Codes of floating point numbers on a GPU: with one scale, or with one for each row, its largest magnitude over the
// highest code. Memory is what limits: threads take 16 elements at a time, 16 bytes of codes.
#include "decode.h"
#include "launch.cuh"

namespace fastq::cuda {

namespace {

constexpr int kCodesThreads = 256;
constexpr int kCodes = 16;  // of a thread at a time

// 16 numbers that lie together, from 16-byte loads.
template <class S>
FASTQ_HD void load_codes(const typename S::Element* p, float* values) {
  using P = Piece<typename S::Element>;
#pragma unroll
  for (int i = 0; i < kCodes; i += P::kSize) {
    const P piece = load_piece(p + i);
#pragma unroll
    for (int e = 0; e < P::kSize; ++e) values[i + e] = S::load(piece.element[e]);
  }
}

FASTQ_HD uint8_t code(const QuantizeCall& c, float v, float scale, float offset) {
  const float value = c.offset == nullptr ? v : v - offset;
  return uint8_t(int32_t(code_of(value, scale, float(c.low - c.zero), float(c.high - c.zero))) + c.zero);
}

// A thread's share of the elements from `begin` to `end`.
template <class S>
FASTQ_HD void write_codes(const QuantizeCall& c, int64_t begin, int64_t end, int thread, float scale) {
  const auto* x = static_cast<const typename S::Element*>(c.x) + begin;
  uint8_t* to = static_cast<uint8_t*>(c.out) + begin;
  const float offset = c.offset == nullptr ? 0.0f : *c.offset;
  const int64_t count = end - begin;
  int64_t rest = 0;
  if (aligned(x) && aligned(to)) {
    rest = count / kCodes * kCodes;
    for (int64_t i = thread * kCodes; i < rest; i += kCodesThreads * kCodes) {
      float values[kCodes];
      load_codes<S>(x + i, values);
      Piece<uint8_t> piece;
#pragma unroll
      for (int e = 0; e < kCodes; ++e) piece.element[e] = code(c, values[e], scale, offset);
      store_piece(to + i, piece);
    }
  }
  for (int64_t i = rest + thread; i < count; i += kCodesThreads) to[i] = code(c, S::load(x[i]), scale, offset);
}

template <class S>
struct Quantize {
  using Job = QuantizeCall;
  struct Shared {};
  static constexpr int kThreads = kCodesThreads;
  static constexpr int kBlocksPerSM = 4;
  static constexpr int64_t kElements = kThreads * kCodes;

  template <class Team>
  FASTQ_HD static void run(const Team& team, const Job& c, Shared&, int64_t index) {
    const int64_t begin = index * kElements, end = smaller(begin + kElements, c.k);
    team.each([&](int thread) { write_codes<S>(c, begin, end, thread, *c.scale); });
  }
};

template <class S>
struct QuantizeRows {
  using Job = QuantizeCall;
  static constexpr int kThreads = kCodesThreads;
  static constexpr int kBlocksPerSM = 4;

  struct Shared {
    uint32_t largest[kThreads];
  };

  // Magnitudes in the order of their bits, in which NaN comes last.
  FASTQ_HD static uint32_t larger(uint32_t largest, float v) {
    const uint32_t bits = bits_as<uint32_t>(v) & 0x7fffffffu;
    return bits > largest ? bits : largest;
  }

  template <class Team>
  FASTQ_HD static void run(const Team& team, const Job& c, Shared& shared, int64_t index) {
    const int64_t begin = index * c.k, end = begin + c.k;
    team.each([&](int thread) {
      const auto* x = static_cast<const typename S::Element*>(c.x) + begin;
      uint32_t largest = 0;
      int64_t rest = 0;
      if (aligned(x)) {
        rest = c.k / kCodes * kCodes;
        for (int64_t i = thread * kCodes; i < rest; i += kThreads * kCodes) {
          float values[kCodes];
          load_codes<S>(x + i, values);
#pragma unroll
          for (int e = 0; e < kCodes; ++e) largest = larger(largest, values[e]);
        }
      }
      for (int64_t i = rest + thread; i < c.k; i += kThreads) largest = larger(largest, S::load(x[i]));
      shared.largest[thread] = largest;
    });
    for (int half = kThreads / 2; half > 0; half /= 2)
      team.each([&](int thread) {
        if (thread < half)
          shared.largest[thread] = larger(shared.largest[thread], bits_as<float>(shared.largest[thread + half]));
      });
    team.each([&](int thread) {
      const float scale = token_scale(bits_as<float>(shared.largest[0]), float(c.high));
      if (thread == 0) c.scales[index] = scale;
      write_codes<S>(c, begin, end, thread, scale);
    });
  }
};

template <class Body>
Status each_dtype(Stored type, const Body& body) {
  switch (type) {
    case Stored::f32: return body(Float32Storage());
    case Stored::bf16: return body(BFloat16Storage());
    case Stored::f16: return body(Float16Storage());
    default: return {"unknown storage type", __FILE__, __LINE__};
  }
}

}  // namespace

Status quantize(const QuantizeCall& c, void* stream) {
  return each_dtype(c.x_type, [&](auto s) {
    using Kernel = Quantize<decltype(s)>;
    return FASTQ_LAUNCH(Kernel, c, (c.k + Kernel::kElements - 1) / Kernel::kElements, stream);
  });
}

Status quantize_rows(const QuantizeCall& c, void* stream) {
  return each_dtype(c.x_type, [&](auto s) {
    using Kernel = QuantizeRows<decltype(s)>;
    return FASTQ_LAUNCH(Kernel, c, c.rows, stream);
  });
}

}  // namespace fastq::cuda
