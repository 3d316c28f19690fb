// The CPU loops of csrc/methods/qil.h.
#include "../methods/qil.h"

#include "elementwise.h"

FASTQ_CPU_LOOPS(FASTQ_QIL)
