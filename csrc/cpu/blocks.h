// Weights in the layout `blocks` (csrc/methods/packing.h): tiles made of fields, and fields of tiles.
#pragma once

#include "../methods/packing.h"
#include "vector.h"

namespace fastq {
inline namespace FASTQ_ISA {

constexpr int kTileSize = kBlockRows * kBlockDepth;  // bytes of a tile whose fields have a byte each

// Bytes, shifted as pairs: what comes over from a byte's neighbour is masked away.
typedef uint16_t BytePairs __attribute__((vector_size(FASTQ_VECTOR_BYTES)));

FASTQ_HD BytePairs in_bytes(int value) {
  return BytePairs{} + uint16_t(value * 0x0101);
}

// Sixteen lines of bytes, of fewer than 8 bits each, without their signs.
template <int kBits>
FASTQ_HD void unpack_tile(const uint8_t* from, uint8_t* to) {
  constexpr int kPlane = kBits == 3 ? 2 : kBits, kIn = 8 / kPlane;  // lines that share a byte
  for (int line = 0; line < kBlockRows; line += kIn)
    for (int at = 0; at < kLineBytes; at += FASTQ_VECTOR_BYTES) {
      const BytePairs v = load_bits<BytePairs>(from + line / kIn * kLineBytes + at);
      BytePairs third = {};
      if constexpr (kBits == 3)
        third = load_bits<BytePairs>(from + kBlockRows / kIn * kLineBytes + line / 8 * kLineBytes + at) >> (line % 8);
      for (int j = 0; j < kIn; ++j) {
        BytePairs field = (v >> (j * kPlane)) & in_bytes((1 << kPlane) - 1);
        if constexpr (kBits == 3) field |= ((third >> j) & in_bytes(1)) << 2;
        store_bits(to + (line + j) * kLineBytes + at, field);
      }
    }
}

FASTQ_HD void unpack_tile(int bits, const uint8_t* from, uint8_t* to) {
  switch (bits) {
    case 2: return unpack_tile<2>(from, to);
    case 3: return unpack_tile<3>(from, to);
    default: return unpack_tile<4>(from, to);
  }
}

// The inverse; 8 bits are stored as they are.
template <int kBits>
FASTQ_HD void pack_tile(const uint8_t* from, uint8_t* to) {
  constexpr int kPlane = kBits == 3 ? 2 : kBits, kIn = 8 / kPlane;
  for (int line = 0; line < kBlockRows; line += kIn)
    for (int at = 0; at < kLineBytes; at += FASTQ_VECTOR_BYTES) {
      BytePairs v = {};
      for (int j = 0; j < kIn; ++j) {
        const BytePairs field = load_bits<BytePairs>(from + (line + j) * kLineBytes + at);
        v |= (field & in_bytes((1 << kPlane) - 1)) << (j * kPlane);
      }
      store_bits(to + line / kIn * kLineBytes + at, v);
    }
  if constexpr (kBits == 3)
    for (int line = 0; line < kBlockRows; line += 8)
      for (int at = 0; at < kLineBytes; at += FASTQ_VECTOR_BYTES) {
        BytePairs v = {};
        for (int j = 0; j < 8; ++j)
          v |= ((load_bits<BytePairs>(from + (line + j) * kLineBytes + at) >> 2) & in_bytes(1)) << j;
        store_bits(to + kBlockRows / kIn * kLineBytes + line / 8 * kLineBytes + at, v);
      }
}

// Field of a row (of all of them) and an element.
FASTQ_HD int32_t field_of_blocks(const uint8_t* data, int64_t row_bytes, int bits, int64_t row, int64_t k) {
  const uint8_t* tile = data + row / kBlockRows * row_bytes + k / kBlockDepth * block_tile_bytes(bits);
  const int line = int(k % kBlockDepth / 4), byte = int(row % kBlockRows * 4 + k % 4);
  if (bits == 8) return int8_t(tile[line * kLineBytes + byte]);
  const int plane = bits == 3 ? 2 : bits, in = 8 / plane;
  int32_t field = (tile[line / in * kLineBytes + byte] >> (line % in * plane)) & ((1 << plane) - 1);
  if (bits == 3) field |= ((tile[(kBlockRows / in + line / 8) * kLineBytes + byte] >> (line % 8)) & 1) << 2;
  return field - block_middle(bits);
}

}  // namespace FASTQ_ISA
}  // namespace fastq
