// The CPU loops of csrc/methods/lsq.h.
#include "../methods/lsq.h"

#include "elementwise.h"

FASTQ_CPU_LOOPS(FASTQ_LSQ)
