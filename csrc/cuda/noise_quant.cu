// The CUDA kernels of csrc/methods/noise_quant.h.
#include "../methods/noise_quant.h"
#include "launch.cuh"

FASTQ_CUDA_LAUNCHERS(FASTQ_NOISE_QUANT)
