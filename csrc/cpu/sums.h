// Sums of products of codes, by what the instruction set has for them: AMX tiles, VNNI's dot products of four, or pairs
// of 16 bits. All add modulo 2^32, so that all give the same.
//
// Rows of x are packed: of one row the bytes (or, for pairs, 16-bit numbers) follow one another along K, a multiple of
// 64 of them. The weights of a panel are two blocks of 16 columns as lines of 64 bytes (csrc/methods/packing.h), fields
// of 8 bits with their sign and others without. Sums are [rows][kPanel].
#pragma once

#include "blocks.h"
#include "gemm.h"

namespace fastq {
inline namespace FASTQ_ISA {

typedef int16_t I16 __attribute__((vector_size(FASTQ_VECTOR_BYTES)));

constexpr int kWidth = sizeof(F32) / sizeof(float);
constexpr int64_t kPanel = kGemmColumns;
constexpr int kPanelBlocks = kPanel / kBlockRows;

// Lines of a panel's blocks, one after another; null: there is no second block.
struct Lines {
  const uint8_t* block[kPanelBlocks];
};

// Where a tile of K is in a row of x: one after another, or, where rows are pixels of an image, at the tap's pixel.
struct Depths {
  const int64_t* offset;  // bytes; or null
  int64_t step;           // bytes of a tile

  FASTQ_HD int64_t at(int64_t tile) const { return offset == nullptr ? tile * step : offset[tile]; }
};

// Weights that are wanted next, and how many lines of each block to fetch with every tile of K.
struct Ahead {
  const uint8_t* block[kPanelBlocks];
  int64_t lines, done;
};

#if defined(__AVX512VNNI__)

// One of the factors has no sign: 8-bit weights have one, so x is made unsigned; other weights have none, and x is
// signed.
struct DotProducts {
  static constexpr int kElement = 1;  // bytes of a packed x
  FASTQ_HD static bool x_signed(int bits) { return bits < 8; }

  template <bool kSigned>
  FASTQ_HD static __m512i add(__m512i sum, __m512i w, __m512i x) {
    return kSigned ? _mm512_dpbusd_epi32(sum, x, w) : _mm512_dpbusd_epi32(sum, w, x);
  }
  FASTQ_HD static __m512i broadcast(const uint8_t* x) {
    int32_t word;
    std::memcpy(&word, x, 4);
    return _mm512_set1_epi32(word);
  }

  template <bool kSigned, int kR, int kC>
  FASTQ_HD static void tile(const uint8_t* x, int64_t stride, Depths depths, const Lines& w, int64_t lines, bool fresh,
                            uint32_t* sums) {
    __m512i sum[kR][kC];
    for (int i = 0; i < kR; ++i)
      for (int j = 0; j < kC; ++j)
        sum[i][j] = fresh ? _mm512_setzero_si512() : _mm512_loadu_si512(sums + i * kPanel + j * kBlockRows);
    for (int64_t first = 0; first < lines; first += kBlockRows) {
      const uint8_t* from = x + depths.at(first / kBlockRows);
      const int64_t count = lines - first < kBlockRows ? lines - first : kBlockRows;
      for (int64_t line = 0; line < count; ++line) {
        __m512i of_w[kC];
        for (int j = 0; j < kC; ++j) of_w[j] = _mm512_loadu_si512(w.block[j] + (first + line) * kLineBytes);
        for (int i = 0; i < kR; ++i) {
          const __m512i of_x = broadcast(from + i * stride + line * 4);
          for (int j = 0; j < kC; ++j) sum[i][j] = add<kSigned>(sum[i][j], of_w[j], of_x);
        }
      }
    }
    for (int i = 0; i < kR; ++i)
      for (int j = 0; j < kC; ++j) _mm512_storeu_si512(sums + i * kPanel + j * kBlockRows, sum[i][j]);
  }

  template <bool kSigned, int kR>
  FASTQ_HD static void tiles(const uint8_t* x, int64_t stride, Depths depths, const Lines& w, int64_t lines, bool fresh,
                             uint32_t* sums) {
    if (w.block[1] != nullptr)
      tile<kSigned, kR, 2>(x, stride, depths, w, lines, fresh, sums);
    else
      tile<kSigned, kR, 1>(x, stride, depths, w, lines, fresh, sums);
  }

  template <bool kSigned>
  static void rows(const uint8_t* x, int64_t stride, int64_t m, Depths depths, const Lines& w, int64_t lines,
                   bool fresh, uint32_t* sums) {
    int64_t i = 0;
    for (; i + 12 <= m; i += 12) tiles<kSigned, 12>(x + i * stride, stride, depths, w, lines, fresh, sums + i * kPanel);
    for (; i + 8 <= m; i += 8) tiles<kSigned, 8>(x + i * stride, stride, depths, w, lines, fresh, sums + i * kPanel);
    for (; i + 4 <= m; i += 4) tiles<kSigned, 4>(x + i * stride, stride, depths, w, lines, fresh, sums + i * kPanel);
    for (; i < m; ++i) tiles<kSigned, 1>(x + i * stride, stride, depths, w, lines, fresh, sums + i * kPanel);
  }

  // A few rows and whole tiles of packed weights, whose fields are taken apart in registers.
  static constexpr int kFewRows = 4;
  template <int kBits, int kR, int kC>
  FASTQ_HD static void few(const uint8_t* x, int64_t stride, const Lines& w, int64_t tiles, uint32_t* sums) {
    constexpr int kPlane = kBits == 3 ? 2 : kBits, kIn = 8 / kPlane;
    __m512i sum[kR][kC];
    for (int i = 0; i < kR; ++i)
      for (int j = 0; j < kC; ++j) sum[i][j] = _mm512_setzero_si512();
    const __m512i mask = _mm512_set1_epi8(char((1 << kPlane) - 1)), four = _mm512_set1_epi8(4);
    for (int64_t t = 0; t < tiles; ++t)
      for (int group = 0; group < kBlockRows / kIn; ++group)
        for (int j = 0; j < kC; ++j) {
          const uint8_t* tile = w.block[j] + t * block_tile_bytes(kBits);
          const __m512i v = _mm512_loadu_si512(tile + group * kLineBytes);
          __m512i third = v;
          if constexpr (kBits == 3)
            third = _mm512_loadu_si512(tile + (kBlockRows / kIn + group * kIn / 8) * kLineBytes);
          _mm_prefetch(reinterpret_cast<const char*>(tile + group * kLineBytes + kAhead), _MM_HINT_T0);
          for (int l = 0; l < kIn; ++l) {
            const int line = group * kIn + l;
            __m512i field = v;
            if constexpr (kBits < 8)
              field = _mm512_and_si512(l == 0 ? v : _mm512_srli_epi16(v, unsigned(l * kPlane)), mask);
            if constexpr (kBits == 3) {
              const int at = line % 8;
              const __m512i moved = at > 2   ? _mm512_srli_epi16(third, unsigned(at - 2))
                                    : at < 2 ? _mm512_slli_epi16(third, unsigned(2 - at))
                                             : third;
              field = _mm512_or_si512(field, _mm512_and_si512(moved, four));
            }
            for (int i = 0; i < kR; ++i)
              sum[i][j] = add<kBits == 8>(sum[i][j], field, broadcast(x + i * stride + t * kBlockDepth + line * 4));
          }
        }
    for (int i = 0; i < kR; ++i)
      for (int j = 0; j < kC; ++j) _mm512_storeu_si512(sums + i * kPanel + j * kBlockRows, sum[i][j]);
  }
  static constexpr int64_t kAhead = 2048;  // bytes

  template <int kBits, int kR>
  FASTQ_HD static void few_columns(const uint8_t* x, int64_t stride, const Lines& w, int64_t tiles, uint32_t* sums) {
    if (w.block[1] != nullptr)
      few<kBits, kR, 2>(x, stride, w, tiles, sums);
    else
      few<kBits, kR, 1>(x, stride, w, tiles, sums);
  }
  template <int kBits>
  static void few_rows(const uint8_t* x, int64_t stride, int64_t m, const Lines& w, int64_t tiles, uint32_t* sums) {
    switch (m) {
      case 1: return few_columns<kBits, 1>(x, stride, w, tiles, sums);
      case 2: return few_columns<kBits, 2>(x, stride, w, tiles, sums);
      case 3: return few_columns<kBits, 3>(x, stride, w, tiles, sums);
      default: return few_columns<kBits, 4>(x, stride, w, tiles, sums);
    }
  }
  static void multiply_few(int bits, const uint8_t* x, int64_t stride, int64_t m, const Lines& w, int64_t tiles,
                           uint32_t* sums) {
    switch (bits) {
      case 2: return few_rows<2>(x, stride, m, w, tiles, sums);
      case 3: return few_rows<3>(x, stride, m, w, tiles, sums);
      case 4: return few_rows<4>(x, stride, m, w, tiles, sums);
      default: return few_rows<8>(x, stride, m, w, tiles, sums);
    }
  }
};

#else

// Pairs of 16 bits: of four neighbours in K the even ones and then the odd ones, as the bytes of a line fall apart.
struct Pairs {
  static constexpr int kElement = 2;
  static constexpr int kVectors = kBlockRows / kWidth;  // of a block's columns
  FASTQ_HD static bool x_signed(int) { return true; }

  // In lane i the sum of the products of elements 2i and 2i + 1.
  FASTQ_HD static U32 products(I16 a, I16 b) {
#if FASTQ_VECTOR_BYTES == 64
    return U32(_mm512_madd_epi16(__m512i(a), __m512i(b)));
#elif FASTQ_VECTOR_BYTES == 32
    return U32(_mm256_madd_epi16(__m256i(a), __m256i(b)));
#elif defined(FASTQ_SSE)
    return U32(_mm_madd_epi16(__m128i(a), __m128i(b)));
#else
    const I32 of_a = I32(a), of_b = I32(b);
    return U32(((I32(U32(a) << 16) >> 16) * (I32(U32(b) << 16) >> 16)) + (of_a >> 16) * (of_b >> 16));
#endif
  }
  FASTQ_HD static I16 broadcast(const uint8_t* x) {
    uint32_t word;
    std::memcpy(&word, x, 4);
    return I16(U32{} + word);
  }

  template <bool kSigned, int kR>
  FASTQ_HD static void tile(const uint8_t* x, int64_t stride, Depths depths, const uint8_t* w, int64_t lines,
                            bool fresh, uint32_t* sums) {
    U32 sum[kR][kVectors];
    for (int i = 0; i < kR; ++i)
      for (int j = 0; j < kVectors; ++j) sum[i][j] = fresh ? U32{} : load_bits<U32>(sums + i * kPanel + j * kWidth);
    for (int64_t first = 0; first < lines; first += kBlockRows) {
      const uint8_t* from = x + depths.at(first / kBlockRows);
      const int64_t count = lines - first < kBlockRows ? lines - first : kBlockRows;
      for (int64_t line = 0; line < count; ++line)
        for (int j = 0; j < kVectors; ++j) {
          const U16Whole bytes = load_bits<U16Whole>(w + (first + line) * kLineBytes + j * FASTQ_VECTOR_BYTES);
          const I16 even = kSigned ? I16(bytes << 8) >> 8 : I16(bytes & 0xff);
          const I16 odd = kSigned ? I16(bytes) >> 8 : I16(bytes >> 8);
          for (int i = 0; i < kR; ++i) {
            const uint8_t* of_x = from + i * stride + line * 8;
            sum[i][j] += products(even, broadcast(of_x));
            sum[i][j] += products(odd, broadcast(of_x + 4));
          }
        }
    }
    for (int i = 0; i < kR; ++i)
      for (int j = 0; j < kVectors; ++j) store_bits(sums + i * kPanel + j * kWidth, sum[i][j]);
  }
  typedef uint16_t U16Whole __attribute__((vector_size(FASTQ_VECTOR_BYTES)));

  template <bool kSigned>
  static void rows(const uint8_t* x, int64_t stride, int64_t m, Depths depths, const Lines& w, int64_t lines,
                   bool fresh, uint32_t* sums) {
    for (int j = 0; j < kPanelBlocks && w.block[j] != nullptr; ++j) {
      int64_t i = 0;
      uint32_t* to = sums + j * kBlockRows;
      for (; i + 4 <= m; i += 4)
        tile<kSigned, 4>(x + i * stride, stride, depths, w.block[j], lines, fresh, to + i * kPanel);
      for (; i < m; ++i) tile<kSigned, 1>(x + i * stride, stride, depths, w.block[j], lines, fresh, to + i * kPanel);
    }
  }
};

#endif

#if defined(__AMX_INT8__)

// The compiler's tile instructions do not say which memory they read: what is stored stays before them.
FASTQ_HD void before_tiles() {
  asm volatile("" ::: "memory");
}

// The tile registers as every product here wants them: 16 rows of 64 bytes. What was set before is set again, for other
// libraries may rely on it.
struct TileState {
  struct alignas(64) Configuration {
    uint8_t palette, start;
    uint8_t reserved[14];
    uint16_t bytes[16];
    uint8_t rows[16];
  };
  Configuration before;

  TileState() {
    Configuration c = {};
    c.palette = 1;
    for (int i = 0; i < 8; ++i) c.bytes[i] = 64, c.rows[i] = 16;
    _tile_storeconfig(&before);
    before_tiles();
    _tile_loadconfig(&c);
  }
  ~TileState() {
    if (before.palette == 0)
      _tile_release();
    else
      _tile_loadconfig(&before);
  }
};

// Tiles 0 to 3: sums of 32 bits, of one or two blocks of columns and as many of 16 rows.
constexpr int kTileRows = 16;

template <bool kRows, bool kColumns>
struct TileSums {
  static constexpr int64_t kBytes = kPanel * 4, kLower = kTileRows * kPanel;

  template <class T>
  FASTQ_HD static void begin(const T* sums, bool fresh) {
    if (fresh) {
      _tile_zero(0);
      if (kColumns) _tile_zero(1);
      if (kRows) _tile_zero(2);
      if (kRows && kColumns) _tile_zero(3);
    } else {
      _tile_loadd(0, sums, kBytes);
      if (kColumns) _tile_loadd(1, sums + kBlockRows, kBytes);
      if (kRows) _tile_loadd(2, sums + kLower, kBytes);
      if (kRows && kColumns) _tile_loadd(3, sums + kLower + kBlockRows, kBytes);
    }
  }
  template <class T>
  FASTQ_HD static void end(T* sums) {
    _tile_stored(0, sums, kBytes);
    if (kColumns) _tile_stored(1, sums + kBlockRows, kBytes);
    if (kRows) _tile_stored(2, sums + kLower, kBytes);
    if (kRows && kColumns) _tile_stored(3, sums + kLower + kBlockRows, kBytes);
  }
};

// Ahead's lines, some with each of `depth` tiles of K.
struct Fetching {
  const uint8_t* const first;
  const uint8_t* const second;
  const int64_t lines;
  int64_t at;

  FASTQ_HD Fetching(Ahead& ahead, int64_t depth)
      : first(ahead.block[0]), second(ahead.block[1]), lines(ahead.lines), at(ahead.done) {
    ahead.done += depth * lines * kLineBytes;
  }
  FASTQ_HD void some(bool both) {
    for (int64_t i = 0; i < lines; ++i, at += kLineBytes) {
      _mm_prefetch(reinterpret_cast<const char*>(first + at), _MM_HINT_T0);
      if (both) _mm_prefetch(reinterpret_cast<const char*>(second + at), _MM_HINT_T0);
    }
  }
};

// Tiles 0 to 3 are sums, 4 and 5 x, 6 and 7 weights.
struct Tiles {
  template <bool kSigned>
  FASTQ_HD static void four(bool second_row, bool second_column) {
    if constexpr (kSigned) {
      _tile_dpbssd(0, 4, 6);
      if (second_column) _tile_dpbssd(1, 4, 7);
      if (second_row) _tile_dpbssd(2, 5, 6);
      if (second_row && second_column) _tile_dpbssd(3, 5, 7);
    } else {
      _tile_dpbsud(0, 4, 6);
      if (second_column) _tile_dpbsud(1, 4, 7);
      if (second_row) _tile_dpbsud(2, 5, 6);
      if (second_row && second_column) _tile_dpbsud(3, 5, 7);
    }
  }

  // Up to 32 rows, of which whole tiles are read.
  template <bool kSigned, bool kRows, bool kColumns>
  FASTQ_HD static void tile(const uint8_t* x, int64_t stride, Depths depths, const Lines& w, int64_t depth, bool fresh,
                            uint32_t* sums, Ahead& ahead) {
    before_tiles();
    TileSums<kRows, kColumns>::begin(sums, fresh);
    Fetching fetching(ahead, depth);
    for (int64_t t = 0; t < depth; ++t) {
      const uint8_t* from = x + depths.at(t);
      _tile_loadd(6, w.block[0] + t * kTileSize, kLineBytes);
      _tile_loadd(4, from, stride);
      if (kColumns) _tile_loadd(7, w.block[1] + t * kTileSize, kLineBytes);
      if (kRows) _tile_loadd(5, from + kTileRows * stride, stride);
      fetching.some(kColumns);
      four<kSigned>(kRows, kColumns);
    }
    TileSums<kRows, kColumns>::end(sums);
  }

  template <bool kSigned, bool kColumns>
  static void rows(const uint8_t* x, int64_t stride, int64_t m, Depths depths, const Lines& w, int64_t depth,
                   bool fresh, uint32_t* sums, Ahead& ahead) {
    for (int64_t i = 0; i < m; i += 2 * kTileRows)
      if (m - i > kTileRows)
        tile<kSigned, true, kColumns>(x + i * stride, stride, depths, w, depth, fresh, sums + i * kPanel, ahead);
      else
        tile<kSigned, false, kColumns>(x + i * stride, stride, depths, w, depth, fresh, sums + i * kPanel, ahead);
  }

  // `depth` tiles of K.
  static void multiply(int bits, const uint8_t* x, int64_t stride, int64_t m, Depths depths, const Lines& w,
                       int64_t depth, bool fresh, uint32_t* sums, Ahead& ahead) {
    const bool two = w.block[1] != nullptr;
    if (bits == 8)
      return two ? rows<true, true>(x, stride, m, depths, w, depth, fresh, sums, ahead)
                 : rows<true, false>(x, stride, m, depths, w, depth, fresh, sums, ahead);
    return two ? rows<false, true>(x, stride, m, depths, w, depth, fresh, sums, ahead)
               : rows<false, false>(x, stride, m, depths, w, depth, fresh, sums, ahead);
  }
};

#endif

}  // namespace FASTQ_ISA
}  // namespace fastq
