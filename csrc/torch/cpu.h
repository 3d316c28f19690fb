#pragma once

#include "direct.h"
#include "elementwise.h"
#include "gemm.h"

namespace fastq {

extern const Runner kCpu;
extern const DirectRunner kDirectCpu;
extern const GemmRunner kGemmCpu;

}  // namespace fastq
