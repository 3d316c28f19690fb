#include "../methods/dsq.h"

#include "elementwise.h"

FASTQ_CPU_LOOPS(FASTQ_DSQ)
