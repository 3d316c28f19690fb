#include "cpu.h"
#include "operators.h"

STABLE_TORCH_LIBRARY_IMPL(fastq, CPU, m) {
  fastq::implement_operators<fastq::kCpu>(m);
  fastq::implement_direct<fastq::kDirectCpu>(m);
  fastq::implement_gemm<fastq::kGemmCpu>(m);
  m.impl("pack_blocks", TORCH_BOX(&fastq::pack_blocks<fastq::kGemmCpu>));
}
