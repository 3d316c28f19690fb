// The operator fastq::oscillation_step for one device's Runner. Its schema: fastq/ops/oscillation.py.
#pragma once

#include "../methods/oscillation.h"
#include "elementwise.h"

namespace fastq {

inline Arguments oscillation_arguments(const char* op, int64_t qmin, int64_t qmax, int64_t axis, int64_t group_size,
                                       double eps, double momentum, double ema_momentum, int64_t limit,
                                       bool count_first) {
  Arguments a = arguments<OscillationStep>(op, Method::oscillation, qmin, qmax, axis, group_size, eps, {"step"});
  const auto moves = [](double m) { return 0x1p-24 <= m && m <= 1.0; };
  STD_TORCH_CHECK(qmax - qmin < 256, "fastq::", op, ": at most 256 codes, got the range ", qmin, " to ", qmax);
  STD_TORCH_CHECK(moves(momentum) && (ema_momentum == 0.0 || moves(ema_momentum)), "fastq::", op,
                  ": momentum must be from 2^-24 to 1, got ", momentum, " and ", ema_momentum);
  STD_TORCH_CHECK(0 <= limit && limit <= OscillationFields::kOne, "fastq::", op, ": limit must be from 0 to 2^24, got ",
                  limit);
  a.constants[0] = float(momentum);
  a.constants[1] = float(ema_momentum);
  a.constants[2] = double(limit);
  a.constants[3] = count_first;
  return a;
}

template <const Runner& runner>
void oscillation_step(Tensor weight, Tensor step, Tensor freeze, Tensor track, int64_t qmin, int64_t qmax, int64_t axis,
                      int64_t group_size, double eps, double momentum, double ema_momentum, int64_t limit,
                      bool count_first) {
  const Arguments a = oscillation_arguments("oscillation_step", qmin, qmax, axis, group_size, eps, momentum,
                                            ema_momentum, limit, count_first);
  run_in_place(runner, a, weight, {step}, {freeze, track}, {"freeze", "track"});
}

}  // namespace fastq
