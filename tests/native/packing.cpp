// csrc/methods/packing.h behind C names, for tests/native/test_packing.py.
#include "../../csrc/methods/packing.h"

using namespace fastq;

extern "C" {

int64_t bytes_of_row(int layout, int bits, int64_t k) {
  return row_bytes(Layout(layout), bits, k);
}

void fields_one_by_one(const uint8_t* row, int layout, int bits, int64_t k, int32_t* to) {
  for (int64_t i = 0; i < k; ++i) to[i] = field_at(row, Layout(layout), bits, i);
}

void run_of_fields(const uint8_t* row, int bits, int64_t first, int64_t count, int zero, int16_t* to) {
  unpack_rows<int16_t>(row, bits, first, count, int16_t(zero), to);
}

// By fields of 2, 4 or 8 bits, whole tiles of them.
void tile_by_words(const uint32_t* words, int bits, int64_t tiles, int scaled, uint32_t* to) {
  for (int64_t t = 0; t < tiles; ++t, words += 16)
    for (int place = 0; place < 8 / bits; ++place)
      for (int i = 0; i < 16; ++i, ++to) switch (bits) {
          case 2: *to = scaled ? four_scaled_fields<2>(words[i], place) : four_fields<2>(words[i], place); break;
          case 4: *to = scaled ? four_scaled_fields<4>(words[i], place) : four_fields<4>(words[i], place); break;
          default: *to = scaled ? four_scaled_fields<8>(words[i], place) : four_fields<8>(words[i], place);
        }
}

}  // extern "C"
