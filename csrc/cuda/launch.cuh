// The one way to start a kernel, and the list of methods.
#pragma once

#if defined(__CUDACC__)
#include <cuda_runtime.h>
#else
#include <memory>
#endif

#include "../methods/affine.h"
#include "../methods/lsq.h"
#include "elementwise.cuh"
#include "kernels.h"

namespace fastq::cuda {

// Of one storage type, defined in its own file.
template <class S>
Status forward(const Call&, void* stream);
template <class S>
Status backward(const Call&, void* stream);

#if defined(__CUDACC__)

// On the device a phase is its thread's share, and a barrier.
struct BlockTeam {
  template <class Phase>
  __device__ __forceinline__ void each(const Phase& phase) const {
    phase(int(threadIdx.x));
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

// One method's kernels for one storage type.
template <class M, class S>
struct Launcher {
  static Status forward(const Call& c, void* stream) { return launch_tiles<M, S, false>(c, stream); }
  static Status backward(const Call& c, void* stream) {
    Status status = launch_tiles<M, S, true>(c, stream);
    using Gradient = Finish<M, typename S::F>;
    for (int i = 0; i < M::kGradients && status.error == nullptr; ++i)
      status = FASTQ_LAUNCH(Gradient, Gradient::job(c, i), Gradient::blocks(c.geometry), stream);
    return status;
  }
};

// A new method is one line here. Each storage type is a .cu file of its own, so that they compile side by side.
template <class S, class Body>
Status each_method(const Call& c, const Body& body) {
  switch (c.method) {
    case Method::lsq: return body(Launcher<LSQ<false>, S>());
    case Method::lsq_offset: return body(Launcher<LSQ<true>, S>());
    case Method::affine: return body(Launcher<Affine<Learns::nothing>, S>());
    case Method::affine_per_tensor: return body(Launcher<Affine<Learns::per_tensor>, S>());
    case Method::affine_per_channel: return body(Launcher<Affine<Learns::per_channel>, S>());
    default: return {"this method has no CUDA kernels", __FILE__, __LINE__};
  }
}

#define FASTQ_STORAGE(S)                                                                              \
  template <>                                                                                         \
  Status forward<S>(const Call& c, void* stream) {                                                    \
    return each_method<S>(c, [&](auto launcher) { return decltype(launcher)::forward(c, stream); });  \
  }                                                                                                   \
  template <>                                                                                         \
  Status backward<S>(const Call& c, void* stream) {                                                   \
    return each_method<S>(c, [&](auto launcher) { return decltype(launcher)::backward(c, stream); }); \
  }

}  // namespace fastq::cuda
