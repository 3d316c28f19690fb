#include "launch.cuh"

namespace fastq::cuda {
FASTQ_STORAGE(Float16Storage)
}  // namespace fastq::cuda
