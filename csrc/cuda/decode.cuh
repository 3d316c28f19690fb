// Linear layers of few rows on a GPU: at most 16 of x, against weights of 2, 4 or 8 bits in the layout `tiles`
// (fastq/packing.py). What limits is reading the weights, once.
//
// y^T = W x^T: a warp takes 16 rows of the weight, the left operand of mma.sync, and the rows of x are its columns.
// Which K a fragment's words stand for is free as long as both operands agree, so a lane (g, t) = (lane / 4, lane % 4)
// reads 16 bytes in one load, those from 16t on of rows g and g + 8 of a tile, and 16 elements of row g of x from the
// same K on: no shuffle, no shared memory, no transposition. The fields are unpacked in registers:
//
//     integers    the field in the upper bits of a byte, one mask (and one shift): 16 f or 64 f, a power of two that is
//                 shifted out of the accumulator. Its zero comes off the sum: acc = D - t * sum x, the second term from
//                 another product, with a matrix of ones in place of W
//     floats      f - t, exact in the type of x: the field's bits in the mantissa of 128 (fp16: of 1024), less 128 + t
//
// A block is 8 warps, each with the tiles of an 8th of K (of the block's part of K, where the rows are too few for the
// GPU and K is split over blocks). Of a warp's tiles kAhead are on their way from memory at any time, 48 KB for an SM
// with two blocks, where an H200's 18.6 bytes per clock at 800 clocks of latency ask for 15. Its tile (1 KB) takes 55
// clocks of the SM's memory and about 100 instructions of W4A8 at 16 rows, 25 clocks of its four schedulers. x is read
// through L1, by all warps of the SM. Sums of warps and of blocks are added in a fixed order, without atomics.
//
// Scales of groups: a warp goes through K upwards, and where a group ends it adds scale * acc to its float32 sums.
// Where a group is shorter than the 64 elements that one product takes, each product is made for every group among
// them, with the others' x replaced by 0.
//
// Prefill (more rows) is Triton's: triton_kernels/int_gemm.py. Kernels of wgmma and TMA in CUDA C++ would be written
// only where it measurably cannot match; nothing here has been timed yet. With a GPU, in this order: (1) these kernels
// at M = 1, 4, 8, 16 and N = K = 4096, 8192, by graph replay over more than 150 MB of weights: below 80 % of the copy
// rate try kAhead, then parts of K that fill the last wave of blocks (decode_plan), then 32 rows per warp; (2) Triton's
// W8A8 at 8192^3 against the goal of 1250 TOPS and the best peer, with the profiler's share of cycles in which the
// tensor cores are active: below 85 % of the goal with every configuration of `python -m fastq tune`, write the W8A8
// kernel (one producer warp with TMA, two consumer warpgroups of wgmma m64n256k32, 4 stages of 128 x 128 bytes,
// persistent, the epilogue as here), from CUTLASS only if its own example of these sizes is faster than ours; (3) W4A8
// the same against 90 % of our W8A8 at M >= 256: the weight is then wgmma's left operand from registers, unpacked as
// here, and what decides is whether the unpacking overlaps the products.
#pragma once

#include <type_traits>

#include "decode.h"
#include "launch.cuh"
#include "warp.cuh"

