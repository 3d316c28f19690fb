#include "../methods/dsq.h"
#include "launch.cuh"

FASTQ_CUDA_LAUNCHERS(FASTQ_DSQ)
