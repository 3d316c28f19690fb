#include "launch.cuh"

namespace fastq::cuda {
FASTQ_STORAGE(BFloat16Storage)
}  // namespace fastq::cuda