namespace fastq::cuda {

constexpr int kDecodeWarps = 8;
constexpr int kHalf = 64;     // elements that one product takes: those of one field of the bytes of a tile
constexpr int kQuarter = 16;  // of them in a lane, all in one group

struct alignas(16) Words {
  uint32_t word[4];
};

// Of the weights: read once, and not to be kept.
FASTQ_HD Words load_once(const uint8_t* p) {
#if defined(__CUDA_ARCH__)
  return bits_as<Words>(__ldcs(reinterpret_cast<const uint4*>(p)));
#else
  Words words;
  memcpy(&words, p, sizeof(words));
  return words;
#endif
}
// Of x: every warp of the SM reads it.
FASTQ_HD Words load_shared(const uint8_t* p) {
#if defined(__CUDA_ARCH__)
  return bits_as<Words>(__ldg(reinterpret_cast<const uint4*>(p)));
#else
  Words words;
  memcpy(&words, p, sizeof(words));
  return words;
#endif
}

// Four of the bytes of a (0 to 3) and b (4 to 7), as the digits of `which` say.
FASTQ_HD uint32_t permute(uint32_t a, uint32_t b, uint32_t which) {
#if defined(__CUDA_ARCH__)
  return __byte_perm(a, b, which);
#else
  const uint64_t both = uint64_t(b) << 32 | a;
  uint32_t result = 0;
  for (int i = 0; i < 4; ++i) result |= uint32_t(both >> (which >> (4 * i) & 7) * 8 & 0xff) << (8 * i);
  return result;
#endif
}

// The input's type: how fields become operands beside it. kWords: of 16 elements.
template <class T>
struct Bytes {
  using Element = T;
  using D = int32_t;
  static constexpr int kSize = 1, kWords = 4;
  static constexpr bool kInteger = true;

  // 2^(8 - kBits) times the fields.
  template <int kBits>
  FASTQ_HD static void unpack(const Words& packed, int field, uint32_t, uint32_t* out) {
#pragma unroll
    for (int i = 0; i < 4; ++i) out[i] = four_scaled_fields<kBits>(packed.word[i], field);
  }
  // x is as it should be.
  template <int kBits>
  FASTQ_HD static void order(uint32_t*) {}
};

// Two numbers side by side in a word.
template <class Storage>
struct Halves {
  using Element = Storage;
  using D = float;
  static constexpr bool kBFloat16 = std::is_same_v<Storage, BFloat16Storage>;
  static constexpr int kSize = 2, kWords = 8;
  static constexpr bool kInteger = false;
  static constexpr uint32_t kOne = kBFloat16 ? 0x4300 : 0x6400;  // 128 (1024), whose mantissa's lowest bit is 1

  FASTQ_HD static uint32_t subtract(uint32_t a, uint32_t b) {
#if defined(__CUDA_ARCH__)
    if constexpr (kBFloat16)
      return bits_as<uint32_t>(__hsub2(bits_as<__nv_bfloat162>(a), bits_as<__nv_bfloat162>(b)));
    else
      return bits_as<uint32_t>(__hsub2(bits_as<__half2>(a), bits_as<__half2>(b)));
#else
    const auto one = [](uint32_t x, uint32_t y) {
      return uint32_t(Storage::store(Storage::load(uint16_t(x)) - Storage::load(uint16_t(y))));
    };
    return one(a >> 16, b >> 16) << 16 | one(a & 0xffffu, b & 0xffffu);
#endif
  }

