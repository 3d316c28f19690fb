// The loops of every elementwise quantizer: one forward, one backward, for rows that share a parameter and for columns
// that do. A method is a struct as in csrc/methods/lsq.h.
//
// Sums: kLanes partial sums side by side (lane = position % kLanes) over a chunk of fixed size, a tree over the lanes,
// then the chunks in fp64: kFinishLanes sums in order and a tree. None of it depends on the vector width or the number
// of threads.
#pragma once

#include "../methods/numeric.h"
#include "call.h"
#include "vector.h"

namespace fastq {
inline namespace FASTQ_ISA {

template <class M, class S>
struct Elementwise {
  using T = typename S::Element;
  using F = typename S::F;
  using V = typename S::V;
  static constexpr int kPrepared = M::kPrepared;
  static constexpr int kGradients = M::kGradients;
  static constexpr int kSums = kGradients > 0 ? kGradients : 1;  // arrays have no length 0
  static constexpr int kWidth = sizeof(V) / sizeof(F);
  static constexpr int kVectors = kLanes / kWidth;

  static Range<F> range(const Call& c) { return {F(c.qmin), F(c.qmax), F(c.lower), F(c.upper), F(c.eps)}; }

  static void parameters(const Call& c, int64_t channel, F* values) {
    for (int i = 0; i < M::kParameters; ++i) values[i] = static_cast<const F*>(c.parameter[i])[channel];
  }

  static void prepared(const Call& c, int64_t channel, const Range<F>& r, F* p) {
    F values[M::kParameters];
    parameters(c, channel, values);
    M::prepare(values, r, p);
  }

  // kLanes elements at x. `p` holds a vector for each prepared value (kStride = 0) or for each value and each vector of
  // x.
  template <int kStride>
  FASTQ_HD static void forward_block(const T* x, T* y, const V* p, const Range<F>& r) {
    for (int k = 0; k < kVectors; ++k)
      S::store(y + k * kWidth, M::forward(S::load(x + k * kWidth), p + k * kStride, r));
  }

  template <int kStride>
  FASTQ_HD static void backward_block(const T* x, const T* g, T* dx, const V* p, const Range<F>& r,
                                      V (*sums)[kVectors]) {
    for (int k = 0; k < kVectors; ++k) {
      V terms[kSums];
      S::store(dx + k * kWidth,
               M::backward(S::load(x + k * kWidth), S::load(g + k * kWidth), p + k * kStride, r, terms));
      for (int i = 0; i < kGradients; ++i) sums[i][k] += terms[i];
    }
  }

  // The last elements of a run, fewer than kLanes: through buffers whose rest repeats an element, with a gradient of
  // zero, which adds nothing to a sum that the element itself does not.
  struct Tail {
    T x[kLanes], g[kLanes] = {}, out[kLanes];

    Tail(const T* from, int64_t n) {
      std::memcpy(x, from, n * sizeof(T));
      for (int64_t k = n; k < kLanes; ++k) x[k] = x[n - 1];
    }
  };

  // lane[j] += lane[j + half] for half = kLanes / 2, ..., 1: while that is whole vectors, by vectors.
  static F tree(V* sums) {
    for (int half = kVectors / 2; half > 0; half /= 2)
      for (int j = 0; j < half; ++j) sums[j] += sums[j + half];
    F lane[kWidth];
    std::memcpy(lane, sums, sizeof(lane));
    for (int half = kWidth / 2; half > 0; half /= 2)
      for (int j = 0; j < half; ++j) lane[j] += lane[j + half];
    return lane[0];
  }

  static void forward_run(const T* x, T* y, int64_t n, const V* p, const Range<F>& r) {
    int64_t j = 0;
    for (; j + kLanes <= n; j += kLanes) forward_block<0>(x + j, y + j, p, r);
    if (j < n) {
      Tail tail(x + j, n - j);
      forward_block<0>(tail.x, tail.out, p, r);
      std::memcpy(y + j, tail.out, (n - j) * sizeof(T));
    }
  }

  static void backward_run(const T* x, const T* g, T* dx, int64_t n, const V* p, const Range<F>& r, F* result) {
    V sums[kSums][kVectors] = {};
    int64_t j = 0;
    for (; j + kLanes <= n; j += kLanes) backward_block<0>(x + j, g + j, dx + j, p, r, sums);
    if (j < n) {
      Tail tail(x + j, n - j);
      std::memcpy(tail.g, g + j, (n - j) * sizeof(T));
      backward_block<0>(tail.x, tail.g, tail.out, p, r, sums);
      std::memcpy(dx + j, tail.out, (n - j) * sizeof(T));
    }
    for (int i = 0; i < kGradients; ++i) result[i] = tree(sums[i]);
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

  static void forward(const Call& c, int64_t begin, int64_t end) {
    const T* x = static_cast<const T*>(c.x);
    T* y = static_cast<T*>(c.out);
    if (!c.geometry.columns()) {
      each_chunk(c, begin, end, [&](int64_t, int64_t at, int64_t n, const V* p, const Range<F>& r) {
        forward_run(x + at, y + at, n, p, r);
      });
      return;
    }
    const Range<F> r = range(c);
    const int64_t width = c.geometry.width();
    const int64_t last = end * kRowBlock < c.geometry.outer ? end * kRowBlock : c.geometry.outer;
    for (int64_t row = begin * kRowBlock; row < last; ++row) {
      V p[kVectors * kPrepared] = {};
      int64_t w = 0;
      for (; w + kLanes <= width; w += kLanes) {
        load_columns(c, w, p);
        forward_block<kPrepared>(x + row * width + w, y + row * width + w, p, r);
      }
      if (w < width) {
        Tail tail(x + row * width + w, width - w);
        load_columns(c, w, p);
        forward_block<kPrepared>(tail.x, tail.out, p, r);
        std::memcpy(y + row * width + w, tail.out, (width - w) * sizeof(T));
      }
    }
  }

  static void backward(const Call& c, int64_t begin, int64_t end) {
    const T* x = static_cast<const T*>(c.x);
    const T* g = static_cast<const T*>(c.g);
    T* dx = static_cast<T*>(c.out);
    if (!c.geometry.columns()) {
      each_chunk(c, begin, end, [&](int64_t t, int64_t at, int64_t n, const V* p, const Range<F>& r) {
        F sums[kSums];
        backward_run(x + at, g + at, dx + at, n, p, r, sums);
        for (int i = 0; i < kGradients; ++i) static_cast<F*>(c.partial[i])[t] = sums[i];
      });
      return;
    }
    const Range<F> r = range(c);
    const int64_t width = c.geometry.width();
    for (int64_t t = begin; t < end; ++t) {
      const int64_t first = t * kRowBlock;
      const int64_t last = first + kRowBlock < c.geometry.outer ? first + kRowBlock : c.geometry.outer;
      for (int64_t w = 0; w < width; w += kLanes) {
        V p[kVectors * kPrepared] = {};
        load_columns(c, w, p);
        V sums[kSums][kVectors] = {};
        const int64_t n = width - w;
        if (n >= kLanes) {
          for (int64_t row = first; row < last; ++row) {
            const int64_t at = row * width + w;
            backward_block<kPrepared>(x + at, g + at, dx + at, p, r, sums);
          }
        } else {
          for (int64_t row = first; row < last; ++row) {
            const int64_t at = row * width + w;
            Tail tail(x + at, n);
            std::memcpy(tail.g, g + at, n * sizeof(T));
            backward_block<kPrepared>(tail.x, tail.g, tail.out, p, r, sums);
            std::memcpy(dx + at, tail.out, n * sizeof(T));
          }
        }
        for (int i = 0; i < kGradients; ++i)
          std::memcpy(static_cast<F*>(c.partial[i]) + t * width + w, sums[i], (n < kLanes ? n : kLanes) * sizeof(F));
      }
    }
  }

  // The partial sums of a channel are `run` at a time side by side: kFinishLanes sums in order, and a tree over them.
  static void finish(const Call& c, int64_t begin, int64_t end) {
    const Geometry& geometry = c.geometry;
    const int64_t run = geometry.columns() ? geometry.inner : geometry.chunks();
    const int64_t runs = geometry.columns() ? geometry.tasks() : geometry.outer;
    const int64_t lanes = runs * run < kFinishLanes ? runs * run : kFinishLanes;
    for (int i = 0; i < kGradients; ++i) {
      const F* partial = static_cast<const F*>(c.partial[i]);
      for (int64_t channel = begin; channel < end; ++channel) {
        double lane[kFinishLanes];
        for (int64_t j = 0; j < lanes; ++j) lane[j] = 0;
        int64_t next = 0;
        for (int64_t o = 0; o < runs; ++o)
          for (int64_t k = 0; k < run; ++k) {
            lane[next] += partial[(o * geometry.channels + channel) * run + k];
            if (++next == kFinishLanes) next = 0;
          }
        for (int64_t half = kFinishLanes / 2; half > 0; half /= 2)
          for (int64_t j = 0; j < half && j + half < lanes; ++j) lane[j] += lane[j + half];
        F values[M::kParameters];
        parameters(c, channel, values);
        static_cast<F*>(c.gradient[i])[channel] = M::finish(i, F(lane[0]), values, F(c.scale[i]));
      }
    }
  }
};

}  // namespace FASTQ_ISA
}  // namespace fastq
