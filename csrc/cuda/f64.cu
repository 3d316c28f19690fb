#include "launch.cuh"

namespace fastq::cuda {
FASTQ_STORAGE(Float64Storage)
}  // namespace fastq::cuda