  // f - t of the elements 0 and 2, then 1 and 3, of each word (kBits 8: 0 and 1, then 2 and 3).
  template <int kBits>
  FASTQ_HD static void unpack(const Words& packed, int field, uint32_t zero, uint32_t* out) {
    constexpr uint32_t kSign = 1u << (kBits - 1);
    if constexpr (kBits < 8) {
      constexpr uint32_t kMask = ((1u << kBits) - 1) * 0x00010001u, kFlip = (kOne | kSign) * 0x00010001u;
#pragma unroll
      for (int i = 0; i < 8; ++i)
        out[i] = subtract((packed.word[i / 2] >> (kBits * field + 8 * (i % 2)) & kMask) ^ kFlip, zero);
    } else if constexpr (kBFloat16) {  // a byte is one bit more than 128's mantissa has: by way of fp32, 2^23 + byte
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        const uint32_t word = packed.word[i / 2] ^ 0x80808080u;
        const float less = bits_as<float>(zero);
        const float low = bits_as<float>(permute(word, 0x4b000000u, i % 2 == 0 ? 0x7440u : 0x7442u)) - less;
        const float high = bits_as<float>(permute(word, 0x4b000000u, i % 2 == 0 ? 0x7441u : 0x7443u)) - less;
        out[i] = permute(bits_as<uint32_t>(low), bits_as<uint32_t>(high), 0x7632u);  // 8 bits: nothing is cut off
      }
    } else {
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        const uint32_t word = packed.word[i / 2] ^ 0x80808080u;
        out[i] = subtract(permute(word, 0x64646464u, i % 2 == 0 ? 0x4140u : 0x4342u), zero);
      }
    }
  }
  // x in the order of what unpack makes.
  template <int kBits>
  FASTQ_HD static void order(uint32_t* x) {
    if constexpr (kBits < 8) {
#pragma unroll
      for (int i = 0; i < 8; i += 2) {
        const uint32_t low = permute(x[i], x[i + 1], 0x5410u), high = permute(x[i], x[i + 1], 0x7632u);
        x[i] = low;
        x[i + 1] = high;
      }
    }
  }

  // What unpack subtracts for the zero t.
  template <int kBits>
  FASTQ_HD static uint32_t zero_of(int32_t t) {
    const float less = float(t + (1 << (kBits - 1)));
    if constexpr (kBits == 8 && kBFloat16)
      return bits_as<uint32_t>(8388608.0f + less);
    else
      return Storage::store((kBFloat16 ? 128.0f : 1024.0f) + less) * 0x00010001u;
  }
};

FASTQ_HD uint32_t added(const DecodeCall& c, uint32_t a, uint32_t b) {
  return c.exact() ? a + b : bits_as<uint32_t>(bits_as<float>(a) + bits_as<float>(b));
}

FASTQ_HD float x_scale_of(const GemmCall& g, int64_t m) {
  return g.x_scale == nullptr ? 1.0f : g.x_scale[m * g.x_scale_step];
}

FASTQ_HD float load_as(Stored type, const void* p, int64_t at) {
  switch (type) {
    case Stored::bf16: return BFloat16Storage::load(static_cast<const uint16_t*>(p)[at]);
    case Stored::f16: return Float16Storage::load(static_cast<const uint16_t*>(p)[at]);
    default: return static_cast<const float*>(p)[at];
  }
}

// From a sum over K to the output.
FASTQ_HD void finish(const DecodeCall& c, int m, int64_t n, uint32_t sum) {
  const GemmCall& g = c.gemm;
  const int64_t at = m * g.n + n;
  float y = bits_as<float>(sum);
  if (c.exact()) {
    const int32_t acc = corrected(sum, 0, 0, c.gemm.x_zero, c.gemm.x_zero == 0 ? 0 : g.sums[n]);
    if (g.out_type == Stored::i32) {
      static_cast<int32_t*>(g.out)[at] = acc;
      return;
    }
    y = scaled(float(acc), x_scale_of(g, m), g.scale[n * g.scale_step]);
  }
  const EpilogueParts parts = g.parts();
  y = finished(y, parts, parts.bias ? g.bias[n] : 0.0f, parts.multiplier ? g.multiplier[n] : 0.0f,
               parts.addend ? g.addend[n] : 0.0f, parts.residual ? load_as(g.residual_type, g.residual, at) : 0.0f);
  switch (g.out_type) {
    case Stored::f32: static_cast<float*>(g.out)[at] = y; return;
    case Stored::bf16: static_cast<uint16_t*>(g.out)[at] = BFloat16Storage::store(y); return;
    case Stored::f16: static_cast<uint16_t*>(g.out)[at] = Float16Storage::store(y); return;
    default: {
      const float code = code_of(y, *g.out_scale, float(g.low - g.out_zero), float(g.high - g.out_zero));
      static_cast<uint8_t*>(g.out)[at] = uint8_t(int32_t(code) + g.out_zero);
    }
  }
}

// M <= 16 rows of x, of type X, times W of kBits bits.
template <class X, int kBits>
struct Decode {
  using Job = DecodeCall;
  using D = typename X::D;
  static constexpr int kThreads = kDecodeWarps * kWarp;
  static constexpr int kBlocksPerSM = 2;
  static constexpr int kFields = 8 / kBits;
  static constexpr int kAhead = 3;
  static constexpr int kSteps = X::kWords / 2;  // products of 64 elements

