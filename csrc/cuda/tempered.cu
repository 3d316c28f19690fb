// The CUDA kernels of csrc/methods/tempered.h.
#include "../methods/tempered.h"
#include "launch.cuh"

FASTQ_CUDA_LAUNCHERS(FASTQ_TEMPERED)
