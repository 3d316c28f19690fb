#pragma once

#include "direct.h"
#include "elementwise.h"

namespace fastq {

extern const Runner kCuda;
extern const DirectRunner kDirectCuda;

}  // namespace fastq
