// SAT weights on a GPU: the passes of csrc/cpu/sat.cpp, its sums and its bits. A block takes a chunk of kSatChunk
// elements, a thread those of one lane: neighbours load neighbours, and all loads of a thread are under way before the
// first is used. What the chunks left is gathered by one block, whose threads are the kFinishLanes lanes.
#include "../cpu/sat.h"
#include "launch.cuh"
#include "sat.h"

namespace fastq::cuda {

namespace {

constexpr int kEach = int(kSatChunk / kSatLanes);
static_assert(kSatLanes == kFinishLanes);

// The kernels' common part. S: storage type.
template <class S>
struct Stage {
  using T = typename S::Element;
  using F = typename S::F;
  using Job = SatCall;
  static constexpr int kThreads = kSatLanes;
  // A register bound of 64, in which all of a thread's elements are under way; fp64 takes twice as much.
  static constexpr int kBlocksPerSM = sizeof(F) == 8 ? 2 : 4;

  // A thread's elements of a chunk; 0 where there are none.
  struct Mine {
    int64_t start;
    int count, thread;  // elements of the chunk

    FASTQ_HD Mine(const Job& c, int64_t chunk, int t) : start(chunk * kSatChunk), thread(t) {
      count = int(smaller(c.numel - start, kSatChunk));
    }
    FASTQ_HD bool exists(int i) const { return thread + i * kSatLanes < count; }
    FASTQ_HD int64_t place(int i) const { return start + thread + i * kSatLanes; }
    FASTQ_HD void load(const void* from, F* v) const {
      T loaded[kEach];
#pragma unroll
      for (int i = 0; i < kEach; ++i) loaded[i] = exists(i) ? static_cast<const T*>(from)[place(i)] : T(0);
#pragma unroll
      for (int i = 0; i < kEach; ++i) v[i] = S::load(loaded[i]);
    }
  };

  FASTQ_HD static F magnitude(F w) { return w < F(0) ? -w : w; }

  // Halves the lanes until one is left: body(to, from).
  template <class Team, class Body>
  FASTQ_HD static void halve(const Team& team, const Body& body) {
#pragma unroll 1
    for (int half = kThreads / 2; half > 0; half /= 2)
      team.each([&](int thread) {
        if (thread < half) body(thread, thread + half);
      });
  }
};

template <class S>
struct Largest : Stage<S> {
  using F = typename S::F;
  using Base = Stage<S>;
  struct Shared {
    F high[kSatLanes], nan[kSatLanes];
  };

  template <class Team>
  FASTQ_HD static void run(const Team& team, const SatCall& c, Shared& shared, int64_t index) {
    team.each([&](int thread) {
      F w[kEach], high = 0, nan = 0;
      typename Base::Mine(c, index, thread).load(c.w, w);
#pragma unroll
      for (int i = 0; i < kEach; ++i) {
        const F a = Base::magnitude(w[i]);
        high = a > high ? a : high;
        nan += nan_of(a, F());
      }
      shared.high[thread] = high;
      shared.nan[thread] = nan;
    });
    gather(team, shared);
    team.each([&](int thread) {
      if (thread == 0) static_cast<F*>(c.largest)[index] = shared.high[0] + shared.nan[0];
    });
  }

  template <class Team>
  FASTQ_HD static void gather(const Team& team, Shared& shared) {
    Base::halve(team, [&](int to, int from) {
      if (shared.high[from] > shared.high[to]) shared.high[to] = shared.high[from];
      shared.nan[to] += shared.nan[from];
    });
  }
};

template <class S>
struct FindLargest : Stage<S> {
  using F = typename S::F;
  using Shared = typename Largest<S>::Shared;

  template <class Team>
  FASTQ_HD static void run(const Team& team, const SatCall& c, Shared& shared, int64_t) {
    F* largest = static_cast<F*>(c.largest);
    team.each([&](int thread) {
      F high = 0, nan = 0;
      for (int64_t t = thread; t < c.chunks(); t += kSatLanes) {
        high = largest[t] > high ? largest[t] : high;
        nan += nan_of(largest[t], F());
      }
      shared.high[thread] = high;
      shared.nan[thread] = nan;
    });
    Largest<S>::gather(team, shared);
    team.each([&](int thread) {
      if (thread != 0) return;
      const F most = shared.high[0] + shared.nan[0];
      largest[c.chunks()] = most;
      c.scale[0] = double(tanh(most, F()));
    });
  }
};

struct SatShared {
  double sum[4][kSatLanes];  // SatSums::unit, SatSums::weight
  int64_t code[2][kSatLanes], first[kSatLanes];

