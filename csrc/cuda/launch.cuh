// The one way to start a kernel, and a method's launchers.
#pragma once

#if defined(__CUDACC__)
#include <cuda_runtime.h>
#else
#include <memory>
#endif

#include "elementwise.cuh"
#include "kernels.h"
#include "warp.cuh"

namespace fastq::cuda {

#if defined(__CUDACC__)

// On the device a phase is its thread's share, and a barrier.
struct BlockTeam {
  template <class Phase>
  __device__ __forceinline__ void each(const Phase& phase) const {
    phase(int(threadIdx.x));
    __syncthreads();
  }
  // A phase of warps, which go through steps of their own (warp.cuh).
  template <class Phase>
  __device__ __forceinline__ void warps(const Phase& phase) const {
    phase(Warp{int(threadIdx.x) / kWarp});
    __syncthreads();
  }
};

template <class Kernel>
__global__ void __launch_bounds__(Kernel::kThreads, Kernel::kBlocksPerSM)
    run(const __grid_constant__ typename Kernel::Job job) {
  __shared__ typename Kernel::Shared shared;
  Kernel::run(BlockTeam(), job, shared, int64_t(blockIdx.x));
}

template <class Kernel>
Status launch(const typename Kernel::Job& job, int64_t blocks, void* stream, const char* file, int line) {
  if (blocks <= 0) return {};
  if (blocks > 2147483647) return {"the tensor has more blocks than a grid can", file, line};
  run<Kernel><<<unsigned(blocks), Kernel::kThreads, 0, static_cast<cudaStream_t>(stream)>>>(job);
  const cudaError_t error = cudaGetLastError();
  return error == cudaSuccess ? Status{} : Status{cudaGetErrorString(error), file, line};
}

#else

// Compiled as plain C++ (tests/cuda/), a phase is a loop over the threads and a launch one over the blocks. Threads run
// upwards in one block and downwards in the next, and shared memory begins as NaN: whoever reads what another thread
// writes in the same phase, or what nobody wrote, gets a wrong result.
struct BlockTeam {
  int threads;
  bool downwards;
  template <class Phase>
  void each(const Phase& phase) const {
    for (int t = 0; t < threads; ++t) phase(downwards ? threads - 1 - t : t);
  }
  template <class Phase>
  void warps(const Phase& phase) const {
    for (int w = 0; w < threads / kWarp; ++w) phase(Warp{downwards ? threads / kWarp - 1 - w : w});
  }
};

template <class Kernel>
Status launch(const typename Kernel::Job& job, int64_t blocks, void*, const char*, int) {
  const auto shared = std::make_unique<typename Kernel::Shared>();
  for (int64_t b = 0; b < blocks; ++b) {
    memset(static_cast<void*>(shared.get()), 0xff, sizeof(*shared));
    Kernel::run(BlockTeam{Kernel::kThreads, b % 2 == 1}, job, *shared, b);
  }
  return {};
}

#endif

#define FASTQ_LAUNCH(Kernel, job, blocks, stream) ::fastq::cuda::launch<Kernel>(job, blocks, stream, __FILE__, __LINE__)

template <class M, class S, bool kBackward>
Status launch_tiles(const Call& c, void* stream) {
  using Chunks = Tile<M, S, Walk::chunks, kBackward>;
  using Rows = Tile<M, S, Walk::rows, kBackward>;
  using Columns = Tile<M, S, Walk::columns, kBackward>;
  const Geometry& geometry = c.geometry;
  if (Columns::serves(geometry)) return FASTQ_LAUNCH(Columns, Columns::job(c), Columns::tiles(geometry), stream);
  if (Rows::serves(geometry)) return FASTQ_LAUNCH(Rows, Rows::job(c), Rows::tiles(geometry), stream);
  return FASTQ_LAUNCH(Chunks, Chunks::job(c), Chunks::tiles(geometry), stream);
}

// One method's kernels, by storage type.
template <class M>
struct LaunchersOf {
  template <class S, bool kBackward>
  static Status run(const Call& c, void* stream) {
    Status status = launch_tiles<M, S, kBackward>(c, stream);
    using Total = Finish<M, typename S::F, kBackward>;
    for (int i = 0; i < (kBackward ? M::kGradients : M::kForwardSums) && status.error == nullptr; ++i) {
      const typename Total::Job job = Total::job(c, i);
      status = FASTQ_LAUNCH(Total, job, Total::blocks(job), stream);
    }
    return status;
  }