  // Sums of the warps: float32 or int32, for every row of x the block's 16 rows of the weight.
  struct Shared {
    uint32_t part[kDecodeWarps][kDecodeMost * kDecodeRows];
  };

  struct Registers {
    const uint8_t* row[2];   // rows g and g + 8 of the weight, where the lane's 16 bytes of a tile begin
    const uint8_t* from[2];  // rows g and g + 8 of x, the columns of two products, from element 16t on
    Words packed[kAhead][2];
    uint32_t a[kSteps][4], b[2][X::kWords];
    uint32_t zero[2];  // what unpack subtracts
    D d[2][4];         // of the group so far, of rows 0 to 7 and 8 to 15 of x
    D total[2][4];     // sum of x beside them, where integers have zeros
    float y[2][4];
  };

  // The rows of the weight and of x of a lane's d[j][i].
  FASTQ_HD static int64_t weight_row(const Job& c, int64_t first, int lane, int i) {
    return smaller(first + lane / 4 + i / 2 * 8, c.gemm.n - 1);
  }
  FASTQ_HD static int x_row(int lane, int j, int i) { return 8 * j + lane % 4 * 2 + i % 2; }

  FASTQ_HD static void load_tile(Registers& r, int slot, int tile) {
#pragma unroll
    for (int h = 0; h < 2; ++h) r.packed[slot][h] = load_once(r.row[h] + int64_t(tile) * kTileBytes);
  }

  // The operands of products with 8 or 16 rows of x: the elements from `start` on.
  template <int kColumns>
  FASTQ_HD static void load_operands(Registers& r, int slot, int field, int start) {
#pragma unroll
    for (int j = 0; j < kColumns; ++j) {
#pragma unroll
      for (int i = 0; i < X::kWords; i += 4) {
        const Words words = load_shared(r.from[j] + int64_t(start) * X::kSize + 4 * i);
#pragma unroll
        for (int e = 0; e < 4; ++e) r.b[j][i + e] = words.word[e];
      }
      X::template order<kBits>(r.b[j]);
    }
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      uint32_t words[X::kWords];
      X::template unpack<kBits>(r.packed[slot][h], field, r.zero[h], words);
#pragma unroll
      for (int i = 0; i < X::kWords; ++i) r.a[i / 2][h + i % 2 * 2] = words[i];
    }
  }

  // The sum of (x - x_zero) * (f - t) of integers.
  FASTQ_HD static int32_t accumulator(const Registers& r, int j, int i, int32_t zero, int32_t x_zero, int32_t sums) {
    return corrected(uint32_t(int32_t(r.d[j][i]) >> (8 - kBits)), zero, uint32_t(r.total[j][i % 2]), x_zero, sums);
  }

  // The end of a group: what its sums add to y.
  FASTQ_HD static void end_group(const Job& c, Registers& r, int64_t first, int lane, int group) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int64_t place = weight_row(c, first, lane, 2 * h) * c.gemm.scale_step + group;
      const float scale = c.gemm.scale[place];
      [[maybe_unused]] const int32_t zero = X::kInteger && c.gemm.zero != nullptr ? c.gemm.zero[place] : 0;
      [[maybe_unused]] const int32_t sums = X::kInteger ? c.gemm.sums[place] : 0;
#pragma unroll
      for (int j = 0; j < 2; ++j)
#pragma unroll
        for (int i = 2 * h; i < 2 * h + 2; ++i) {
          if constexpr (X::kInteger) {
            const float acc = float(accumulator(r, j, i, zero, c.gemm.x_zero, sums));
            r.y[j][i] += scaled(acc, x_scale_of(c.gemm, smaller(x_row(lane, j, i), c.m - 1)), scale);
          } else {
            r.y[j][i] += r.d[j][i] * scale;
          }
          r.d[j][i] = 0;
        }
    }
