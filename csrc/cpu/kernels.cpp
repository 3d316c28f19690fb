// The CPU loops of every method for one instruction set: compiled once for each, with FASTQ_ISA naming it.
#include "../methods/affine.h"
#include "../methods/lsq.h"
#include "elementwise.h"

#define FASTQ_STRING_(x) #x
#define FASTQ_STRING(x) FASTQ_STRING_(x)

namespace fastq {
inline namespace FASTQ_ISA {
namespace {

template <class M, class Body>
void each_dtype(const Call& c, Body body) {
  switch (c.dtype) {
    case DType::f32: return body(Elementwise<M, Float32>());
    case DType::bf16: return body(Elementwise<M, BFloat16>());
    case DType::f16: return body(Elementwise<M, Float16>());
    case DType::f64: return body(Elementwise<M, Float64>());
  }
}

// A new method is one line here.
template <class Body>
void each_method(const Call& c, Body body) {
  switch (c.method) {
    case Method::lsq: return each_dtype<LSQ<false>>(c, body);
    case Method::lsq_offset: return each_dtype<LSQ<true>>(c, body);
    case Method::affine: return each_dtype<Affine<Learns::nothing>>(c, body);
    case Method::affine_per_tensor: return each_dtype<Affine<Learns::per_tensor>>(c, body);
    case Method::affine_per_channel: return each_dtype<Affine<Learns::per_channel>>(c, body);
  }
}

void prepare(const Call& c) {
  each_method(c, [&](auto loops) { decltype(loops)::prepare(c); });
}
void forward(const Call& c, int64_t begin, int64_t end) {
  each_method(c, [&](auto loops) { decltype(loops)::forward(c, begin, end); });
}
void backward(const Call& c, int64_t begin, int64_t end) {
  each_method(c, [&](auto loops) { decltype(loops)::backward(c, begin, end); });
}
void finish(const Call& c, int64_t begin, int64_t end) {
  each_method(c, [&](auto loops) { decltype(loops)::finish(c, begin, end); });
}

}  // namespace

extern const Kernels kernels_of_isa;
const Kernels kernels_of_isa = {FASTQ_STRING(FASTQ_ISA), prepare, forward, backward, finish};

}  // namespace FASTQ_ISA
}  // namespace fastq
