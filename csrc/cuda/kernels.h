// The CUDA kernels as functions of a Call and a stream: no torch, and no CUDA header for who calls them.
#pragma once

#include <vector>

#include "../cpu/call.h"

namespace fastq::cuda {

// What went wrong and where; `error` is null when nothing did. An error of the device itself may come up later.
struct Status {
  const char* error;
  const char* file;
  int line;
};

// One method's. Of many calls: `count` of them, all of this method and one storage type.
struct Launchers {
  Status (*forward)(const Call&, void* stream);
  Status (*backward)(const Call&, void* stream);
  Status (*forward_many)(const Call* const*, int count, void* stream);
  Status (*backward_many)(const Call* const*, int count, void* stream);
};
#define FASTQ_DECLARE_LAUNCHERS(name, ...) extern const Launchers name##_launchers;
FASTQ_METHODS(FASTQ_DECLARE_LAUNCHERS)
#undef FASTQ_DECLARE_LAUNCHERS

// `stream` is a cudaStream_t of the current device, where the Call's pointers are. Both return before the work is done.
Status forward(const Call&, void* stream);
Status backward(const Call&, void* stream);

// Many calls in few launches: one for each method and storage type among them (and for each 96 of these), and one more
// for the sums.
Status forward_many(const std::vector<Call>&, void* stream);
Status backward_many(const std::vector<Call>&, void* stream);

}  // namespace fastq::cuda
