// The loops of SAT weights for one instruction set: compiled once for each, with FASTQ_ISA naming it.
//
// Sums: kSatLanes of them side by side over a chunk, a tree; then the chunks in fp64, kFinishLanes side by side in
// order, and a tree. None of it depends on the vector width or the number of threads. Integers need no order.
#include "sat.h"

#include "vector.h"

namespace fastq {
inline namespace FASTQ_ISA {
namespace {

template <class T>
T tree(T* lane, int lanes) {
  for (int half = lanes / 2; half > 0; half /= 2)
    for (int j = 0; j < half; ++j) lane[j] += lane[j + half];
  return lane[0];
}

template <class T>
double total(const T* partial, int64_t n) {
  double lane[kFinishLanes] = {};
  for (int64_t i = 0; i < n; ++i) lane[i % kFinishLanes] += double(partial[i]);
  return tree(lane, int(kFinishLanes));
}

template <class S>
struct Sat {
  using T = typename S::Element;
  using F = typename S::F;
  using V = typename S::V;
  static constexpr int kWidth = sizeof(V) / sizeof(F);
  static_assert(kSatLanes % kLanes == 0);

  // body(place, elements, buffer position): kLanes elements of the chunk, of which the last may be fewer.
  template <class Body>
  static void blocks(const SatCall& c, int64_t chunk, Body body) {
    const int64_t start = chunk * kSatChunk;
    const int64_t n = c.numel - start < kSatChunk ? c.numel - start : kSatChunk;
    for (int64_t j = 0; j < n; j += kLanes) body(start + j, n - j < kLanes ? n - j : kLanes, j % kSatLanes);
  }

  // kLanes elements as vectors; what is not there is 0, which adds nothing to any sum.
  static void load(const void* from, int64_t place, int64_t n, V* v) {
    const T* x = static_cast<const T*>(from) + place;
    T padded[kLanes];
    if (n < kLanes) {
      std::memset(padded, 0, sizeof(padded));
      std::memcpy(padded, x, n * sizeof(T));
      x = padded;
    }
    for (int k = 0; k < kLanes / kWidth; ++k) v[k] = S::load(x + k * kWidth);
  }
  static void store(void* to, int64_t place, int64_t n, const V* v) {
    T* y = static_cast<T*>(to) + place;
    T padded[kLanes];
    T* out = n < kLanes ? padded : y;
    for (int k = 0; k < kLanes / kWidth; ++k) S::store(out + k * kWidth, v[k]);
    if (n < kLanes) std::memcpy(y, padded, n * sizeof(T));
  }
  static constexpr int kVectors = kLanes / kWidth;

  static V magnitude(V w) { return select(w < F(0), -w, w); }

  static void largest(const SatCall& c, int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      V high[kVectors] = {}, nan[kVectors] = {};
      blocks(c, t, [&](int64_t place, int64_t n, int64_t) {
        V w[kVectors];
        load(c.w, place, n, w);
        for (int k = 0; k < kVectors; ++k) {
          const V a = magnitude(w[k]);
          high[k] = select(a > high[k], a, high[k]);
          nan[k] += nan_of(a, F());
        }
      });
      F lane[kLanes], bad[kLanes];
      std::memcpy(lane, high, sizeof(lane));
      std::memcpy(bad, nan, sizeof(bad));
      F most = 0;
      for (int j = 0; j < kLanes; ++j) most = lane[j] > most ? lane[j] : most;
      static_cast<F*>(c.largest)[t] = most + tree(bad, int(kLanes));
    }
  }

  static void find_largest(const SatCall& c) {
    F* largest = static_cast<F*>(c.largest);
    F most = 0, nan = 0;
    for (int64_t t = 0; t < c.chunks(); ++t) {
      most = largest[t] > most ? largest[t] : most;
      nan += nan_of(largest[t], F());
    }
    largest[c.chunks()] = most + nan;
    c.scale[0] = double(tanh(most + nan, F()));
  }

  // The lowest index of the maximum in a chunk that has it, else numel.
  static int64_t candidate(const SatCall& c, int64_t chunk, F most) {
    int64_t first = c.numel;
    if (!(static_cast<const F*>(c.largest)[chunk] == most)) return first;
    blocks(c, chunk, [&](int64_t place, int64_t n, int64_t) {
      V w[kVectors];
      load(c.w, place, n, w);
      F a[kLanes];
      for (int k = 0; k < kVectors; ++k) store_bits(a + k * kWidth, magnitude(w[k]));
      for (int64_t j = 0; j < n; ++j)
        if (a[j] == most) {
          const int64_t index = c.order.index_of(place + j);
          first = index < first ? index : first;
        }
    });
    return first;
  }

  // Adds kLanes numbers and their squares to the lanes from `at` on, in fp64.
  static void add(const V* v, int64_t at, double* one, double* two) {
    F x[kLanes];
    for (int k = 0; k < kVectors; ++k) store_bits(x + k * kWidth, v[k]);
    for (int j = 0; j < kLanes; ++j) {
      const double d = double(x[j]);
      one[at + j] += d;
      two[at + j] += d * d;
    }
  }

  static void codes(const SatCall& c, int64_t begin, int64_t end) {
    const SatElement<F> element(c.rule, c.scale);
    const F most = static_cast<const F*>(c.largest)[c.chunks()];
    const int64_t chunks = c.chunks();
    for (int64_t t = begin; t < end; ++t) {
      c.candidates[t] = candidate(c, t, most);
      double unit[2][kSatLanes] = {}, weight[2][kSatLanes] = {};
      int64_t first = 0, second = 0;
      blocks(c, t, [&](int64_t place, int64_t n, int64_t at) {
        V w[kVectors];
        load(c.w, place, n, w);
        if (c.rule.rescale == SatRescale::std) add(w, at, weight[0], weight[1]);
        if (c.rule.levels == 0) {
          for (int k = 0; k < kVectors; ++k) w[k] = element.unit(w[k]);
          add(w, at, unit[0], unit[1]);
          return;
        }
        F x[kLanes];
        for (int k = 0; k < kVectors; ++k) store_bits(x + k * kWidth, element.code(w[k]));
        uint8_t code[kLanes];
        for (int j = 0; j < kLanes; ++j) code[j] = uint8_t(int32_t(x[j]));
        std::memcpy(c.codes + place, code, n);
        int32_t one = 0, two = 0;
        for (int j = 0; j < n; ++j) {
          one += code[j];
          two += code[j] * code[j];
        }
        first += one;
        second += two;
      });
      c.code_sums[2 * t] = first;
      c.code_sums[2 * t + 1] = second;
      if (c.rule.levels == 0)
        for (int i = 0; i < 2; ++i) c.sums[i * chunks + t] = tree(unit[i], kSatLanes);
      if (c.rule.rescale == SatRescale::std)
        for (int i = 0; i < 2; ++i) c.sums[(2 + i) * chunks + t] = tree(weight[i], kSatLanes);
    }
  }

  static void find_scale(const SatCall& c) {
    const int64_t chunks = c.chunks();
    SatSums sums = {};
    int64_t first = c.numel;
    for (int64_t t = 0; t < chunks; ++t) {
      first = c.candidates[t] < first ? c.candidates[t] : first;
      for (int i = 0; i < 2; ++i) sums.code[i] += c.code_sums[2 * t + i];
    }
    *c.index = first < c.numel ? first : -1;
    for (int i = 0; i < 2; ++i) {
      if (c.rule.levels == 0) sums.unit[i] = total(c.sums + i * chunks, chunks);
      if (c.rule.rescale == SatRescale::std) sums.weight[i] = total(c.sums + (2 + i) * chunks, chunks);
    }
    sat_scale(c.rule, sums, c.numel, c.scale);
  }

  static void scale(const SatCall& c, int64_t begin, int64_t end) {
    const SatElement<F> element(c.rule, c.scale);
    const F step = sat_step<F>(c.rule, c.scale), offset = F(c.rule.levels - (c.rule.centered ? 1 : 0));
    for (int64_t t = begin; t < end; ++t)
      blocks(c, t, [&](int64_t place, int64_t n, int64_t) {
        V v[kVectors];
        if (c.rule.levels == 0) {
          load(c.w, place, n, v);
          for (int k = 0; k < kVectors; ++k) v[k] = element.unit(v[k]) * step + F(0);
        } else {
          uint8_t code[kLanes] = {};
          std::memcpy(code, c.codes + place, n);
          F x[kLanes];
          for (int j = 0; j < kLanes; ++j) x[j] = F(int32_t(code[j]));
          for (int k = 0; k < kVectors; ++k) {
            const V doubled = load_bits<V>(x + k * kWidth) * F(2);
            v[k] = (doubled - offset) * step + F(0);  // a step of 0 gives no -0
          }
        }
        store(c.out, place, n, v);
      });
  }

  static void backward(const SatCall& c, int64_t begin, int64_t end) {
    const F ratio = F(sat_ratio(c.scale));
    for (int64_t t = begin; t < end; ++t) {
      V lane[kSatLanes / kWidth] = {};
      blocks(c, t, [&](int64_t place, int64_t n, int64_t at) {
        V w[kVectors], g[kVectors];
        load(c.w, place, n, w);
        load(c.g, place, n, g);
        for (int k = 0; k < kVectors; ++k) {
          if (c.through_max) lane[at / kWidth + k] += g[k] * tanh(w[k], F());
          w[k] = sat_gradient(w[k], g[k] * ratio, F());
        }
        store(c.out, place, n, w);
      });
      F sums[kSatLanes];
      std::memcpy(sums, lane, sizeof(sums));
      static_cast<F*>(c.partial)[t] = tree(sums, kSatLanes);
    }
  }

  static void correct(const SatCall& c) {
    const int64_t index = *c.index;
    if (!c.through_max || index < 0 || index >= c.numel) return;
    const F through = sat_through_max<F>(c.scale, total(static_cast<const F*>(c.partial), c.chunks()));
    const int64_t place = c.order.place_of(index);
    V w[kVectors], g[kVectors];
    load(c.w, place, 1, w);
    load(c.g, place, 1, g);
    const V inner = g[0] * F(sat_ratio(c.scale)) - select(w[0] < F(0), splat<V>(-through), splat<V>(through));
    w[0] = sat_gradient(w[0], inner, F());
    store(c.out, place, 1, w);
  }
};

template <class Body>
void each_dtype(const SatCall& c, Body body) {
  switch (c.dtype) {
    case DType::f32: return body(Sat<Float32>());
    case DType::bf16: return body(Sat<BFloat16>());
    case DType::f16: return body(Sat<Float16>());
    case DType::f64: return body(Sat<Float64>());
  }
}

#define FASTQ_OVER_CHUNKS(stage)                                               \
  void stage(const SatCall& c, int64_t begin, int64_t end) {                   \
    each_dtype(c, [&](auto loops) { decltype(loops)::stage(c, begin, end); }); \
  }
#define FASTQ_ONCE(stage)                                          \
  void stage(const SatCall& c) {                                   \
    each_dtype(c, [&](auto loops) { decltype(loops)::stage(c); }); \
  }
FASTQ_OVER_CHUNKS(largest)
FASTQ_ONCE(find_largest)
FASTQ_OVER_CHUNKS(codes)
FASTQ_ONCE(find_scale)
FASTQ_OVER_CHUNKS(scale)
FASTQ_OVER_CHUNKS(backward)
FASTQ_ONCE(correct)

}  // namespace

extern const SatLoops sat_loops;
const SatLoops sat_loops = {largest, find_largest, codes, find_scale, scale, backward, correct};

}  // namespace FASTQ_ISA
}  // namespace fastq
