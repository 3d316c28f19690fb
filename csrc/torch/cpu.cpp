// The CPU's Runner: torch's own threads, over tasks that depend on nothing but the shape.
#include "cpu.h"

#include <algorithm>
#include <utility>

#include "../cpu/dispatch.h"
#include "../cpu/product.h"
#include "../cpu/sat.h"

namespace fastq {

FASTQ_CPU_TABLE(DirectLoops, direct_loops)
FASTQ_CPU_TABLE(SatLoops, sat_loops)

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

// Pieces of many calls' work, of about kGrain elements each or a whole small tensor: piece i is [first, last) of
// calls[call], with `before` elements in the pieces before it.
struct Piece {
  size_t call;
  int64_t first, last, before;
};

// Threads share the elements evenly, not the pieces: the weights of a network grow from its first layer to its last.
template <class Count, class Body>
void over_pieces(const std::vector<Call>& calls, const Count& count, const Body& body) {
  std::vector<Piece> pieces;
  int64_t total = 0;
  for (size_t i = 0; i < calls.size(); ++i) {
    const auto [items, elements] = count(calls[i].geometry);
    const int64_t step = kGrain / elements + 1;
    for (int64_t first = 0; first < items; first += step) {
      const int64_t last = std::min(first + step, items);
      pieces.push_back({i, first, last, total});
      total += (last - first) * elements;
    }
  }
  const auto run = [&](int64_t begin, int64_t end) {
    auto piece = std::partition_point(pieces.begin(), pieces.end(), [&](const Piece& p) { return p.before < begin; });
    for (; piece != pieces.end() && piece->before < end; ++piece) {
      const Call& c = calls[piece->call];
      body(loops(c), c, piece->first, piece->last);
    }
  };
  if (total <= kGrain) return run(0, total);
  torch::stable::parallel_for(0, total, kGrain, run);
}

std::pair<int64_t, int64_t> tasks_of(const Geometry& g) {
  return {g.tasks(), g.task_elements()};
}
std::pair<int64_t, int64_t> channels_of(const Geometry& g) {
  return {g.channels, g.partials() / g.channels + 1};
}

void prepare_columns(const std::vector<Call>& calls) {
  for (const Call& c : calls)
    if (c.geometry.columns()) loops(c).prepare(c);
}

void forward_many(std::vector<Call>& calls, const Tensor&) {
  prepare_columns(calls);
  over_pieces(calls, tasks_of,
              [](const Loops& k, const Call& c, int64_t begin, int64_t end) { k.forward(c, begin, end); });
  over_pieces(calls, channels_of, [](const Loops& k, const Call& c, int64_t begin, int64_t end) {
    if (c.forward_sums > 0) k.sums(c, begin, end);
  });
}

void backward_many(std::vector<Call>& calls, const Tensor&) {
  prepare_columns(calls);
  over_pieces(calls, tasks_of,
              [](const Loops& k, const Call& c, int64_t begin, int64_t end) { k.backward(c, begin, end); });
  over_pieces(calls, channels_of,
              [](const Loops& k, const Call& c, int64_t begin, int64_t end) { k.finish(c, begin, end); });
}

const DirectLoops& direct() {
  const char* error = nullptr;
  const DirectLoops* loops = chosen_direct_loops(&error);
  STD_TORCH_CHECK(loops != nullptr, "fastq: ", error);
  return *loops;
}

const SatLoops& sat() {
  const char* error = nullptr;
  const SatLoops* loops = chosen_sat_loops(&error);
  STD_TORCH_CHECK(loops != nullptr, "fastq: ", error);
  return *loops;
}

template <class Job>
void over_chunks(const Job& c, void (*loop)(const Job&, int64_t, int64_t)) {
  const auto body = [&](int64_t begin, int64_t end) { loop(c, begin, end); };
  if (c.numel <= kGrain) return body(0, c.chunks());
  torch::stable::parallel_for(0, c.chunks(), kGrain / kChunk, body);
}

void direct_weight(DirectCall& c, const Tensor&) {
  over_chunks(c, direct().weight);
}

void direct_gradient(DirectCall& c, const Tensor&) {
  over_chunks(c, direct().gradient);
  direct().finish(c, 0, c.levels);
}

void direct_update(DirectCall& c, const Tensor&) {
  over_chunks(c, direct().update);
}

void sat_forward(SatCall& c, const Tensor&) {
  const SatLoops& k = sat();
  over_chunks(c, k.largest);
  k.find_largest(c);
  over_chunks(c, k.codes);
  k.find_scale(c);
  over_chunks(c, k.scale);
}

void sat_backward(SatCall& c, const Tensor&) {
  const SatLoops& k = sat();
  over_chunks(c, k.backward);
  k.correct(c);
}

// Torch's threads. Calls within one of its tasks run there.
void parallel_for(int64_t n, int64_t grain, const std::function<void(int64_t, int64_t)>& body) {
  torch::stable::parallel_for(0, n, grain, [&](int64_t begin, int64_t end) { body(begin, end); });
}

template <class C, void (*run)(const C&, const ParallelFor&)>
void with_threads(C& c, const Tensor&) {
  const char* error = nullptr;
  STD_TORCH_CHECK(gemm_loops_in_use(&error) != nullptr, "fastq: ", error);
  run(c, parallel_for);
}

}  // namespace

const GemmRunner kGemmCpu = {
    Layout::blocks,
    with_threads<GemmCall, run_product>,
    with_threads<QuantizeCall, run_quantize>,
    with_threads<QuantizeCall, run_quantize_rows>,
    with_threads<PackCall, run_pack>,
};
const DirectRunner kDirectCpu = {direct_weight, direct_gradient, direct_update};
const Runner kCpu = {
    .forward = forward,
    .backward = backward,
    .prepares_columns = true,
    .forward_many = forward_many,
    .backward_many = backward_many,
    .sat_forward = sat_forward,
    .sat_backward = sat_backward,
};

}  // namespace fastq
