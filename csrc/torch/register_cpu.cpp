// A new method is two lines here.
#include "affine.h"
#include "cpu.h"
#include "lsq.h"

STABLE_TORCH_LIBRARY_IMPL(fastq, CPU, m) {
  m.impl("lsq_forward", TORCH_BOX(&fastq::lsq_forward<fastq::kCpu>));
  m.impl("lsq_backward", TORCH_BOX(&fastq::lsq_backward<fastq::kCpu>));
  m.impl("affine_forward", TORCH_BOX(&fastq::affine_forward<fastq::kCpu>));
  m.impl("affine_backward", TORCH_BOX(&fastq::affine_backward<fastq::kCpu>));
}