  FASTQ_HD void put(int thread, const SatSums& sums, int64_t lowest) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      sum[i][thread] = sums.unit[i];
      sum[2 + i][thread] = sums.weight[i];
      code[i][thread] = sums.code[i];
    }
    first[thread] = lowest;
  }
  FASTQ_HD void add(int to, int from) {
#pragma unroll
    for (int i = 0; i < 4; ++i) sum[i][to] += sum[i][from];
#pragma unroll
    for (int i = 0; i < 2; ++i) code[i][to] += code[i][from];
    if (first[from] < first[to]) first[to] = first[from];
  }
};

template <class S>
struct Codes : Stage<S> {
  using F = typename S::F;
  using Base = Stage<S>;
  using Shared = SatShared;

  template <class Team>
  FASTQ_HD static void run(const Team& team, const SatCall& c, Shared& shared, int64_t index) {
    const int64_t chunks = c.chunks();
    team.each([&](int thread) {
      const SatElement<F> element(c.rule, c.scale);
      const typename Base::Mine mine(c, index, thread);
      const F* largest = static_cast<const F*>(c.largest);
      F w[kEach];
      mine.load(c.w, w);
      SatSums sums = {};
      int64_t first = c.numel;
      if (largest[index] == largest[chunks]) {
        for (int i = 0; i < kEach; ++i)
          if (mine.exists(i) && Base::magnitude(w[i]) == largest[chunks])
            first = smaller(first, c.order.index_of(mine.place(i)));
      }
      if (c.rule.rescale == SatRescale::std) {
#pragma unroll
        for (int i = 0; i < kEach; ++i) {
          const double d = double(w[i]);
          sums.weight[0] += d;
          sums.weight[1] += d * d;
        }
      }
#pragma unroll
      for (int i = 0; i < kEach; ++i) {
        if (!mine.exists(i)) continue;
        if (c.rule.levels == 0) {
          const double d = double(element.unit(w[i]));
          sums.unit[0] += d;
          sums.unit[1] += d * d;
        } else {
          const int code = int(element.code(w[i]));
          c.codes[mine.place(i)] = uint8_t(code);
          sums.code[0] += code;
          sums.code[1] += code * code;
        }
      }
      shared.put(thread, sums, first);
    });
    Base::halve(team, [&](int to, int from) { shared.add(to, from); });
    team.each([&](int thread) {
      if (thread < 4) c.sums[thread * chunks + index] = shared.sum[thread][0];
      if (thread < 2) c.code_sums[2 * index + thread] = shared.code[thread][0];
      if (thread == 0) c.candidates[index] = shared.first[0];
    });
  }
};

template <class S>
struct FindScale : Stage<S> {
  using Base = Stage<S>;
  using Shared = SatShared;

  template <class Team>
  FASTQ_HD static void run(const Team& team, const SatCall& c, Shared& shared, int64_t) {
    const int64_t chunks = c.chunks();
    team.each([&](int thread) {
      SatSums sums = {};
      int64_t first = c.numel;
      for (int64_t t = thread; t < chunks; t += kSatLanes) {
        first = smaller(first, c.candidates[t]);
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          sums.code[i] += c.code_sums[2 * t + i];
          sums.unit[i] += c.sums[i * chunks + t];
          sums.weight[i] += c.sums[(2 + i) * chunks + t];
        }
      }
      shared.put(thread, sums, first);
    });
    Base::halve(team, [&](int to, int from) { shared.add(to, from); });
    team.each([&](int thread) {
      if (thread != 0) return;
      const SatSums sums = {{shared.code[0][0], shared.code[1][0]},
                            {shared.sum[0][0], shared.sum[1][0]},
                            {shared.sum[2][0], shared.sum[3][0]}};
      *c.index = shared.first[0] < c.numel ? shared.first[0] : -1;
      sat_scale(c.rule, sums, c.numel, c.scale);
    });
  }
};

template <class S>
struct Scale : Stage<S> {
  using T = typename S::Element;
  using F = typename S::F;
  using Base = Stage<S>;
  struct Shared {};

  template <class Team>
  FASTQ_HD static void run(const Team& team, const SatCall& c, Shared&, int64_t index) {
    team.each([&](int thread) {
      const typename Base::Mine mine(c, index, thread);
      T* y = static_cast<T*>(c.out);
      const F step = sat_step<F>(c.rule, c.scale);
      if (c.rule.levels == 0) {
        const SatElement<F> element(c.rule, c.scale);
        F w[kEach];
        mine.load(c.w, w);
#pragma unroll
        for (int i = 0; i < kEach; ++i)
          if (mine.exists(i)) y[mine.place(i)] = S::store(element.unit(w[i]) * step + F(0));
        return;
      }
      const F offset = F(c.rule.levels - (c.rule.centered ? 1 : 0));
      uint8_t code[kEach];
#pragma unroll
      for (int i = 0; i < kEach; ++i) code[i] = mine.exists(i) ? c.codes[mine.place(i)] : uint8_t(0);
#pragma unroll
      for (int i = 0; i < kEach; ++i)
        if (mine.exists(i)) y[mine.place(i)] = S::store((F(int(code[i])) * F(2) - offset) * step + F(0));
    });
  }
};

