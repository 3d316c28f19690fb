// How codes of a weight lie in memory: fastq/packing.py has the layouts.
//
// A field is code - middle as a two's complement number of `bits` bits. `rows`: element k of a row is bits k * bits and
// following of the row's bytes, lowest bit first. `tiles`: byte j of 64 holds the elements j, j + 64, ... of a tile,
// the first in the lowest bits; fields of 3 bits take 4 there, and K is padded with zeros to whole tiles. `blocks`: 16
// rows by 64 elements at a time, in the order in which a CPU multiplies them.
#pragma once

#include "numeric.h"

namespace fastq {
inline namespace FASTQ_ISA {

enum class Layout : int32_t { rows, tiles, blocks };

constexpr int kTileBytes = 64;

// How many bits an element takes.
FASTQ_HD constexpr int field_bits(Layout layout, int bits) {
  return layout == Layout::tiles && bits == 3 ? 4 : bits;
}

// `blocks`: a tile has 16 lines of 64 bytes, byte 4 * i + j of line r being element 4 * r + j of row i: of each row
// four neighbours in K, what one lane of a dot product takes. With 8 bits the bytes are fields; with fewer they are
// field + 2^(bits - 1), and so are numbers without a sign. Of 4 bits, 64 bytes have two lines, the first in the lower
// halves; of 2 bits four. Of 3 bits come the lower two of all lines and then the third ones, eight lines in 64 bytes.
// N and K are padded with fields that are 0.
constexpr int kBlockRows = 16;
constexpr int kBlockDepth = 64;
constexpr int kLineBytes = 64;

FASTQ_HD constexpr int64_t block_tile_bytes(int bits) {
  return kBlockRows * kBlockDepth * bits / 8;
}
// What is added to a field where it is stored without its sign.
FASTQ_HD constexpr int block_middle(int bits) {
  return bits == 8 ? 0 : 1 << (bits - 1);
}

// Elements of a tile.
FASTQ_HD constexpr int tile_elements(int bits) {
  return kTileBytes * (8 / field_bits(Layout::tiles, bits));
}

// How many rows of bytes n rows of elements are.
FASTQ_HD constexpr int64_t stored_rows(Layout layout, int64_t n) {
  return layout == Layout::blocks ? (n + kBlockRows - 1) / kBlockRows : n;
}

// Bytes of a row of k elements; of `blocks` those of 16 rows.
FASTQ_HD constexpr int64_t row_bytes(Layout layout, int bits, int64_t k) {
  if (layout == Layout::blocks) return (k + kBlockDepth - 1) / kBlockDepth * block_tile_bytes(bits);
  if (layout == Layout::tiles) return (k + tile_elements(bits) - 1) / tile_elements(bits) * kTileBytes;
  return (k * bits + 7) / 8;
}

// The lowest `bits` bits of a word as a number.
FASTQ_HD constexpr int32_t sign_extended(uint32_t word, int bits) {
  const uint32_t sign = 1u << (bits - 1), field = word & ((sign << 1) - 1);
  return int32_t(field ^ sign) - int32_t(sign);
}

// Element k of a row. Of the row's bytes only those are read that hold it.
FASTQ_HD int32_t field_at(const uint8_t* row, Layout layout, int bits, int64_t k) {
  if (layout == Layout::tiles) {
    const int width = field_bits(layout, bits), elements = tile_elements(bits);
    const int in_tile = int(k % elements);
    const uint32_t byte = row[k / elements * kTileBytes + in_tile % kTileBytes];
    return sign_extended(byte >> (in_tile / kTileBytes * width), width);
  }
  const int64_t at = k * bits;
  const int shift = int(at % 8);
  uint32_t word = row[at / 8];
  if (shift + bits > 8) word |= uint32_t(row[at / 8 + 1]) << 8;
  return sign_extended(word >> shift, bits);
}

// A number in every byte of a word.
FASTQ_HD constexpr uint32_t in_each_byte(uint32_t value) {
  return value * 0x01010101u;
}

// `tiles`: four neighbours in K out of four neighbouring bytes, as the int8 bytes of a word, the first one lowest. The
// word at byte b (a multiple of 4) of a tile has, at `place`, the elements place * 64 + b to place * 64 + b + 3. kBits
// are field_bits: 2, 4 or 8.
template <int kBits>
FASTQ_HD uint32_t four_fields(uint32_t word, int place) {
  if constexpr (kBits == 8) {
    return word;
  } else {
    constexpr uint32_t kSign = in_each_byte(1u << (kBits - 1)), kHigh = in_each_byte(0x80);
    const uint32_t fields = (word >> (place * kBits)) & in_each_byte((1u << kBits) - 1);
    return ((fields ^ (kSign | kHigh)) - kSign) ^ kHigh;  // the high bits keep borrows within their bytes
  }
}

// The same times 2^(8 - kBits): two operations, and a sum of products is to be divided (shifted, exactly) once.
template <int kBits>
FASTQ_HD uint32_t four_scaled_fields(uint32_t word, int place) {
  constexpr int kUp = 8 - kBits;
  const uint32_t moved = kUp > place * kBits ? word << (kUp - place * kBits) : word >> (place * kBits - kUp);
  return moved & in_each_byte(0xffu & (0xffu << kUp));
}

// `rows`: `count` elements from element `first`, a multiple of 8, each less `zero`, to `to`. Reads no byte that holds
// none of them.
template <int kBits, class T>
FASTQ_HD void unpack_rows(const uint8_t* row, int64_t first, int64_t count, T zero, T* to) {
  const uint8_t* from = row + first * kBits / 8;
  if constexpr (kBits == 8) {
    for (int64_t i = 0; i < count; ++i) to[i] = T(T(int8_t(from[i])) - zero);
    return;
  }
  constexpr int kBytes = kBits == 3 ? 3 : 1, kElements = kBytes * 8 / kBits;
  const int64_t whole = count / kElements;
  for (int64_t j = 0; j < whole; ++j) {
    uint32_t word = from[j * kBytes];
    if constexpr (kBits == 3) word |= uint32_t(from[j * 3 + 1]) << 8 | uint32_t(from[j * 3 + 2]) << 16;
    for (int i = 0; i < kElements; ++i) to[j * kElements + i] = T(T(sign_extended(word >> (i * kBits), kBits)) - zero);
  }
  const int rest = int(count % kElements);
  for (int i = 0; i < rest; ++i)
    to[whole * kElements + i] = T(T(field_at(from + whole * kBytes, Layout::rows, kBits, i)) - zero);
}

template <class T>
FASTQ_HD void unpack_rows(const uint8_t* row, int bits, int64_t first, int64_t count, T zero, T* to) {
  switch (bits) {
    case 2: return unpack_rows<2>(row, first, count, zero, to);
    case 3: return unpack_rows<3>(row, first, count, zero, to);
    case 4: return unpack_rows<4>(row, first, count, zero, to);
    default: return unpack_rows<8>(row, first, count, zero, to);
  }
}

}  // namespace FASTQ_ISA
}  // namespace fastq
