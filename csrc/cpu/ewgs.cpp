// The CPU loops of csrc/methods/ewgs.h.
#include "../methods/ewgs.h"

#include "elementwise.h"

FASTQ_CPU_LOOPS(FASTQ_EWGS)
