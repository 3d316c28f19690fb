#include "../methods/dampening.h"

#include "elementwise.h"

FASTQ_CPU_LOOPS(FASTQ_DAMPENING)
