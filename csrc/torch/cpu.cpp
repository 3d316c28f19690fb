// The CPU's Runner: torch's own threads, over tasks that depend on nothing but the shape.
#include "cpu.h"

namespace fastq {

namespace {

// Below this many elements a second thread costs more than it brings.
constexpr int64_t kGrain = 32768;

const Loops& loops(const Call& c) {
  const char* error = nullptr;
  const Kernels* k = kernels(&error);
  STD_TORCH_CHECK(k != nullptr, "fastq: ", error);
  return *k->loops[int(c.method)];
}

template <class Body>
void over_tasks(const Geometry& geometry, const Body& body) {
  const int64_t tasks = geometry.tasks();
  if (geometry.numel() <= kGrain) return body(0, tasks);
  torch::stable::parallel_for(0, tasks, kGrain / geometry.task_elements() + 1, body);
}

// Each channel has `sums` partial sums to add.
template <class Body>
void over_channels(const Geometry& geometry, const Body& body) {
  const int64_t sums = geometry.partials() / geometry.channels + 1;
  if (geometry.partials() <= kGrain) return body(0, geometry.channels);
  torch::stable::parallel_for(0, geometry.channels, kGrain / sums + 1, body);
}

void forward(Call& c, const Tensor&) {
  const Loops& k = loops(c);
  if (c.geometry.columns()) k.prepare(c);
  over_tasks(c.geometry, [&](int64_t begin, int64_t end) { k.forward(c, begin, end); });
  if (c.forward_sums == 0) return;
  over_channels(c.geometry, [&](int64_t begin, int64_t end) { k.sums(c, begin, end); });
}

void backward(Call& c, const Tensor&) {
  const Loops& k = loops(c);
  if (c.geometry.columns()) k.prepare(c);
  over_tasks(c.geometry, [&](int64_t begin, int64_t end) { k.backward(c, begin, end); });
  over_channels(c.geometry, [&](int64_t begin, int64_t end) { k.finish(c, begin, end); });
}

}  // namespace

const Runner kCpu = {forward, backward, true};

}  // namespace fastq
