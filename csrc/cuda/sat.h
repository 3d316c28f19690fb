// The kernels of SAT weights as functions of a SatCall and a stream.
#pragma once

#include "../cpu/sat.h"
#include "kernels.h"

namespace fastq::cuda {

Status sat_forward(const SatCall&, void* stream);
Status sat_backward(const SatCall&, void* stream);

}  // namespace fastq::cuda
