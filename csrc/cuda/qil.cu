// The CUDA kernels of csrc/methods/qil.h.
#include "../methods/qil.h"
#include "launch.cuh"

FASTQ_CUDA_LAUNCHERS(FASTQ_QIL)
