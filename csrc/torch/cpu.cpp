// The CPU's Runner: torch's own threads, over tasks that depend on nothing but the shape.
#include "cpu.h"

namespace fastq {

namespace {

// Below this many elements a second thread costs more than it brings.
constexpr int64_t kGrain = 32768;

const Kernels& loops() {
  const char* error = nullptr;
  const Kernels* k = kernels(&error);
  STD_TORCH_CHECK(k != nullptr, "fastq: ", error);
  return *k;
}

template <class Body>
void over_tasks(const Geometry& geometry, const Body& body) {
  const int64_t tasks = geometry.tasks();
  if (geometry.numel() <= kGrain) return body(0, tasks);
  torch::stable::parallel_for(0, tasks, kGrain / geometry.task_elements() + 1, body);
}

void forward(Call& c, const Tensor&) {
  const Kernels& k = loops();
  if (c.geometry.columns()) k.prepare(c);
  over_tasks(c.geometry, [&](int64_t begin, int64_t end) { k.forward(c, begin, end); });
}

void backward(Call& c, const Tensor&) {
  const Kernels& k = loops();
  if (c.geometry.columns()) k.prepare(c);
  over_tasks(c.geometry, [&](int64_t begin, int64_t end) { k.backward(c, begin, end); });
  const int64_t sums = c.geometry.partials() / c.geometry.channels + 1;  // per channel
  if (c.geometry.partials() <= kGrain) return k.finish(c, 0, c.geometry.channels);
  torch::stable::parallel_for(0, c.geometry.channels, kGrain / sums + 1,
                              [&](int64_t begin, int64_t end) { k.finish(c, begin, end); });
}

}  // namespace

const Runner kCpu = {forward, backward, true};

}  // namespace fastq
