// Direct quantization: fastq/reference/direct.py has the formula.
//
//   w = l[a];   dl[k] = sum over a = k of g
//   u = (l[a] + r) - lr * g;   a = the level next to u, a tie to the lower;   r = rho * (u - l[a])
//
// A gather, a histogram and a search: no elementwise quantizer, so the loops are this method's own
// (csrc/cpu/direct.cpp, csrc/cuda/direct.cu). The number of levels is a power of two, so that a code modulo it is
// always inside.
#pragma once

#include "numeric.h"

namespace fastq {
inline namespace FASTQ_ISA {

constexpr int kMostLevels = 256;

// The histogram's order: a chunk of elements is dealt out to lanes (lane = position % lanes), each of which adds its
// elements in order, level by level; a tree over the lanes; then the chunks, kDirectFinish sums side by side in fp64
// and a tree. At most 256 additions in a row, and 256 pairs of a level and a lane or more, which are a GPU block's
// work.
constexpr int64_t kDirectChunk = 4096;
constexpr int64_t kDirectFinish = 32;
FASTQ_HD int direct_lanes(int levels) {
  return levels < 16 ? 256 / levels : 16;
}
constexpr int kMostSums = 16 * kMostLevels;  // levels times lanes

// Levels by their index, one or (csrc/cpu/direct.cpp) a vector of them.
template <class V>
struct Lookup {
  FASTQ_HD static V of(const float* level, int32_t index) { return level[index]; }
};

// One step of the search for the number of levels below u, of all but the last: `half` from levels / 2 to 1.
template <class V, class I>
FASTQ_HD I search_step(const float* level, I found, int32_t half, V u) {
  return select(Lookup<V>::of(level, found + (half - 1)) < u, found + half, found);
}

// The nearer of two neighbours: `high` is what the search has found.
template <class V, class I>
FASTQ_HD I nearer_level(const float* level, I high, V u) {
  const V above = u - Lookup<V>::of(level, high);
  const I low = select(above > 0.0f, high, select(high > 0, high - 1, high));
  const V below = u - Lookup<V>::of(level, low);
  return select(select(above < 0.0f, -above, above) < select(below < 0.0f, -below, below), high, low);
}

template <class V>
FASTQ_HD V direct_target(V w, V r, V g, float lr) {
  return (w + r) - lr * g;
}

}  // namespace FASTQ_ISA
}  // namespace fastq
