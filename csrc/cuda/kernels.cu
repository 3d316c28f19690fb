// Chooses the storage type. Flags of every .cu file: setup.py (no contraction, no flush to zero, exact division).
#include "launch.cuh"

namespace fastq::cuda {

Status forward(const Call& c, void* stream) {
  switch (c.dtype) {
    case DType::f32: return forward<Float32Storage>(c, stream);
    case DType::bf16: return forward<BFloat16Storage>(c, stream);
    case DType::f16: return forward<Float16Storage>(c, stream);
    case DType::f64: return forward<Float64Storage>(c, stream);
  }
  return {"unknown storage type", __FILE__, __LINE__};
}

Status backward(const Call& c, void* stream) {
  switch (c.dtype) {
    case DType::f32: return backward<Float32Storage>(c, stream);
    case DType::bf16: return backward<BFloat16Storage>(c, stream);
    case DType::f16: return backward<Float16Storage>(c, stream);
    case DType::f64: return backward<Float64Storage>(c, stream);
  }
  return {"unknown storage type", __FILE__, __LINE__};
}

}  // namespace fastq::cuda