#pragma unroll
    for (int j = 0; j < 2; ++j)
#pragma unroll
      for (int i = 0; i < 4; ++i) r.total[j][i] = 0;
  }

  template <int kColumns>
  FASTQ_HD static void multiply(const Job& c, const Warp& warp, Lanes<Registers>& r) {
    using P = Product<typename X::Element>;
    const uint32_t ones[4] = {in_each_byte(1), in_each_byte(1), in_each_byte(1), in_each_byte(1)};
#pragma unroll
    for (int j = 0; j < kColumns; ++j) {
#pragma unroll
      for (int q = 0; q < kSteps; ++q) {
        P::add(warp, [&](int lane) -> Fragments<D> { return {r[lane].a[q], r[lane].b[j] + 2 * q, r[lane].d[j]}; });
        if constexpr (X::kInteger)
          if (c.gemm.zero != nullptr)
            P::add(warp, [&](int lane) -> Fragments<D> { return {ones, r[lane].b[j] + 2 * q, r[lane].total[j]}; });
      }
    }
  }

  // The group that the warp is in, and where it ends.
  struct Held {
    int group, end;
  };

  FASTQ_HD static void next_group(const Job& c, const Warp& warp, Lanes<Registers>& r, int64_t first, Held& held,
                                  int group) {
    warp.each([&](int lane) {
      Registers& own = r[lane];
      if (held.group >= 0) end_group(c, own, first, lane, held.group);
      if constexpr (!X::kInteger) {
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          const int64_t place = weight_row(c, first, lane, 2 * h) * c.gemm.scale_step + group;
          own.zero[h] = X::template zero_of<kBits>(c.gemm.zero == nullptr ? 0 : c.gemm.zero[place]);
        }
      }
    });
    held = {group, c.end_of(group)};
  }

  // A tile in which groups end: 64 elements at a time, for each group among them.
  FASTQ_HD static void part_tile(const Job& c, const Warp& warp, Lanes<Registers>& r, int64_t first, int slot, int tile,
                                 Held& held) {
#pragma unroll
    for (int field = 0; field < kFields; ++field) {
      const int start = (tile * kFields + field) * kHalf, last = c.group_of(start + kHalf - 1);
      for (int group = c.group_of(start); group <= last; ++group) {
        if (group != held.group) next_group(c, warp, r, first, held, group);
        warp.each([&](int lane) {
          Registers& own = r[lane];
          load_operands<2>(own, slot, field, start);
          const bool member = c.group_of(start + lane % 4 * kQuarter) == group;
#pragma unroll
          for (int j = 0; j < 2; ++j)
#pragma unroll
            for (int i = 0; i < X::kWords; ++i) own.b[j][i] = member ? own.b[j][i] : 0u;
        });
        multiply<2>(c, warp, r);
      }
    }
  }

  template <int kColumns>
  FASTQ_HD static void whole_tile(const Job& c, const Warp& warp, Lanes<Registers>& r, int slot, int start) {
#pragma unroll
    for (int field = 0; field < kFields; ++field) {
      warp.each([&](int lane) { load_operands<kColumns>(r[lane], slot, field, start + field * kHalf); });
      multiply<kColumns>(c, warp, r);
    }
  }

  FASTQ_HD static void sums_of(const Job& c, const Warp& warp, Shared& shared, int64_t first, int split) {
    const int64_t parts = int64_t(c.splits) * kDecodeWarps, part = int64_t(split) * kDecodeWarps + warp.index;
    const int begin = c.begin_of(part, parts), end = c.begin_of(part + 1, parts);
    Lanes<Registers> r;
    warp.each([&](int lane) {
      Registers& own = r[lane];
#pragma unroll
      for (int j = 0; j < 2; ++j)
#pragma unroll
        for (int i = 0; i < 4; ++i) own.d[j][i] = own.total[j][i] = 0, own.y[j][i] = 0;
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        own.row[h] = c.gemm.weight + weight_row(c, first, lane, 2 * h) * c.gemm.row_bytes + lane % 4 * 16;
        // Rows that x does not have are another's: nobody looks at their sums.
        const int64_t m = smaller(8 * h + lane / 4, c.m - 1);
        own.from[h] = c.x + (m * c.k + lane % 4 * kQuarter) * X::kSize;
      }
#pragma unroll
      for (int u = 0; u < kAhead; ++u)
        if (begin + u < end) load_tile(own, u, begin + u);
    });
    Held held = {-1, 0};
    for (int tile = begin; tile < end; tile += kAhead) {
#pragma unroll
      for (int u = 0; u < kAhead; ++u) {
        if (tile + u >= end) break;
        const int start = (tile + u) * kFields * kHalf;
        if (start >= held.end) next_group(c, warp, r, first, held, c.group_of(start));
        if (start + kFields * kHalf > held.end)
          part_tile(c, warp, r, first, u, tile + u, held);
        else if (c.m > 8)
          whole_tile<2>(c, warp, r, u, start);
        else
          whole_tile<1>(c, warp, r, u, start);
        warp.each([&](int lane) {
          if (tile + u + kAhead < end) load_tile(r[lane], u, tile + u + kAhead);
        });
      }
    }
    warp.each([&](int lane) {
      Registers& own = r[lane];
      if (held.group >= 0 && !c.exact()) end_group(c, own, first, lane, held.group);
#pragma unroll
      for (int j = 0; j < 2; ++j)
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          uint32_t bits = bits_as<uint32_t>(own.y[j][i]);
          if constexpr (X::kInteger)
            if (c.exact()) {
              const int32_t zero =
                  c.gemm.zero == nullptr ? 0 : c.gemm.zero[weight_row(c, first, lane, i) * c.gemm.scale_step];
              bits = uint32_t(accumulator(own, j, i, zero, 0, 0));
            }
          shared.part[warp.index][x_row(lane, j, i) * kDecodeRows + lane / 4 + i / 2 * 8] = bits;
        }
    });
  }

  template <class Team>
  FASTQ_HD static void run(const Team& team, const Job& c, Shared& shared, int64_t index) {
    const int64_t blocks = (c.gemm.n + kDecodeRows - 1) / kDecodeRows;
    const int64_t first = index % blocks * kDecodeRows;
    const int split = int(index / blocks);
    team.warps([&](const Warp& warp) { sums_of(c, warp, shared, first, split); });
    team.each([&](int thread) {
      const int m = thread / kDecodeRows;
      const int64_t n = first + thread % kDecodeRows;
      if (m >= c.m || n >= c.gemm.n) return;
      uint32_t sum = shared.part[0][thread];
#pragma unroll
      for (int w = 1; w < kDecodeWarps; ++w) sum = added(c, sum, shared.part[w][thread]);
      if (c.splits == 1)
        finish(c, m, n, sum);
      else
        c.workspace[(int64_t(split) * c.m + m) * c.gemm.n + n] = sum;
    });
  }
};

// The sums of the blocks of several parts of K, in their order: one output for a thread.
struct DecodeFinish {
  using Job = DecodeCall;
  struct Shared {};
  static constexpr int kThreads = 128;
  static constexpr int kBlocksPerSM = 8;

  template <class Team>
  FASTQ_HD static void run(const Team& team, const Job& c, Shared&, int64_t index) {
    team.each([&](int thread) {
      const int64_t at = index * kThreads + thread, size = c.m * c.gemm.n;
      if (at >= size) return;
      uint32_t sum = c.workspace[at];
      for (int split = 1; split < c.splits; ++split) sum = added(c, sum, c.workspace[split * size + at]);
      finish(c, int(at / c.gemm.n), at % c.gemm.n, sum);
    });
  }
};

static_assert(kDecodeMost * kDecodeRows == kDecodeWarps * kWarp, "a thread finishes one output");

}  // namespace fastq::cuda
