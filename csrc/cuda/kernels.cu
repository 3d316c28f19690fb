// Chooses the method. Flags of every .cu file: setup.py (no contraction, no flush to zero, exact division).
#include <map>
#include <utility>

#include "kernels.h"

namespace fastq::cuda {

namespace {
#define FASTQ_ADDRESS(name, ...) &name##_launchers,
const Launchers* const all[] = {FASTQ_METHODS(FASTQ_ADDRESS)};

// Calls of one method and storage type go together.
Status many(const std::vector<Call>& calls, Status (*Launchers::*run)(const Call* const*, int, void*), void* stream) {
  std::map<std::pair<Method, DType>, std::vector<const Call*>> kinds;
  for (const Call& c : calls) kinds[{c.method, c.dtype}].push_back(&c);
  Status status = {};
  for (const auto& [kind, of_kind] : kinds)
    if (status.error == nullptr) status = (all[int(kind.first)]->*run)(of_kind.data(), int(of_kind.size()), stream);
  return status;
}
}  // namespace

Status forward(const Call& c, void* stream) {
  return all[int(c.method)]->forward(c, stream);
}

Status backward(const Call& c, void* stream) {
  return all[int(c.method)]->backward(c, stream);
}

Status forward_many(const std::vector<Call>& calls, void* stream) {
  return many(calls, &Launchers::forward_many, stream);
}

Status backward_many(const std::vector<Call>& calls, void* stream) {
  return many(calls, &Launchers::backward_many, stream);
}

}  // namespace fastq::cuda
