#include "../methods/oscillation.h"
#include "launch.cuh"

FASTQ_CUDA_LAUNCHERS(FASTQ_OSCILLATION)
