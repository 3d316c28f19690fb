// Direct quantization on a GPU: a gather through shared memory, a histogram without atomics, and the update.
//
// Weights and update move memory: a block takes 4096 elements, every thread some pieces of as many codes as make 16
// bytes of weights (of fp32 in the update), all loads before the first use. The histogram compares every element with
// every level: threads own pairs of a level and a lane, and walk through their lane's elements of the chunk in order;
// neighbours read one address. That is 2^b comparisons an element in place of an atomic addition whose order nobody
// knows.
#include "direct.h"
#include "launch.cuh"

namespace fastq {
inline namespace FASTQ_ISA {

constexpr int kDirectThreads = 256;

// kCount elements that lie together.
template <class T, int kCount>
struct alignas(sizeof(T) * kCount) Pack {
  T element[kCount];
};

template <class T, int kCount>
FASTQ_HD Pack<T, kCount> load_pack(const T* p) {
  using P = Pack<T, kCount>;
#if defined(__CUDA_ARCH__)
  if constexpr (sizeof(P) == 16)
    return bits_as<P>(*reinterpret_cast<const uint4*>(p));
  else if constexpr (sizeof(P) == 8)
    return bits_as<P>(*reinterpret_cast<const uint2*>(p));
  else
    return bits_as<P>(*reinterpret_cast<const uint32_t*>(p));
#else
  P pack;
  memcpy(&pack, p, sizeof(pack));
  return pack;
#endif
}
template <class T, int kCount>
FASTQ_HD void store_pack(T* p, const Pack<T, kCount>& pack) {
#if defined(__CUDA_ARCH__)
  if constexpr (sizeof(pack) == 16)
    *reinterpret_cast<uint4*>(p) = bits_as<uint4>(pack);
  else if constexpr (sizeof(pack) == 8)
    *reinterpret_cast<uint2*>(p) = bits_as<uint2>(pack);
  else
    *reinterpret_cast<uint32_t*>(p) = bits_as<uint32_t>(pack);
#else
  memcpy(p, &pack, sizeof(pack));
#endif
}
template <int kBytes>
FASTQ_HD bool aligned_to(const void* p) {
  return reinterpret_cast<uintptr_t>(p) % kBytes == 0;
}

struct Levels {
  float level[kMostLevels];
  FASTQ_HD void fill(const DirectCall& c, int thread) {
    for (int k = thread; k < c.levels; k += kDirectThreads) level[k] = c.level[k];
  }
};

// Where a block's elements lie, and how many there are.
struct Part {
  int64_t at;
  int count;
  FASTQ_HD Part(const DirectCall& c, int64_t index)
      : at(index * kDirectChunk), count(int(smaller(c.numel - index * kDirectChunk, kDirectChunk))) {}
};

template <class S>
struct DirectWeights {
  using T = typename S::Element;
  using Job = DirectCall;
  using Shared = Levels;
  static constexpr int kThreads = kDirectThreads;
  static constexpr int kBlocksPerSM = 4;
  static constexpr int kPack = 16 / sizeof(T);
  static constexpr int kPieces = int(kDirectChunk) / (kThreads * kPack);

  template <class Team>
  FASTQ_HD static void run(const Team& team, const Job& c, Shared& shared, int64_t index) {
    const Part part(c, index);
    const uint8_t* codes = c.codes + part.at;
    T* w = static_cast<T*>(c.w) + part.at;
    const int mask = c.levels - 1;
    team.each([&](int thread) { shared.fill(c, thread); });
    team.each([&](int thread) {
      int rest = 0;
      if (aligned_to<kPack>(codes) && aligned(w)) {
        Pack<uint8_t, kPack> loaded[kPieces];
#pragma unroll
        for (int k = 0; k < kPieces; ++k) {
          const int i = (k * kThreads + thread) * kPack;
          if (i + kPack <= part.count) loaded[k] = load_pack<uint8_t, kPack>(codes + i);
        }
#pragma unroll
        for (int k = 0; k < kPieces; ++k) {
          const int i = (k * kThreads + thread) * kPack;
          if (i + kPack > part.count) continue;
          Pack<T, kPack> out;
#pragma unroll
          for (int e = 0; e < kPack; ++e) out.element[e] = S::store(shared.level[loaded[k].element[e] & mask]);
          store_pack<T, kPack>(w + i, out);
        }
        rest = part.count - part.count % kPack;
      }
      for (int i = rest + thread; i < part.count; i += kThreads) w[i] = S::store(shared.level[codes[i] & mask]);
    });
  }
};

template <class S>
struct DirectGradients {
  using T = typename S::Element;
  using Job = DirectCall;
  static constexpr int kThreads = kDirectThreads;
  static constexpr int kBlocksPerSM = 4;

  struct Shared {
    uint8_t code[kDirectChunk];
    float g[kDirectChunk];
    float sum[kMostSums];
  };

  template <class Team>
  FASTQ_HD static void run(const Team& team, const Job& c, Shared& shared, int64_t index) {
    const Part part(c, index);
    const uint8_t* codes = c.codes + part.at;
    const T* g = static_cast<const T*>(c.g) + part.at;
    const int levels = c.levels, lanes = direct_lanes(levels);
    team.each([&](int thread) {
#pragma unroll 4
      for (int i = thread; i < part.count; i += kThreads) {
        shared.code[i] = codes[i] & uint8_t(levels - 1);
        shared.g[i] = S::load(load_element(g + i));
      }
    });
    team.each([&](int thread) {
      for (int pair = thread; pair < levels * lanes; pair += kThreads) {
        const int level = pair % levels;
        float sum = 0;
#pragma unroll 8
        for (int i = pair / levels; i < part.count; i += lanes)
          if (shared.code[i] == level) sum += shared.g[i];
        shared.sum[pair] = sum;
      }
    });
    for (int half = lanes / 2; half > 0; half /= 2)
      team.each([&](int thread) {
        for (int pair = thread; pair < half * levels; pair += kThreads)
          shared.sum[pair] += shared.sum[half * levels + pair];
      });
    team.each([&](int thread) {
      for (int k = thread; k < levels; k += kThreads) c.partial[index * levels + k] = shared.sum[k];
    });
  }
};

// A block finishes as many levels as it has rows of kDirectFinish sums.
struct DirectFinish {
  using Job = DirectCall;
  static constexpr int kThreads = kDirectThreads;
  static constexpr int kBlocksPerSM = 4;
  static constexpr int kLevels = kThreads / int(kDirectFinish);

  struct Shared {
    double sum[kThreads];
  };

  template <class Team>
  FASTQ_HD static void run(const Team& team, const Job& c, Shared& shared, int64_t index) {
    const int64_t first = index * kLevels;
    team.each([&](int thread) {
      const int64_t level = first + thread % kLevels;
      double sum = 0;
      if (level < c.levels) {
#pragma unroll 4
        for (int64_t chunk = thread / kLevels; chunk < c.chunks(); chunk += kDirectFinish)
          sum += double(c.partial[chunk * c.levels + level]);
      }
      shared.sum[thread] = sum;
    });
    for (int half = int(kDirectFinish) / 2; half > 0; half /= 2)
      team.each([&](int thread) {
        if (thread < half * kLevels) shared.sum[thread] += shared.sum[thread + half * kLevels];
      });
    team.each([&](int thread) {
      if (thread < kLevels && first + thread < c.levels) c.gradient[first + thread] = float(shared.sum[thread]);
    });
  }
};

// R: storage of the residual, G: of the gradient.
template <class R, class G>
struct DirectUpdate {
  using Job = DirectCall;
  using Shared = Levels;
  static constexpr int kThreads = kDirectThreads;
  static constexpr int kBlocksPerSM = 4;
  static constexpr int kPack = 4;
  static constexpr int kPieces = int(kDirectChunk) / (kThreads * kPack);

  // One element: its code, and its residual.
  FASTQ_HD static uint8_t element(const Job& c, const Shared& shared, uint8_t code, float g, float& r) {
    const float u = direct_target(shared.level[code & (c.levels - 1)], r, g, c.lr);
    int32_t a = 0;
    for (int32_t half = c.levels / 2; half > 0; half /= 2) a = search_step(shared.level, a, half, u);
    a = nearer_level(shared.level, a, u);
    r = c.rho * (u - shared.level[a]);
    return uint8_t(a);
  }

  template <class Team>
  FASTQ_HD static void run(const Team& team, const Job& c, Shared& shared, int64_t index) {
    const Part part(c, index);
    uint8_t* codes = c.new_codes + part.at;
    typename R::Element* r = c.residual == nullptr ? nullptr : static_cast<typename R::Element*>(c.residual) + part.at;
    const typename G::Element* g = static_cast<const typename G::Element*>(c.g) + part.at;
    team.each([&](int thread) { shared.fill(c, thread); });
    team.each([&](int thread) {
      int rest = 0;
      if (aligned_to<kPack>(codes) && aligned_to<kPack * sizeof(*r)>(r) && aligned_to<kPack * sizeof(*g)>(g)) {
        Pack<uint8_t, kPack> code[kPieces];
        Pack<typename R::Element, kPack> kept[kPieces];
        Pack<typename G::Element, kPack> gradient[kPieces];
#pragma unroll
        for (int k = 0; k < kPieces; ++k) {
          const int i = (k * kThreads + thread) * kPack;
          if (i + kPack > part.count) continue;
          code[k] = load_pack<uint8_t, kPack>(codes + i);
          gradient[k] = load_pack<typename G::Element, kPack>(g + i);
          if (r != nullptr) kept[k] = load_pack<typename R::Element, kPack>(r + i);
        }
#pragma unroll
        for (int k = 0; k < kPieces; ++k) {
          const int i = (k * kThreads + thread) * kPack;
          if (i + kPack > part.count) continue;
#pragma unroll
          for (int e = 0; e < kPack; ++e) {
            float rest_of = r != nullptr ? R::load(kept[k].element[e]) : 0.0f;
            code[k].element[e] = element(c, shared, code[k].element[e], G::load(gradient[k].element[e]), rest_of);
            kept[k].element[e] = R::store(rest_of);
          }
          store_pack<uint8_t, kPack>(codes + i, code[k]);
          if (r != nullptr) store_pack<typename R::Element, kPack>(r + i, kept[k]);
        }
        rest = part.count - part.count % kPack;
      }
      for (int i = rest + thread; i < part.count; i += kThreads) {
        float rest_of = r != nullptr ? R::load(r[i]) : 0.0f;
        codes[i] = element(c, shared, codes[i], G::load(g[i]), rest_of);
        if (r != nullptr) r[i] = R::store(rest_of);
      }
    });
  }
};

}  // namespace FASTQ_ISA

namespace cuda {

namespace {

template <class Body>
Status each_dtype(DType dtype, const Body& body) {
  switch (dtype) {
    case DType::f32: return body(Float32Storage());
    case DType::bf16: return body(BFloat16Storage());
    case DType::f16: return body(Float16Storage());
    default: return {"unknown storage type", __FILE__, __LINE__};
  }
}

}  // namespace

Status direct_weight(const DirectCall& c, void* stream) {
  return each_dtype(c.dtype, [&](auto s) {
    using Weights = DirectWeights<decltype(s)>;
    return FASTQ_LAUNCH(Weights, c, c.chunks(), stream);
  });
}

Status direct_gradient(const DirectCall& c, void* stream) {
  const Status status = each_dtype(c.dtype, [&](auto s) {
    using Gradients = DirectGradients<decltype(s)>;
    return FASTQ_LAUNCH(Gradients, c, c.chunks(), stream);
  });
  if (status.error != nullptr) return status;
  return FASTQ_LAUNCH(DirectFinish, c, (c.levels + DirectFinish::kLevels - 1) / DirectFinish::kLevels, stream);
}

Status direct_update(const DirectCall& c, void* stream) {
  return each_dtype(c.residual_dtype, [&](auto r) {
    return each_dtype(c.dtype, [&](auto g) {
      using Update = DirectUpdate<decltype(r), decltype(g)>;
      return FASTQ_LAUNCH(Update, c, c.chunks(), stream);
    });
  });
}

}  // namespace cuda
}  // namespace fastq
