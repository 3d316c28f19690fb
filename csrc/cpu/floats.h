// Sums of products of floating point inputs and packed weights, accumulated in fp32.
//
// With FMA, in the order of K: rows of x are packed as fp32, and a panel's weights become fp32 too, f - t, [K][kPanel].
// With bfloat16: see BFloat16Sums.
#pragma once

#include "sums.h"

namespace fastq {
inline namespace FASTQ_ISA {

struct FloatSums {
  static constexpr int64_t kStep = 128;                                               // elements of K at a time
  static constexpr int kVectors = kPanel / kWidth;                                    // of a panel's columns
  static constexpr int kRows = FASTQ_VECTOR_BYTES == 64 ? 8 : kVectors == 4 ? 2 : 1;  // that registers suffice for

  FASTQ_HD static F32 add(F32 sum, F32 a, F32 b) {
#if FASTQ_VECTOR_BYTES == 64
    return F32(_mm512_fmadd_ps(__m512(a), __m512(b), __m512(sum)));
#elif FASTQ_VECTOR_BYTES == 32
    return F32(_mm256_fmadd_ps(__m256(a), __m256(b), __m256(sum)));
#else
    return sum + a * b;
#endif
  }

  // A block's lines, bytes, from some element of K on, less `zero` for each column.
  FASTQ_HD static void weights(const uint8_t* lines, bool with_sign, int64_t count, const int32_t* zero, float* to) {
    for (int64_t k = 0; k < count; k += 4)
      for (int j = 0; j < kBlockRows; j += kWidth) {
        const U32 four = load_bits<U32>(lines + k / 4 * kLineBytes + j * 4);
        const I32 of_zero = load_bits<I32>(zero + j);
        for (int i = 0; i < 4; ++i) {
          const I32 field = with_sign ? I32(four << (24 - 8 * i)) >> 24 : I32((four >> (8 * i)) & 0xffu);
          store_bits(to + (k + i) * kPanel + j, __builtin_convertvector(field - of_zero, F32));
        }
      }
  }

  template <int kR>
  FASTQ_HD static void tile(const float* x, int64_t stride, const float* w, int64_t count, bool fresh, float* sums) {
    F32 sum[kR][kVectors];
    for (int i = 0; i < kR; ++i)
      for (int j = 0; j < kVectors; ++j) sum[i][j] = fresh ? F32{} : load_bits<F32>(sums + i * kPanel + j * kWidth);
    for (int64_t k = 0; k < count; ++k) {
      F32 of_w[kVectors];
      for (int j = 0; j < kVectors; ++j) of_w[j] = load_bits<F32>(w + k * kPanel + j * kWidth);
      for (int i = 0; i < kR; ++i) {
        const F32 of_x = splat<F32>(x[i * stride + k]);
        for (int j = 0; j < kVectors; ++j) sum[i][j] = add(sum[i][j], of_x, of_w[j]);
      }
    }
    for (int i = 0; i < kR; ++i)
      for (int j = 0; j < kVectors; ++j) store_bits(sums + i * kPanel + j * kWidth, sum[i][j]);
  }

  static void multiply(const float* x, int64_t stride, int64_t m, const float* w, int64_t count, bool fresh,
                       float* sums) {
    int64_t i = 0;
    for (; i + kRows <= m; i += kRows) tile<kRows>(x + i * stride, stride, w, count, fresh, sums + i * kPanel);
    for (; i < m; ++i) tile<1>(x + i * stride, stride, w, count, fresh, sums + i * kPanel);
  }
};

#if FASTQ_VECTOR_BYTES == 64

// Whole numbers from -16 to 15 in bfloat16, by their lowest five bits.
struct WholeNumbers {
  alignas(64) uint16_t of[32];
  constexpr WholeNumbers() : of{} {
    for (int i = 0; i < 32; ++i) of[i] = uint16_t(__builtin_bit_cast(uint32_t, float(i < 16 ? i : i - 32)) >> 16);
  }
};
constexpr WholeNumbers kWholeNumbers{};

// From a block's lines of bytes to f - t in bfloat16, which has whole numbers of up to 8 bits: of four neighbours in K
// one line has the first and the third, the next one the others, for so 16 bits at a time find them.
template <int kBits>
struct BFloat16Weights {
  static constexpr int kPlane = kBits == 3 ? 2 : kBits, kIn = 8 / kPlane;  // lines that share a byte
  static constexpr int kHalf = kBlockRows / 2 / kIn;                       // packed lines of half a tile
  __m512i table;
  __m512i zero;  // in each byte of a column's four; of 8 bits 2^23 + 128 + zero, a float

  FASTQ_HD explicit BFloat16Weights(const int32_t* of) : table(_mm512_load_si512(kWholeNumbers.of)) {
    const I32 zeros = load_bits<I32>(of);
    if constexpr (kBits == 8)
      zero = __m512i(__builtin_convertvector(zeros + ((1 << 23) + 128), F32));
    else
      zero = __m512i((zeros & 0xff) * 0x01010101);
  }

  // Bytes 0 or 1 and 2 or 3 of the columns, without their signs.
  FASTQ_HD __m512i numbers(__m512i bytes, int shift) const {
    const __m512i whole = _mm512_set1_epi32(0x4b000000), mask = _mm512_set1_epi32(0xff);  // 2^23
    const auto number = [&](int at) {
      const __m512i word = at == 0 ? bytes : _mm512_srli_epi32(bytes, unsigned(at));
      const __m512i bits = _mm512_ternarylogic_epi32(word, mask, whole, 0xea);  // (word & mask) | whole
      return _mm512_castps_si512(_mm512_sub_ps(_mm512_castsi512_ps(bits), _mm512_castsi512_ps(zero)));
    };
    return _mm512_or_si512(_mm512_srli_epi32(number(shift), 16), number(shift + 16));
  }

  // `body(line, numbers, numbers)` for the lines of half a tile.
  template <class Body>
  FASTQ_HD void each(const uint8_t* tile, int64_t half, const Body& body) const {
    const __m512i mask = _mm512_set1_epi8(char((1 << kPlane) - 1)), four = _mm512_set1_epi8(4);
    __m512i third = mask;
    if constexpr (kBits == 3) third = _mm512_loadu_si512(tile + (kBlockRows / kIn + half) * kLineBytes);
#pragma GCC unroll 8
    for (int packed = 0; packed < kHalf; ++packed) {
      const __m512i v = _mm512_loadu_si512(tile + (half * kHalf + packed) * kLineBytes);
#pragma GCC unroll 4
      for (int l = 0; l < kIn; ++l) {
        const int line = packed * kIn + l;
        if constexpr (kBits == 8) {
          const __m512i bytes = _mm512_xor_si512(v, _mm512_set1_epi8(char(0x80)));
          body(line, numbers(bytes, 0), numbers(bytes, 8));
        } else {
          __m512i field = _mm512_and_si512(l == 0 ? v : _mm512_srli_epi16(v, unsigned(l * kPlane)), mask);
          if constexpr (kBits == 3) {
            const __m512i moved = line > 2   ? _mm512_srli_epi16(third, unsigned(line - 2))
                                  : line < 2 ? _mm512_slli_epi16(third, unsigned(2 - line))
                                             : third;
            field = _mm512_or_si512(field, _mm512_and_si512(moved, four));
          }
          field = _mm512_sub_epi8(field, zero);
          body(line, _mm512_permutexvar_epi16(field, table),
               _mm512_permutexvar_epi16(_mm512_srli_epi16(field, 8), table));
        }
      }
    }
  }
};

// A few rows, packed as fp32, whose weights become numbers in registers.
struct FewRows {
#if defined(__AMX_BF16__)
  static constexpr int kRows = 1;  // tiles take more
#else
  static constexpr int kRows = 4;
#endif
  static constexpr int64_t kDepth = 32;    // groups of K begin with that many elements, x has zeros up to as many
  static constexpr int64_t kAhead = 2048;  // bytes

  // Elements [first, first + 32 * depth) of a block's K. An addition waits for the one before it: each neighbour in K
  // has sums of its own.
  template <int kBits, int kR>
  static void block(const float* x, int64_t stride, const uint8_t* block, int64_t first, int64_t depth,
                    const int32_t* zero, float* sums) {
    constexpr int64_t kHalf = block_tile_bytes(kBits) / 2;
    const BFloat16Weights<kBits> weights(zero);
    __m512 sum[kR][4];
    for (int i = 0; i < kR; ++i)
      for (int j = 0; j < 4; ++j) sum[i][j] = _mm512_setzero_ps();
    for (int64_t t = first / kDepth; t < first / kDepth + depth; ++t, x += kDepth) {
      const uint8_t* from = block + t / 2 * block_tile_bytes(kBits);
      for (int64_t at = 0; at < kHalf; at += kLineBytes)
        _mm_prefetch(reinterpret_cast<const char*>(from + t % 2 * kHalf + at + kAhead), _MM_HINT_T0);
      weights.each(from, t % 2, [&](int line, __m512i a, __m512i b) {
        const __m512i pairs[] = {a, b};
        for (int j = 0; j < 4; ++j) {
          const __m512i bits = j < 2 ? _mm512_slli_epi32(pairs[j % 2], 16)
                                     : _mm512_and_si512(pairs[j % 2], _mm512_set1_epi32(int32_t(0xffff0000)));
          for (int i = 0; i < kR; ++i)
            sum[i][j] =
                _mm512_fmadd_ps(_mm512_castsi512_ps(bits), _mm512_set1_ps(x[i * stride + line * 4 + j]), sum[i][j]);
        }
      });
    }
    for (int i = 0; i < kR; ++i)
      _mm512_storeu_ps(sums + i * kPanel,
                       _mm512_add_ps(_mm512_add_ps(sum[i][0], sum[i][1]), _mm512_add_ps(sum[i][2], sum[i][3])));
  }

  template <int kBits>
  static void rows(const float* x, int64_t stride, int64_t m, const uint8_t* from, int64_t first, int64_t depth,
                   const int32_t* zero, float* sums) {
#if !defined(__AMX_BF16__)
    if (m == 4) return block<kBits, 4>(x, stride, from, first, depth, zero, sums);
    if (m == 3) return block<kBits, 3>(x, stride, from, first, depth, zero, sums);
    if (m == 2) return block<kBits, 2>(x, stride, from, first, depth, zero, sums);
#endif
    (void)m;
    block<kBits, 1>(x, stride, from, first, depth, zero, sums);
  }
  static void multiply(int bits, const float* x, int64_t stride, int64_t m, const uint8_t* from, int64_t first,
                       int64_t depth, const int32_t* zero, float* sums) {
    switch (bits) {
      case 2: return rows<2>(x, stride, m, from, first, depth, zero, sums);
      case 3: return rows<3>(x, stride, m, from, first, depth, zero, sums);
      case 4: return rows<4>(x, stride, m, from, first, depth, zero, sums);
      default: return rows<8>(x, stride, m, from, first, depth, zero, sums);
    }
  }
};

#endif

#if defined(__AMX_BF16__)

// Products of bfloat16 numbers, which fp32 holds exactly: f - t is one, and x the sum of a few. Numbers below 2^-126,
// and sums, count as 0.
//
// Rows of x are packed as [K / 32][terms][32], in the order of the weights, a panel's weights as tiles of 16 lines,
// [K / 32][line][column][2].
struct BFloat16Sums {
  static constexpr int64_t kDepth = 32;  // of a tile
  static constexpr int64_t kStep = 256;  // elements of K at a time
  static constexpr int64_t kBlockBytes = kStep / kDepth * kTileSize;

  FASTQ_HD static constexpr int terms(Stored type) { return type == Stored::bf16 ? 1 : type == Stored::f16 ? 2 : 3; }

  // Of elements of K from the beginning of a tile on.
  FASTQ_HD static constexpr int64_t tiles(int64_t count) { return (count + kDepth - 1) / kDepth; }

  // What is left of x after its first term: nothing of infinities and NaN.
  FASTQ_HD static __m512 rest(__m512 x) {
    const __m512i bits = _mm512_castps_si512(x);
    const __m512i first = _mm512_and_si512(bits, _mm512_set1_epi32(int32_t(0xffff0000)));
    const __mmask16 finite = _mm512_cmp_ps_mask(_mm512_abs_ps(x), _mm512_set1_ps(__builtin_inff()), _CMP_LT_OQ);
    return _mm512_maskz_sub_ps(finite, x, _mm512_castsi512_ps(first));
  }
  // A NaN that its upper half shows.
  FASTQ_HD static __m512 quiet(__m512 x) {
    const __m512i bits = _mm512_castps_si512(x);
    return _mm512_castsi512_ps(
        _mm512_mask_or_epi32(bits, _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q), bits, _mm512_set1_epi32(0x400000)));
  }

  // A row of `depth` numbers, which is at its own end: fp32, or bfloat16 of one term.
  template <int kTerms>
  static void split(int64_t depth, uint8_t* row) {
    static constexpr uint64_t kOrder = 0x0706'0302'0504'0100;  // of the bytes of four
    const __m512i swapped = _mm512_set_epi64(
        int64_t(kOrder + 0x0808080808080808), int64_t(kOrder), int64_t(kOrder + 0x0808080808080808), int64_t(kOrder),
        int64_t(kOrder + 0x0808080808080808), int64_t(kOrder), int64_t(kOrder + 0x0808080808080808), int64_t(kOrder));
    if constexpr (kTerms == 1) {
      for (int64_t i = 0; i < depth; i += kDepth, row += kLineBytes)
        _mm512_storeu_si512(row, _mm512_shuffle_epi8(_mm512_loadu_si512(row), swapped));
    } else {
      static constexpr uint16_t kUpper[] = {1,  3,  5,  7,  9,  11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31,
                                            33, 35, 37, 39, 41, 43, 45, 47, 49, 51, 53, 55, 57, 59, 61, 63};
      const __m512i upper = _mm512_shuffle_epi8(_mm512_loadu_si512(kUpper), swapped);
      const uint8_t* from = row + depth * (2 * kTerms - 4);
      for (int64_t i = 0; i < depth; i += kDepth, from += 2 * kLineBytes) {
        __m512 low = quiet(_mm512_loadu_ps(from)), high = quiet(_mm512_loadu_ps(from + kLineBytes));
        for (int term = 0; term < kTerms; ++term, row += kLineBytes) {
          _mm512_storeu_si512(row,
                              _mm512_permutex2var_epi16(_mm512_castps_si512(low), upper, _mm512_castps_si512(high)));
          low = rest(low), high = rest(high);
        }
      }
    }
  }

  // Elements [first, first + 32 * depth) of a block's K to tiles.
  template <int kBits>
  static void unpack(const uint8_t* block, int64_t first, int64_t depth, const int32_t* zero, uint8_t* to) {
    const BFloat16Weights<kBits> weights(zero);
    for (int64_t t = first / kDepth; t < first / kDepth + depth; ++t, to += kTileSize)
      weights.each(block + t / 2 * block_tile_bytes(kBits), t % 2, [&](int line, __m512i a, __m512i b) {
        _mm512_store_si512(to + 2 * line * kLineBytes, a);
        _mm512_store_si512(to + (2 * line + 1) * kLineBytes, b);
      });
  }
  FASTQ_HD static void unpack(int bits, const uint8_t* block, int64_t first, int64_t depth, const int32_t* zero,
                              uint8_t* to) {
    switch (bits) {
      case 2: return unpack<2>(block, first, depth, zero, to);
      case 3: return unpack<3>(block, first, depth, zero, to);
      case 4: return unpack<4>(block, first, depth, zero, to);
      default: return unpack<8>(block, first, depth, zero, to);
    }
  }

  // Up to 32 rows, of which whole tiles are read. Tiles 0 to 3 are sums, 4 and 5 x, 6 and 7 weights.
  template <int kTerms, bool kRows, bool kColumns>
  FASTQ_HD static void tile(const uint8_t* x, int64_t stride, const uint8_t* w, int64_t depth, bool fresh, float* sums,
                            Ahead& ahead) {
    before_tiles();
    TileSums<kRows, kColumns>::begin(sums, fresh);
    Fetching fetching(ahead, depth);
    for (int64_t t = 0; t < depth; ++t, w += kTileSize) {
      _tile_loadd(6, w, kLineBytes);
      if (kColumns) _tile_loadd(7, w + kBlockBytes, kLineBytes);
      fetching.some(kColumns);
      for (int term = 0; term < kTerms; ++term, x += kLineBytes) {
        _tile_loadd(4, x, stride);
        if (kRows) _tile_loadd(5, x + kTileRows * stride, stride);
        _tile_dpbf16ps(0, 4, 6);
        if (kColumns) _tile_dpbf16ps(1, 4, 7);
        if (kRows) _tile_dpbf16ps(2, 5, 6);
        if (kRows && kColumns) _tile_dpbf16ps(3, 5, 7);
      }
    }
    TileSums<kRows, kColumns>::end(sums);
  }

  // m rows by `depth` tiles of K of one block or of two.
  template <int kTerms, bool kColumns>
  static void multiply(const uint8_t* x, int64_t stride, int64_t m, const uint8_t* w, int64_t depth, bool fresh,
                       float* sums, Ahead& ahead) {
    for (int64_t i = 0; i < m; i += 2 * kTileRows)
      if (m - i > kTileRows)
        tile<kTerms, true, kColumns>(x + i * stride, stride, w, depth, fresh, sums + i * kPanel, ahead);
      else
        tile<kTerms, false, kColumns>(x + i * stride, stride, w, depth, fresh, sums + i * kPanel, ahead);
  }
  template <int kTerms>
  FASTQ_HD static void multiply(const uint8_t* x, int64_t stride, int64_t m, const uint8_t* w, bool two, int64_t depth,
                                bool fresh, float* sums, Ahead& ahead) {
    if (two)
      multiply<kTerms, true>(x, stride, m, w, depth, fresh, sums, ahead);
    else
      multiply<kTerms, false>(x, stride, m, w, depth, fresh, sums, ahead);
  }
};

#endif

}  // namespace FASTQ_ISA
}  // namespace fastq
