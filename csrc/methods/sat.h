// SAT weights: fastq/reference/sat.py has the formula.
//
//   t = tanh(w) ;  m = tanh(max|w|) ;  Wh = t / m ;  v = L * ((Wh + 1) / 2) ;  k = round(v) or min(floor(v), L - 1)
//   code = 2k - L (+ 1) ;  y = s * code ,  s = kappa / L ;   without bits y = kappa * Wh
//   dw = (1 - t^2) * (c * g) ,  c = kappa / m ;   at the first maximum (1 - t^2) * (c * g - sign(w) * c * sum(g * t) /
//   m)
//
// No elementwise method: three passes forward (the largest; the codes and their sums; y), one backward and one element
// corrected. Here is what an element and what a tensor's sums become; csrc/cpu/sat.cpp and csrc/cuda/sat.cu have the
// loops.
#pragma once

#include "functions.h"
#include "numeric.h"

namespace fastq {

enum class SatRescale : int32_t { none, constant, std };

constexpr int64_t kSatChunk = 4096;  // elements of one partial sum
constexpr int kSatLanes = 256;       // sums side by side: element p of a chunk belongs to lane p % kSatLanes
constexpr int kSatDims = 8;

// From places in memory to row-major indices and back, for dense tensors whose memory is in another order.
struct SatOrder {
  int dims;                   // 0: memory is in row-major order
  int64_t size[kSatDims];     // from the outermost in memory to the innermost
  int64_t logical[kSatDims];  // row-major strides of these dimensions
  int64_t memory[kSatDims];   // their strides

  FASTQ_HD int64_t index_of(int64_t place) const {
    if (dims == 0) return place;
    int64_t index = 0;
    for (int d = dims - 1; d >= 0; --d) {
      index += place % size[d] * logical[d];
      place /= size[d];
    }
    return index;
  }
  FASTQ_HD int64_t place_of(int64_t index) const {
    if (dims == 0) return index;
    int64_t place = 0;
    for (int d = 0; d < dims; ++d) place += index / logical[d] % size[d] * memory[d];
    return place;
  }
};

// What a call asks for.
struct SatRule {
  int levels;     // L; 0 leaves the rounding out
  bool floors;    // k = min(floor(v), L - 1)
  bool centered;  // code = 2k + 1 - L
  SatRescale rescale;
  double n_out;
};

// Sums over the tensor: of the codes and their squares; of Wh and its square (without bits); of w and its square.
struct SatSums {
  int64_t code[2];
  double unit[2], weight[2];
};

inline namespace FASTQ_ISA {

FASTQ_HD double sat_variance(double total, double squares, int64_t n) {
  if (n < 2) return 0.0;
  const double centered = squares - total * total / double(n);
  return (centered < 0.0 ? 0.0 : centered) / double(n - 1);
}

// scale: m as it is, then kappa and VAR[Q].
FASTQ_HD void sat_scale(const SatRule& rule, const SatSums& sums, int64_t n, double* scale) {
  const double m = scale[0];
  double variance;
  if (rule.levels > 0) {
    // Centred on the integer next to the mean, where int64 is exact and nothing cancels.
    const int64_t center = sums.code[0] / n;
    const int64_t total = sums.code[0] - n * center;
    const int64_t squares = sums.code[1] - 2 * center * sums.code[0] + n * center * center;
    const double levels = rule.levels;
    variance = 4.0 * sat_variance(double(total), double(squares), n) / (levels * levels);
  } else {
    variance = sat_variance(sums.unit[0], sums.unit[1], n);
  }
  double kappa = 1.0;
  if (rule.rescale == SatRescale::constant) {
    kappa = variance > 0.0 ? 1.0 / ::sqrt(rule.n_out * variance) : 0.0;
  } else if (rule.rescale == SatRescale::std) {
    kappa = variance > 0.0 ? ::sqrt(sat_variance(sums.weight[0], sums.weight[1], n) / variance) : 0.0;
  }
  scale[1] = m == 0.0 ? 0.0 : kappa + (m - m);  // a NaN in w
  scale[2] = variance;
}

template <class F>
FASTQ_HD F sat_step(const SatRule& rule, const double* scale) {
  return F(rule.levels > 0 ? scale[1] / double(rule.levels) : scale[1]);
}
FASTQ_HD double sat_ratio(const double* scale) {
  return scale[0] == 0.0 ? 0.0 : scale[1] / scale[0];
}
// What the maximum's gradient loses, before its sign.
template <class F>
FASTQ_HD F sat_through_max(const double* scale, double sum) {
  return F(scale[0] == 0.0 ? 0.0 : sat_ratio(scale) * sum / scale[0]);
}

template <class F>
struct SatElement {
  F divisor, levels, top;
  bool floors;

  FASTQ_HD SatElement(const SatRule& rule, const double* scale)
      : divisor(scale[0] == 0.0 ? F(1) : F(scale[0])),
        levels(F(rule.levels)),
        top(F(rule.levels - 1)),
        floors(rule.floors) {}

  // Wh; where m is 0, so is t.
  template <class V>
  FASTQ_HD V unit(V w) const {
    return tanh(w, F()) / splat<V>(divisor);
  }

  // k; NaN becomes 0, and kappa tells.
  template <class V>
  FASTQ_HD V code(V w) const {
    const V v = clip((unit(w) + F(1)) * F(0.5) * levels, F(0), levels);
    V k = round_clipped(v, F());
    if (floors) {
      k = select(k > v, k - F(1), k);
      k = select(k > top, splat<V>(top), k);
    }
    return select(k == k, k, splat<V>(F(0)));
  }
};

// dw from what arrives behind tanh.
template <class V, class F>
FASTQ_HD V sat_gradient(V w, V inner, F) {
  return sech2(w, F()) * inner;
}

}  // namespace FASTQ_ISA
}  // namespace fastq
