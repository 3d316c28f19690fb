// The CUDA kernels of csrc/methods/affine.h.
#include "../methods/affine.h"
#include "launch.cuh"

FASTQ_CUDA_LAUNCHERS(FASTQ_AFFINE)