template <class S>
struct Backward : Stage<S> {
  using T = typename S::Element;
  using F = typename S::F;
  using Base = Stage<S>;
  static constexpr int kBlocksPerSM = sizeof(F) == 8 ? 1 : 3;  // two loads of everything
  struct Shared {
    F sum[kSatLanes];
  };

  template <class Team>
  FASTQ_HD static void run(const Team& team, const SatCall& c, Shared& shared, int64_t index) {
    team.each([&](int thread) {
      const typename Base::Mine mine(c, index, thread);
      const F ratio = F(sat_ratio(c.scale));
      F w[kEach], g[kEach], sum = 0;
      mine.load(c.w, w);
      mine.load(c.g, g);
#pragma unroll
      for (int i = 0; i < kEach; ++i) {
        if (c.through_max) sum += g[i] * tanh(w[i], F());
        if (mine.exists(i)) static_cast<T*>(c.out)[mine.place(i)] = S::store(sat_gradient(w[i], g[i] * ratio, F()));
      }
      shared.sum[thread] = sum;
    });
    Base::halve(team, [&](int to, int from) { shared.sum[to] += shared.sum[from]; });
    team.each([&](int thread) {
      if (thread == 0) static_cast<F*>(c.partial)[index] = shared.sum[0];
    });
  }
};

template <class S>
struct Correct : Stage<S> {
  using T = typename S::Element;
  using F = typename S::F;
  using Base = Stage<S>;
  struct Shared {
    double sum[kSatLanes];
  };

  template <class Team>
  FASTQ_HD static void run(const Team& team, const SatCall& c, Shared& shared, int64_t) {
    team.each([&](int thread) {
      double sum = 0;
      for (int64_t t = thread; t < c.chunks(); t += kSatLanes) sum += double(static_cast<const F*>(c.partial)[t]);
      shared.sum[thread] = sum;
    });
    Base::halve(team, [&](int to, int from) { shared.sum[to] += shared.sum[from]; });
    team.each([&](int thread) {
      const int64_t index = *c.index;
      if (thread != 0 || index < 0 || index >= c.numel) return;
      const int64_t place = c.order.place_of(index);
      const F w = S::load(static_cast<const T*>(c.w)[place]), g = S::load(static_cast<const T*>(c.g)[place]);
      const F through = sat_through_max<F>(c.scale, shared.sum[0]);
      const F inner = g * F(sat_ratio(c.scale)) - (w < F(0) ? -through : through);
      static_cast<T*>(c.out)[place] = S::store(sat_gradient(w, inner, F()));
    });
  }
};

template <class S>
Status forward(const SatCall& c, void* stream) {
  const int64_t chunks = c.chunks();
  Status status = FASTQ_LAUNCH(Largest<S>, c, chunks, stream);
  if (status.error == nullptr) status = FASTQ_LAUNCH(FindLargest<S>, c, 1, stream);
  if (status.error == nullptr) status = FASTQ_LAUNCH(Codes<S>, c, chunks, stream);
  if (status.error == nullptr) status = FASTQ_LAUNCH(FindScale<S>, c, 1, stream);
  if (status.error == nullptr) status = FASTQ_LAUNCH(Scale<S>, c, chunks, stream);
  return status;
}

template <class S>
Status backward(const SatCall& c, void* stream) {
  Status status = FASTQ_LAUNCH(Backward<S>, c, c.chunks(), stream);
  if (c.through_max && status.error == nullptr) status = FASTQ_LAUNCH(Correct<S>, c, 1, stream);
  return status;
}

}  // namespace

Status sat_forward(const SatCall& c, void* stream) {
  switch (c.dtype) {
    case DType::f32: return forward<Float32Storage>(c, stream);
    case DType::bf16: return forward<BFloat16Storage>(c, stream);
    case DType::f16: return forward<Float16Storage>(c, stream);
    case DType::f64: return forward<Float64Storage>(c, stream);
  }
  return {"unknown storage type", __FILE__, __LINE__};
}

Status sat_backward(const SatCall& c, void* stream) {
  switch (c.dtype) {
    case DType::f32: return backward<Float32Storage>(c, stream);
    case DType::bf16: return backward<BFloat16Storage>(c, stream);
    case DType::f16: return backward<Float16Storage>(c, stream);
    case DType::f64: return backward<Float64Storage>(c, stream);
  }
  return {"unknown storage type", __FILE__, __LINE__};
}

}  // namespace fastq::cuda
