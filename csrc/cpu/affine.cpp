// The CPU loops of csrc/methods/affine.h.
#include "../methods/affine.h"

#include "elementwise.h"

FASTQ_CPU_LOOPS(FASTQ_AFFINE)
