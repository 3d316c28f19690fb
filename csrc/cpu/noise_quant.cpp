// The CPU loops of csrc/methods/noise_quant.h.
#include "../methods/noise_quant.h"

#include "elementwise.h"

FASTQ_CPU_LOOPS(FASTQ_NOISE_QUANT)
