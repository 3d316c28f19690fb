// The kernels of direct quantization as functions of a DirectCall and a stream.
#pragma once

#include "../cpu/direct.h"
#include "kernels.h"

namespace fastq::cuda {

Status direct_weight(const DirectCall&, void* stream);
Status direct_gradient(const DirectCall&, void* stream);
Status direct_update(const DirectCall&, void* stream);

}  // namespace fastq::cuda
