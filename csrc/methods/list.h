// Every elementwise method by the name of its operators, and the struct that is its formula. A new method is a list of
// its own here, and its name among all. csrc/cpu/NAME.cpp and csrc/cuda/NAME.cu instantiate the loops.
#pragma once

#include <cstdint>

// clang-format off
#define FASTQ_AFFINE(X)                             \
  X(affine, Affine<Learns::nothing>)                \
  X(affine_per_tensor, Affine<Learns::per_tensor>)  \
  X(affine_per_channel, Affine<Learns::per_channel>)

#define FASTQ_CHANNEL_ERROR(X)             \
  X(channel_error, ChannelError<false>)    \
  X(channel_stats, ChannelError<true>)

#define FASTQ_DSQ(X)     \
  X(dsq, DSQ<false>)     \
  X(dsq_alpha, DSQ<true>)

#define FASTQ_DAMPENING(X)          \
  X(dampening, Dampening<false>)    \
  X(dampening_gradient, Dampening<true>)

#define FASTQ_EWGS(X) X(ewgs, EWGS)

#define FASTQ_FROZEN_LSQ(X) X(frozen_lsq, FrozenLSQ)

#define FASTQ_LSQ(X)      \
  X(lsq, LSQ<false>)      \
  X(lsq_offset, LSQ<true>)

#define FASTQ_NOISE_QUANT(X)             \
  X(noise_quant, NoiseQuant<false>)      \
  X(noise_quant_clipped, NoiseQuant<true>)

#define FASTQ_OSCILLATION(X) X(oscillation, OscillationStep)

#define FASTQ_PACT(X)                        \
  X(pact, PACT<true, false>)                 \
  X(pact_plain, PACT<false, false>)          \
  X(pact_two_sided, PACT<true, true>)        \
  X(pact_two_sided_plain, PACT<false, true>)

#define FASTQ_QIL(X)                             \
  X(qil_activation, QIL<Transforms::activation>) \
  X(qil_weight, QIL<Transforms::weight>)         \
  X(qil_power, QIL<Transforms::weight_by_power>)

#define FASTQ_TEMPERED(X)                            \
  X(tempered, Tempered<Reading::noise>)              \
  X(tempered_gradient, Tempered<Reading::gradient>)  \
  X(tempered_still, Tempered<Reading::still>)

#define FASTQ_METHODS(X) \
  FASTQ_AFFINE(X) \
  FASTQ_CHANNEL_ERROR(X) \
  FASTQ_DSQ(X) \
  FASTQ_DAMPENING(X) \
  FASTQ_EWGS(X) \
  FASTQ_FROZEN_LSQ(X) \
  FASTQ_LSQ(X) \
  FASTQ_NOISE_QUANT(X) \
  FASTQ_OSCILLATION(X) \
  FASTQ_PACT(X) \
  FASTQ_QIL(X) \
  FASTQ_TEMPERED(X) \
  /* a new one above */
// clang-format on

namespace fastq {

#define FASTQ_NAME(name, ...) name,
enum class Method : int32_t { FASTQ_METHODS(FASTQ_NAME) };
#undef FASTQ_NAME

}  // namespace fastq