  template <bool kBackward>
  static Status each_dtype(const Call& c, void* stream) {
    switch (c.dtype) {
      case DType::f32: return run<Float32Storage, kBackward>(c, stream);
      case DType::bf16: return run<BFloat16Storage, kBackward>(c, stream);
      case DType::f16: return run<Float16Storage, kBackward>(c, stream);
      case DType::f64: return run<Float64Storage, kBackward>(c, stream);
    }
    return {"unknown storage type", __FILE__, __LINE__};
  }

  static Status forward(const Call& c, void* stream) { return each_dtype<false>(c, stream); }
  static Status backward(const Call& c, void* stream) {
    if constexpr (M::kBackward) return each_dtype<true>(c, stream);
    return {"this method has no backward pass", __FILE__, __LINE__};
  }

  // At most kMostJobs calls of one storage type, of which kForwardSums or kGradients sums each are as many jobs again.
  template <class S, bool kBackward>
  static Status run_many(const Call* const* calls, int count, void* stream) {
    using Tiles = ManyTiles<M, S, kBackward>;
    using Total = ManyFinish<M, typename S::F, kBackward>;
    typename Tiles::Job tiles;
    int64_t blocks = 0;
    tiles.count = 0;
    for (int i = 0; i < count; ++i) blocks = Tiles::add(tiles, *calls[i], blocks);
    Status status = FASTQ_LAUNCH(Tiles, tiles, blocks, stream);
    typename Total::Job total;
    total.count = 0;
    blocks = 0;
    for (int k = 0; k < (kBackward ? M::kGradients : M::kForwardSums); ++k)
      for (int i = 0; i < count && status.error == nullptr; ++i) {
        blocks = Total::add(total, *calls[i], k, blocks);
        if (total.count < kMostJobs) continue;
        status = FASTQ_LAUNCH(Total, total, blocks, stream);
        total.count = 0;
        blocks = 0;
      }
    return status.error == nullptr ? FASTQ_LAUNCH(Total, total, blocks, stream) : status;
  }

  template <bool kBackward>
  static Status many(const Call* const* calls, int count, void* stream) {
    Status status = {};
    if constexpr (M::kMany && (!kBackward || M::kBackward)) {
      for (; count > 0 && status.error == nullptr; calls += kMostJobs, count -= kMostJobs) {
        const int some = count < kMostJobs ? count : kMostJobs;
        switch (calls[0]->dtype) {
          case DType::f32: status = run_many<Float32Storage, kBackward>(calls, some, stream); break;
          case DType::bf16: status = run_many<BFloat16Storage, kBackward>(calls, some, stream); break;
          case DType::f16: status = run_many<Float16Storage, kBackward>(calls, some, stream); break;
          case DType::f64: status = run_many<Float64Storage, kBackward>(calls, some, stream); break;
        }
      }
    } else {
      for (int i = 0; i < count && status.error == nullptr; ++i)
        status = kBackward ? backward(*calls[i], stream) : forward(*calls[i], stream);
    }
    return status;
  }
};

}  // namespace fastq::cuda

#define FASTQ_LAUNCHERS_(name, ...)                                                                          \
  const Launchers name##_launchers = {LaunchersOf<__VA_ARGS__>::forward, LaunchersOf<__VA_ARGS__>::backward, \
                                      LaunchersOf<__VA_ARGS__>::many<false>, LaunchersOf<__VA_ARGS__>::many<true>};

// The launchers of a list of methods (csrc/methods/list.h).
#define FASTQ_CUDA_LAUNCHERS(list) \
  namespace fastq::cuda {          \
  list(FASTQ_LAUNCHERS_)           \
  }
