#include "../methods/dampening.h"
#include "launch.cuh"

FASTQ_CUDA_LAUNCHERS(FASTQ_DAMPENING)
