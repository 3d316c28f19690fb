// A new method is two lines here.
#include "affine.h"
#include "cuda.h"
#include "lsq.h"

STABLE_TORCH_LIBRARY_IMPL(fastq, CUDA, m) {
  m.impl("lsq_forward", TORCH_BOX(&fastq::lsq_forward<fastq::kCuda>));
  m.impl("lsq_backward", TORCH_BOX(&fastq::lsq_backward<fastq::kCuda>));
  m.impl("affine_forward", TORCH_BOX(&fastq::affine_forward<fastq::kCuda>));
  m.impl("affine_backward", TORCH_BOX(&fastq::affine_backward<fastq::kCuda>));
}
