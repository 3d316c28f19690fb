// Direct quantization on the CPU, for one instruction set.
#include "direct.h"

#include "vector.h"

namespace fastq {
inline namespace FASTQ_ISA {

typedef uint8_t U8 __attribute__((vector_size(FASTQ_VECTOR_BYTES / 4)));

template <>
struct Lookup<F32> {
  FASTQ_HD static F32 of(const float* level, I32 index) {
#if FASTQ_VECTOR_BYTES == 64
    return F32(_mm512_i32gather_ps(__m512i(index), level, 4));
#elif FASTQ_VECTOR_BYTES == 32
    return F32(_mm256_i32gather_ps(level, __m256i(index), 4));
#else
    return F32{level[index[0]], level[index[1]], level[index[2]], level[index[3]]};
#endif
  }
};

namespace {

constexpr int kWidth = sizeof(F32) / sizeof(float);

// Elements begin .. end, a vector at a time, the last ones in buffers: body(at, n) for n elements, at most kWidth.
template <class Body>
FASTQ_HD void each_vector(const DirectCall& c, int64_t begin, int64_t end, const Body& body) {
  const int64_t last = end * kDirectChunk < c.numel ? end * kDirectChunk : c.numel;
  int64_t at = begin * kDirectChunk;
  for (; at + kWidth <= last; at += kWidth) body(at, kWidth);
  if (at < last) body(at, int(last - at));
}

template <class S>
FASTQ_HD F32 load(const typename S::Element* from, int n) {
  if (n == kWidth) return S::load(from);
  typename S::Element tail[kWidth] = {};
  std::memcpy(tail, from, n * sizeof(tail[0]));
  return S::load(tail);
}

template <class S>
FASTQ_HD void store(typename S::Element* to, int n, F32 v) {
  if (n == kWidth) return S::store(to, v);
  typename S::Element tail[kWidth];
  S::store(tail, v);
  std::memcpy(to, tail, n * sizeof(tail[0]));
}

FASTQ_HD I32 load_codes(const uint8_t* from, int n, int levels) {
  uint8_t tail[kWidth] = {};
  if (n < kWidth) std::memcpy(tail, from, n);
  return __builtin_convertvector(load_bits<U8>(n < kWidth ? tail : from), I32) & (levels - 1);
}

FASTQ_HD void store_codes(uint8_t* to, int n, I32 codes) {
  const U8 bytes = __builtin_convertvector(codes, U8);
  std::memcpy(to, &bytes, n);
}

template <class S>
struct Weights {
  using T = typename S::Element;

  static void weight(const DirectCall& c, int64_t begin, int64_t end) {
    each_vector(c, begin, end, [&](int64_t at, int n) {
      store<S>(static_cast<T*>(c.w) + at, n, Lookup<F32>::of(c.level, load_codes(c.codes + at, n, c.levels)));
    });
  }

  static void gradient(const DirectCall& c, int64_t begin, int64_t end) {
    const int levels = c.levels, lanes = direct_lanes(levels);
    for (int64_t chunk = begin; chunk < end; ++chunk) {
      float sum[kMostSums];
      for (int k = 0; k < levels * lanes; ++k) sum[k] = 0;
      int lane = 0;
      each_vector(c, chunk, chunk + 1, [&](int64_t at, int n) {
        const F32 g = load<S>(static_cast<const T*>(c.g) + at, n);
        const uint8_t* codes = c.codes + at;
        for (int j = 0; j < n; ++j) {
          sum[lane * levels + (codes[j] & (levels - 1))] += g[j];
          lane = (lane + 1) & (lanes - 1);
        }
      });
      for (int half = lanes / 2; half > 0; half /= 2)
        for (int k = 0; k < half * levels; ++k) sum[k] += sum[half * levels + k];
      std::memcpy(c.partial + chunk * levels, sum, levels * sizeof(float));
    }
  }
};

void finish(const DirectCall& c, int64_t begin, int64_t end) {
  for (int64_t k = begin; k < end; ++k) {
    double sum[kDirectFinish] = {};
    for (int64_t chunk = 0; chunk < c.chunks(); ++chunk) sum[chunk % kDirectFinish] += c.partial[chunk * c.levels + k];
    for (int64_t half = kDirectFinish / 2; half > 0; half /= 2)
      for (int64_t j = 0; j < half; ++j) sum[j] += sum[j + half];
    c.gradient[k] = float(sum[0]);
  }
}

template <class R, class G>
void update(const DirectCall& c, int64_t begin, int64_t end) {
  typename R::Element* residual = static_cast<typename R::Element*>(c.residual);
  const typename G::Element* gradient = static_cast<const typename G::Element*>(c.g);
  each_vector(c, begin, end, [&](int64_t at, int n) {
    const F32 w = Lookup<F32>::of(c.level, load_codes(c.codes + at, n, c.levels));
    const F32 r = residual == nullptr ? F32{} : load<R>(residual + at, n);
    const F32 u = direct_target(w, r, load<G>(gradient + at, n), c.lr);
    I32 a = {};
    for (int32_t half = c.levels / 2; half > 0; half /= 2) a = search_step(c.level, a, half, u);
    a = nearer_level(c.level, a, u);
    store_codes(c.new_codes + at, n, a);
    if (residual != nullptr) store<R>(residual + at, n, c.rho * (u - Lookup<F32>::of(c.level, a)));
  });
}

template <class Body>
void each_dtype(DType dtype, const Body& body) {
  switch (dtype) {
    case DType::bf16: return body(BFloat16());
    case DType::f16: return body(Float16());
    default: return body(Float32());
  }
}

void weights(const DirectCall& c, int64_t begin, int64_t end) {
  each_dtype(c.dtype, [&](auto s) { Weights<decltype(s)>::weight(c, begin, end); });
}
void gradients(const DirectCall& c, int64_t begin, int64_t end) {
  each_dtype(c.dtype, [&](auto s) { Weights<decltype(s)>::gradient(c, begin, end); });
}
void updates(const DirectCall& c, int64_t begin, int64_t end) {
  each_dtype(c.residual_dtype,
             [&](auto r) { each_dtype(c.dtype, [&](auto g) { update<decltype(r), decltype(g)>(c, begin, end); }); });
}

}  // namespace

extern const DirectLoops direct_loops;
const DirectLoops direct_loops = {weights, gradients, finish, updates};

}  // namespace FASTQ_ISA
}  // namespace fastq
