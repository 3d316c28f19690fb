#include "launch.cuh"

namespace fastq::cuda {
FASTQ_STORAGE(Float32Storage)
}  // namespace fastq::cuda
