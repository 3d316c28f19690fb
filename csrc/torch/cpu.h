#pragma once

#include "direct.h"
#include "elementwise.h"

namespace fastq {

extern const Runner kCpu;
extern const DirectRunner kDirectCpu;

}  // namespace fastq
