#include "../methods/frozen_lsq.h"

#include "elementwise.h"

FASTQ_CPU_LOOPS(FASTQ_FROZEN_LSQ)
