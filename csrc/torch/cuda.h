#pragma once

#include "elementwise.h"

namespace fastq {

extern const Runner kCuda;

}  // namespace fastq
