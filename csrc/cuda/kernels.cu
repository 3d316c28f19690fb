// Chooses the method. Flags of every .cu file: setup.py (no contraction, no flush to zero, exact division).
#include "kernels.h"

namespace fastq::cuda {

namespace {
#define FASTQ_ADDRESS(name, ...) &name##_launchers,
const Launchers* const all[] = {FASTQ_METHODS(FASTQ_ADDRESS)};
}  // namespace

Status forward(const Call& c, void* stream) {
  return all[int(c.method)]->forward(c, stream);
}

Status backward(const Call& c, void* stream) {
  return all[int(c.method)]->backward(c, stream);
}

}  // namespace fastq::cuda
