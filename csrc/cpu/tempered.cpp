// The CPU loops of csrc/methods/tempered.h.
#include "../methods/tempered.h"

#include "elementwise.h"

FASTQ_CPU_LOOPS(FASTQ_TEMPERED)
