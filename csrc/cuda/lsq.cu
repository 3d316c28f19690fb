// The CUDA kernels of csrc/methods/lsq.h.
#include "../methods/lsq.h"
#include "launch.cuh"

FASTQ_CUDA_LAUNCHERS(FASTQ_LSQ)
