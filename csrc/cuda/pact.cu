// The CUDA kernels of csrc/methods/pact.h.
#include "../methods/pact.h"
#include "launch.cuh"

FASTQ_CUDA_LAUNCHERS(FASTQ_PACT)
