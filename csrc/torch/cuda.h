#pragma once

#include "decode.h"
#include "direct.h"
#include "elementwise.h"

namespace fastq {

extern const Runner kCuda;
extern const DirectRunner kDirectCuda;
extern const GemmRunner kGemmCuda;

}  // namespace fastq
