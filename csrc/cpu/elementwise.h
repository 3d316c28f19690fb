// The loops of every elementwise quantizer: one forward, one backward, for rows that share a parameter and for columns
// that do. A method is a struct as in csrc/methods/lsq.h.
//
// Sums: kLanes partial sums side by side (lane = position % kLanes) over a chunk of fixed size, a tree over the lanes,
// then the chunks in fp64: kFinishLanes sums in order and a tree. None of it depends on the vector width or the number
// of threads.
#pragma once

#include <type_traits>

#include "../methods/numeric.h"
#include "call.h"
#include "philox.h"
#include "vector.h"

namespace fastq {
inline namespace FASTQ_ISA {

template <class M, class S>
struct Elementwise {
  using T = typename S::Element;
  using F = typename S::F;
  using V = typename S::V;
  using W = std::conditional_t<M::kWord == Word::noise, V, typename Words<V>::type>;
  using D = typename Wide<V>::type;
  static constexpr int kPrepared = M::kPrepared;
  static constexpr int kGradients = M::kGradients;
  static constexpr int kForwardSums = M::kForwardSums;
  static constexpr int kTerms = kGradients > 0 ? kGradients : 1;  // arrays have no length 0
  static constexpr int kSums = kForwardSums > 0 ? kForwardSums : 1;
  static constexpr int kWidth = sizeof(V) / sizeof(F);
  static constexpr int kVectors = kLanes / kWidth;
  static_assert(M::kParameters <= kMaxParameters && kPrepared <= kMaxPrepared);
  static_assert(kGradients <= kMaxParameters && kForwardSums <= kMaxSums);

  static Range<F> range(const Call& c) {
    Range<F> r = {F(c.qmin), F(c.qmax), F(c.lower), F(c.upper), F(c.eps), {}};
    for (int i = 0; i < kMaxConstants; ++i) r.constant[i] = F(c.constant[i]);
    return r;
  }

  static void parameters(const Call& c, int64_t channel, F* values) {
    for (int i = 0; i < M::kParameters; ++i)
      values[i] = static_cast<const F*>(c.parameter[i])[c.shared[i] ? 0 : channel];
  }

  static void prepared(const Call& c, int64_t channel, const Range<F>& r, F* p) {
    F values[M::kParameters];
    parameters(c, channel, values);
    M::prepare(values, r, p);
  }

  // A state's two planes, from some element on.
  struct Planes {
    uint32_t *first, *second;
  };
  static constexpr bool kState = M::kWord == Word::state;
  using Beside = std::conditional_t<kState, Planes, const uint32_t*>;  // what an element has beside x

  // The words of runs of at most kChunk elements. Noise is made for as many as `ahead` elements at once where a run has
  // fewer: what lies behind it is kept for the next ones.
  struct Bits {
    uint32_t room[M::kWord == Word::noise ? noise_room(kChunk) : 1];
    const uint32_t* made = nullptr;
    int64_t first = 0, last = 0;

    FASTQ_HD Beside of(const Call& c, int64_t begin, int64_t n, int64_t ahead) {
      if constexpr (kState) return {c.state[0] + begin, c.state[1] + begin};
      if constexpr (M::kWord == Word::memory) return reinterpret_cast<const uint32_t*>(c.words) + begin;
      if constexpr (M::kWord == Word::noise) {
        if (begin < first || begin + n > last) {
          first = begin;
          const int64_t rest = c.geometry.numel() - begin, more = rest < ahead ? rest : ahead;
          last = begin + (n < more ? more : n);
          made = fill_noise({c.noise, c.noise_scale, uint64_t(*c.seed)}, first, last - first, room);
        }
        return made + (begin - first);
      }
      return {};
    }
  };
  // Short runs follow each other in memory: at most one in eight is made twice. A column block takes a few elements of
  // each row: only those of narrow rows are made together.
  FASTQ_HD static int64_t ahead_of_run(int64_t n) { return n <= kChunk / 8 ? kChunk : 0; }
  FASTQ_HD static int64_t ahead_of_column(int64_t width) { return width <= 2 * kLanes ? kChunk : 0; }
  FASTQ_HD static Beside after(Beside words, int64_t n) {
    if constexpr (kState)
      return {words.first + n, words.second + n};
    else
      return M::kWord == Word::none ? nullptr : words + n;
  }
  // The words of vector k, and a state's way back.
  struct Held {
    W word[kState ? 2 : 1];

    FASTQ_HD Held(Beside from, int k) {
      if constexpr (kState) {
        word[0] = Words<V>::load(from.first + k * kWidth);
        word[1] = Words<V>::load(from.second + k * kWidth);
      } else if constexpr (M::kWord == Word::noise) {
        word[0] = Words<V>::number(from + k * kWidth);
      } else if constexpr (M::kWord != Word::none) {
        word[0] = Words<V>::load(from + k * kWidth);
      }
    }
    FASTQ_HD void keep(Beside to, int k) const {
      if constexpr (kState) {
        Words<V>::store(to.first + k * kWidth, word[0]);
        Words<V>::store(to.second + k * kWidth, word[1]);
      }
    }
  };

  // kLanes elements at x. `p` holds a vector for each prepared value (kStride = 0) or for each value and each vector of
  // x.
  template <int kStride>
  FASTQ_HD static void forward_block(const T* x, T* y, Beside words, const V* p, const Range<F>& r,
                                     D (*sums)[kVectors]) {
    for (int k = 0; k < kVectors; ++k) {
      D terms[kSums];
      Held held(words, k);
      V out = apply_forward<M, V, W, F>(S::load(x + k * kWidth), held.word, p + k * kStride, r, terms);
      if constexpr (M::kScaled) out = S::rounded(out) * p[k * kStride + kPrepared - 1];
      if constexpr (M::kOutput) S::store(y + k * kWidth, out);
      held.keep(words, k);
      for (int i = 0; i < kForwardSums; ++i) sums[i][k] += terms[i];
    }
  }

  template <int kStride>
  FASTQ_HD static void backward_block(const T* x, const T* g, T* dx, Beside words, const V* p, const Range<F>& r,
                                      V (*sums)[kVectors]) {
    for (int k = 0; k < kVectors; ++k) {
      V terms[kTerms];
      const Held held(words, k);
      S::store(dx + k * kWidth, apply_backward<M, V, W, F>(S::load(x + k * kWidth), S::load(g + k * kWidth), held.word,
                                                           p + k * kStride, r, terms));
      for (int i = 0; i < kGradients; ++i) sums[i][k] += terms[i];
    }
  }

  // The first n lanes alone, of numbers of one type.
  template <class Number, class A>
  FASTQ_HD static void add_lanes(const A* own, int64_t n, A* sums) {
    Number all[kLanes], some[kLanes];
    std::memcpy(all, sums, sizeof(all));
    std::memcpy(some, own, sizeof(some));
    for (int64_t j = 0; j < n; ++j) all[j] += some[j];
    std::memcpy(sums, all, sizeof(all));
  }

  // The last elements of a run, fewer than kLanes: through buffers whose rest repeats an element, with a gradient of
  // zero, which adds nothing to a sum that the element itself does not. Sums of the forward pass, and those whose terms
  // are not zero with the gradient, add these lanes alone.
  struct Tail {
    T x[kLanes], g[kLanes] = {}, out[kLanes];
    uint32_t words[kLanes], second[kLanes];
    Beside home;

    Tail(const T* from, Beside bits, int64_t n) : home(bits) {
      std::memcpy(x, from, n * sizeof(T));
      for (int64_t k = n; k < kLanes; ++k) x[k] = x[n - 1];
      if constexpr (kState) {
        std::memcpy(words, bits.first, n * sizeof(uint32_t));
        std::memcpy(second, bits.second, n * sizeof(uint32_t));
        for (int64_t k = n; k < kLanes; ++k) words[k] = second[k] = 0;
      } else if constexpr (M::kWord != Word::none) {
        std::memcpy(words, bits, n * sizeof(uint32_t));
        for (int64_t k = n; k < kLanes; ++k) words[k] = words[n - 1];
      }
    }

    FASTQ_HD Beside beside() {
      if constexpr (kState)
        return {words, second};
      else
        return words;
    }

    template <int kStride>
    FASTQ_HD void forward(T* y, int64_t n, const V* p, const Range<F>& r, D (*sums)[kVectors]) {
      D own[kSums][kVectors] = {};
      forward_block<kStride>(x, out, beside(), p, r, own);
      if constexpr (M::kOutput) std::memcpy(y, out, n * sizeof(T));
      if constexpr (kState) {
        std::memcpy(home.first, words, n * sizeof(uint32_t));
        std::memcpy(home.second, second, n * sizeof(uint32_t));
      }
      for (int i = 0; i < kForwardSums; ++i) add_lanes<double>(own[i], n, sums[i]);
    }

    template <int kStride>
    FASTQ_HD void backward(const T* gradient, T* dx, int64_t n, const V* p, const Range<F>& r, V (*sums)[kVectors]) {
      std::memcpy(g, gradient, n * sizeof(T));
      if constexpr (M::kOwnTerms) {
        V own[kTerms][kVectors] = {};
        backward_block<kStride>(x, g, out, beside(), p, r, own);
        for (int i = 0; i < kGradients; ++i) add_lanes<F>(own[i], n, sums[i]);
      } else {
        backward_block<kStride>(x, g, out, beside(), p, r, sums);
      }
      std::memcpy(dx, out, n * sizeof(T));
    }
  };

  // lane[j] += lane[j + half] for half = kLanes / 2, ..., 1: while that is whole vectors, by vectors.
  template <class A, class Number>
  static Number tree(A* sums, Number) {
    for (int half = kVectors / 2; half > 0; half /= 2)
      for (int j = 0; j < half; ++j) sums[j] += sums[j + half];
    Number lane[kWidth];
    std::memcpy(lane, sums, sizeof(lane));
    for (int half = kWidth / 2; half > 0; half /= 2)
      for (int j = 0; j < half; ++j) lane[j] += lane[j + half];
    return lane[0];
  }

  static void forward_run(const T* x, T* y, Beside words, int64_t n, const V* p, const Range<F>& r, double* result) {
    D sums[kSums][kVectors] = {};
    int64_t j = 0;
    for (; j + kLanes <= n; j += kLanes) forward_block<0>(x + j, y + j, after(words, j), p, r, sums);
    if (j < n) Tail(x + j, after(words, j), n - j).template forward<0>(y + j, n - j, p, r, sums);
    for (int i = 0; i < kForwardSums; ++i) result[i] = tree(sums[i], double());
  }

  static void backward_run(const T* x, const T* g, T* dx, Beside words, int64_t n, const V* p, const Range<F>& r,
                           F* result) {
    V sums[kTerms][kVectors] = {};
    int64_t j = 0;
    for (; j + kLanes <= n; j += kLanes) backward_block<0>(x + j, g + j, dx + j, after(words, j), p, r, sums);
    if (j < n) Tail(x + j, after(words, j), n - j).template backward<0>(g + j, dx + j, n - j, p, r, sums);
    for (int i = 0; i < kGradients; ++i) result[i] = tree(sums[i], F());
  }

  // Rows: task t is chunk t % chunks of row t / chunks.
  template <class Body>
  static void each_chunk(const Call& c, int64_t begin, int64_t end, Body body) {
    const Range<F> r = range(c);
    const int64_t chunks = c.geometry.chunks(), inner = c.geometry.inner;
    V p[kPrepared] = {};
    // Counted instead of divided for: the rows of a group have few elements.
    int64_t row = begin / chunks, chunk = begin % chunks, channel = row % c.geometry.channels;
    bool loaded = false;
    for (int64_t t = begin; t < end; ++t) {
      if (!loaded) {
        F values[kPrepared];
        prepared(c, channel, r, values);
        for (int i = 0; i < kPrepared; ++i) p[i] = splat<V>(values[i]);
        loaded = true;
      }
      const int64_t start = chunk * kChunk;
      body(t, row * inner + start, inner - start < kChunk ? inner - start : kChunk, p, r);
      if (++chunk == chunks) {
        chunk = 0;
        loaded = false;
        ++row;
        if (++channel == c.geometry.channels) channel = 0;
      }
    }
  }

  // Columns: task t is kRowBlock rows; a column block is kLanes columns, the last one padded in `prepared`.
  static void prepare(const Call& c) {
    const Range<F> r = range(c);
    const int64_t width = c.geometry.width(), padded = (width + kLanes - 1) / kLanes * kLanes;
    for (int64_t w = 0; w < padded; ++w) {
      F values[kPrepared] = {};
      if (w < width) prepared(c, w / c.geometry.inner, r, values);
      for (int i = 0; i < kPrepared; ++i) static_cast<F*>(c.prepared[i])[w] = w < width ? values[i] : F(1);
    }
  }

  static void load_columns(const Call& c, int64_t w, V* p) {
    for (int k = 0; k < kVectors; ++k)
      for (int i = 0; i < kPrepared; ++i)
        p[k * kPrepared + i] = load_bits<V>(static_cast<const F*>(c.prepared[i]) + w + k * kWidth);
  }

  // The rows of task t, a column block at a time.
  template <class Body>
  static void each_block(const Call& c, int64_t t, Body body) {
    const int64_t width = c.geometry.width(), first = t * kRowBlock;
    const int64_t last = first + kRowBlock < c.geometry.outer ? first + kRowBlock : c.geometry.outer;
    for (int64_t w = 0; w < width; w += kLanes) {
      V p[kVectors * kPrepared] = {};
      load_columns(c, w, p);
      body(w, width - w < kLanes ? width - w : kLanes, first, last, p);
    }
  }

  static void forward(const Call& c, int64_t begin, int64_t end) {
    const T* x = static_cast<const T*>(c.x);
    T* y = static_cast<T*>(c.out);
    Bits bits;
    if (!c.geometry.columns()) {
      each_chunk(c, begin, end, [&](int64_t t, int64_t at, int64_t n, const V* p, const Range<F>& r) {
        double sums[kSums];
        forward_run(x + at, y + at, bits.of(c, at, n, ahead_of_run(n)), n, p, r, sums);
        for (int i = 0; i < kForwardSums; ++i) static_cast<double*>(c.partial[i])[t] = sums[i];
      });
      return;
    }
    const Range<F> r = range(c);
    const int64_t width = c.geometry.width();
    if constexpr (kForwardSums == 0) {  // row by row, as memory lies
      const int64_t last = end * kRowBlock < c.geometry.outer ? end * kRowBlock : c.geometry.outer;
      for (int64_t row = begin * kRowBlock; row < last; ++row) {
        V p[kVectors * kPrepared] = {};
        int64_t w = 0;
        for (; w + kLanes <= width; w += kLanes) {
          const int64_t at = row * width + w;
          load_columns(c, w, p);
          forward_block<kPrepared>(x + at, y + at, bits.of(c, at, kLanes, kChunk), p, r, nullptr);
        }
        if (w < width) {
          const int64_t at = row * width + w, n = width - w;
          load_columns(c, w, p);
          Tail(x + at, bits.of(c, at, n, kChunk), n).template forward<kPrepared>(y + at, n, p, r, nullptr);
        }
      }
    } else {
      for (int64_t t = begin; t < end; ++t)
        each_block(c, t, [&](int64_t w, int64_t n, int64_t first, int64_t last, const V* p) {
          D sums[kSums][kVectors] = {};
          for (int64_t row = first; row < last; ++row) {
            const int64_t at = row * width + w;
            const Beside words = bits.of(c, at, n, ahead_of_column(width));
            if (n == kLanes)
              forward_block<kPrepared>(x + at, y + at, words, p, r, sums);
            else
              Tail(x + at, words, n).template forward<kPrepared>(y + at, n, p, r, sums);
          }
          for (int i = 0; i < kForwardSums; ++i)
            std::memcpy(static_cast<double*>(c.partial[i]) + t * width + w, sums[i], n * sizeof(double));
        });
    }
  }

  static void backward(const Call& c, int64_t begin, int64_t end) {
    const T* x = static_cast<const T*>(c.x);
    const T* g = static_cast<const T*>(c.g);
    T* dx = static_cast<T*>(c.out);
    Bits bits;
    if (!c.geometry.columns()) {
      each_chunk(c, begin, end, [&](int64_t t, int64_t at, int64_t n, const V* p, const Range<F>& r) {
        F sums[kTerms];
        backward_run(x + at, g + at, dx + at, bits.of(c, at, n, ahead_of_run(n)), n, p, r, sums);
        for (int i = 0; i < kGradients; ++i) static_cast<F*>(c.partial[i])[t] = sums[i];
      });
      return;
    }
    const Range<F> r = range(c);
    const int64_t width = c.geometry.width();
    for (int64_t t = begin; t < end; ++t)
      each_block(c, t, [&](int64_t w, int64_t n, int64_t first, int64_t last, const V* p) {
        V sums[kTerms][kVectors] = {};
        if (n == kLanes) {
          for (int64_t row = first; row < last; ++row) {
            const int64_t at = row * width + w;
            backward_block<kPrepared>(x + at, g + at, dx + at, bits.of(c, at, n, ahead_of_column(width)), p, r, sums);
          }
        } else {
          for (int64_t row = first; row < last; ++row) {
            const int64_t at = row * width + w;
            const Beside words = bits.of(c, at, n, ahead_of_column(width));
            Tail(x + at, words, n).template backward<kPrepared>(g + at, dx + at, n, p, r, sums);
          }
        }
        for (int i = 0; i < kGradients; ++i)
          std::memcpy(static_cast<F*>(c.partial[i]) + t * width + w, sums[i], n * sizeof(F));
      });
  }

  // The partial sums of a channel are `run` at a time side by side: kFinishLanes sums in order, and a tree over them.
  template <class P>
  static double add_up(const P* partial, const Sums& where, int64_t channel) {
    const int64_t lanes = where.count < kFinishLanes ? where.count : kFinishLanes;
    double lane[kFinishLanes];
    for (int64_t j = 0; j < lanes; ++j) lane[j] = 0;
    int64_t next = 0;
    for (int64_t o = 0; o < where.count / where.run; ++o)
      for (int64_t k = 0; k < where.run; ++k) {
        lane[next] += partial[(o * where.channels + channel) * where.run + k];
        if (++next == kFinishLanes) next = 0;
      }
    for (int64_t half = kFinishLanes / 2; half > 0; half /= 2)
      for (int64_t j = 0; j < half && j + half < lanes; ++j) lane[j] += lane[j + half];
    return lane[0];
  }

  static void finish(const Call& c, int64_t begin, int64_t end) {
    for (int i = 0; i < kGradients; ++i) {
      const Sums where(c.geometry, c.shared[i]);
      for (int64_t channel = begin; channel < (end < where.channels ? end : where.channels); ++channel) {
        F values[M::kParameters];
        parameters(c, channel, values);
        const F sum = F(add_up(static_cast<const F*>(c.partial[i]), where, channel));
        static_cast<F*>(c.gradient[i])[channel] = M::finish(i, sum, values, F(c.scale[i]));
      }
    }
  }

  static void sums(const Call& c, int64_t begin, int64_t end) {
    const Sums where(c.geometry, c.total);
    for (int i = 0; i < kForwardSums; ++i)
      for (int64_t channel = begin; channel < (end < where.channels ? end : where.channels); ++channel)
        c.sums[i][channel] = add_up(static_cast<const double*>(c.partial[i]), where, channel);
  }
};

// One method's loops, by storage type.
template <class M>
struct LoopsOf {
  template <class Body>
  static void each_dtype(const Call& c, Body body) {
    switch (c.dtype) {
      case DType::f32: return body(Elementwise<M, Float32>());
      case DType::bf16: return body(Elementwise<M, BFloat16>());
      case DType::f16: return body(Elementwise<M, Float16>());
      case DType::f64: return body(Elementwise<M, Float64>());
    }
  }
  static void prepare(const Call& c) {
    each_dtype(c, [&](auto loops) { decltype(loops)::prepare(c); });
  }
  static void forward(const Call& c, int64_t begin, int64_t end) {
    each_dtype(c, [&](auto loops) { decltype(loops)::forward(c, begin, end); });
  }
  static void backward(const Call& c, int64_t begin, int64_t end) {
    if constexpr (M::kBackward) each_dtype(c, [&](auto loops) { decltype(loops)::backward(c, begin, end); });
  }
  static void finish(const Call& c, int64_t begin, int64_t end) {
    if constexpr (M::kBackward) each_dtype(c, [&](auto loops) { decltype(loops)::finish(c, begin, end); });
  }
  static void sums(const Call& c, int64_t begin, int64_t end) {
    each_dtype(c, [&](auto loops) { decltype(loops)::sums(c, begin, end); });
  }
};

}  // namespace FASTQ_ISA
}  // namespace fastq

#define FASTQ_LOOPS_(name, ...)                                                             \
  extern const Loops name##_loops;                                                          \
  const Loops name##_loops = {LoopsOf<__VA_ARGS__>::prepare, LoopsOf<__VA_ARGS__>::forward, \
                              LoopsOf<__VA_ARGS__>::backward, LoopsOf<__VA_ARGS__>::finish, \
                              LoopsOf<__VA_ARGS__>::sums};

// The loops of a list of methods (csrc/methods/list.h).
#define FASTQ_CPU_LOOPS(list)  \
  namespace fastq {            \
  inline namespace FASTQ_ISA { \
  list(FASTQ_LOOPS_)           \
  }                            \
  }
