#include "../methods/frozen_lsq.h"
#include "launch.cuh"

FASTQ_CUDA_LAUNCHERS(FASTQ_FROZEN_LSQ)
