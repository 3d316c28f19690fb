// The CPU loops of csrc/methods/pact.h.
#include "../methods/pact.h"

#include "elementwise.h"

FASTQ_CPU_LOOPS(FASTQ_PACT)
