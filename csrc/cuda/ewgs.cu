// The CUDA kernels of csrc/methods/ewgs.h.
#include "../methods/ewgs.h"
#include "launch.cuh"

FASTQ_CUDA_LAUNCHERS(FASTQ_EWGS)
