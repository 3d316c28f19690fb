#include "cuda.h"
#include "operators.h"

STABLE_TORCH_LIBRARY_IMPL(fastq, CUDA, m) {
  fastq::implement_operators<fastq::kCuda>(m);
  fastq::implement_direct<fastq::kDirectCuda>(m);
  fastq::implement_gemm<fastq::kGemmCuda>(m);
}
