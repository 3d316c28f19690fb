// The CPU loops of csrc/methods/channel_error.h.
#include "../methods/channel_error.h"

#include "elementwise.h"

FASTQ_CPU_LOOPS(FASTQ_CHANNEL_ERROR)
