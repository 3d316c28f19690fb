// The CUDA kernels of csrc/methods/channel_error.h.
#include "../methods/channel_error.h"
#include "launch.cuh"

FASTQ_CUDA_LAUNCHERS(FASTQ_CHANNEL_ERROR)
