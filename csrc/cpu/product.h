// Calls of the integer engine as a whole: what torch's operators and the runtime without torch both run.
#pragma once

#include <functional>

#include "gemm.h"

namespace fastq {

// Runs body(begin, end) on parts of [0, n) of at least `grain`, on some threads, and returns when all are done.
using ParallelFor =
    std::function<void(int64_t n, int64_t grain, const std::function<void(int64_t begin, int64_t end)>& body)>;

// The loops in use; null with a message where there are none.
const GemmLoops* gemm_loops_in_use(const char** error);

// These throw std::runtime_error where there are no loops.
void run_product(const GemmCall&, const ParallelFor&);
void run_quantize(const QuantizeCall&, const ParallelFor&);       // a given scale
void run_quantize_rows(const QuantizeCall&, const ParallelFor&);  // one for each row
void run_pack(const PackCall&, const ParallelFor&);

}  // namespace fastq
