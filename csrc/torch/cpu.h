#pragma once

#include "elementwise.h"

namespace fastq {

extern const Runner kCpu;

}  // namespace fastq
