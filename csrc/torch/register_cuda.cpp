// A new method is two lines here.
#include "cuda.h"
#include "lsq.h"

STABLE_TORCH_LIBRARY_IMPL(fastq, CUDA, m) {
  m.impl("lsq_forward", TORCH_BOX(&fastq::lsq_forward<fastq::kCuda>));
  m.impl("lsq_backward", TORCH_BOX(&fastq::lsq_backward<fastq::kCuda>));
}
