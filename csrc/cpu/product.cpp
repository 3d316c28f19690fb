#include "product.h"

#include <algorithm>
#include <cstdlib>
#include <new>
#include <stdexcept>

#include "dispatch.h"

namespace fastq {

FASTQ_CPU_TABLE(GemmLoops, gemm_loops)

namespace {

// Memory that one thread uses again and again: fresh pages cost more than what is computed in them.
class Memory {
 public:
  ~Memory() { std::free(data_); }
  uint8_t* of(int64_t bytes) {
    if (bytes > size_) {
      std::free(data_);
      size_ = 0;
      const int64_t whole = (bytes + kAlignment - 1) / kAlignment * kAlignment;
      data_ = static_cast<uint8_t*>(std::aligned_alloc(kAlignment, size_t(whole)));
      if (data_ == nullptr) throw std::bad_alloc();
      size_ = whole;
    }
    return data_;
  }

 private:
  static constexpr int64_t kAlignment = 4096;
  uint8_t* data_ = nullptr;
  int64_t size_ = 0;
};

thread_local Memory of_task, of_call;

const GemmLoops& loops() {
  const char* error = nullptr;
  const GemmLoops* found = gemm_loops_in_use(&error);
  if (found == nullptr) throw std::runtime_error(error);
  return *found;
}

constexpr int64_t kProductGrain = 262144;  // multiplications that a second thread is worth
constexpr int64_t kElementGrain = 32768;   // elements
constexpr int64_t kPackGrain = 131072;     // bytes
constexpr int64_t kPackedBytes = 32 << 20;

template <class Body>
void over(int64_t n, int64_t work, int64_t grain, const ParallelFor& parallel, const Body& body) {
  work = std::max<int64_t>(work, 1);
  if (n <= 1 || n <= grain / work) return body(0, n);
  parallel(n, grain / work + 1, body);
}

}  // namespace

uint8_t* task_memory(int64_t bytes) {
  return of_task.of(bytes);
}

const GemmLoops* gemm_loops_in_use(const char** error) {
  return chosen_gemm_loops(error);
}

void run_product(const GemmCall& c, const ParallelFor& parallel) {
  const GemmLoops& k = loops();
  GemmPlan plan = k.plan(c);
  const auto run = [&](int64_t first, int64_t count, const uint8_t* packed) {
    over(count, plan.work, kProductGrain, parallel,
         [&](int64_t begin, int64_t end) { k.product(c, plan, packed, first + begin, first + end); });
  };
  if (!plan.shared || plan.stride == 0) return run(0, plan.count(), nullptr);
  // As many tasks' rows at a time as memory is not spent on.
  const int64_t together = std::max<int64_t>(kPackedBytes / (plan.rows * plan.stride + 1), 1);
  for (int64_t task = 0; task < plan.row_tasks; task += together) {
    const int64_t tasks = std::min(together, plan.row_tasks - task);
    plan.first_row = task * plan.rows;
    const int64_t rows = std::min(tasks * plan.rows, c.m - plan.first_row);
    uint8_t* packed = of_call.of(tasks * plan.rows * plan.stride);
    over(rows, plan.stride, kPackGrain, parallel,
         [&](int64_t begin, int64_t end) { k.pack(c, plan, packed, plan.first_row + begin, plan.first_row + end); });
    run(task * plan.column_tasks, tasks * plan.column_tasks, packed);
  }
}

void run_quantize(const QuantizeCall& c, const ParallelFor& parallel) {
  const GemmLoops& k = loops();
  over((c.k + kChunk - 1) / kChunk, kChunk, kElementGrain, parallel,
       [&](int64_t begin, int64_t end) { k.quantize(c, begin, end); });
}

void run_quantize_rows(const QuantizeCall& c, const ParallelFor& parallel) {
  const GemmLoops& k = loops();
  over(c.rows, c.k, kElementGrain, parallel, [&](int64_t begin, int64_t end) { k.rows(c, begin, end); });
}

void run_pack(const PackCall& c, const ParallelFor& parallel) {
  const GemmLoops& k = loops();
  over(stored_rows(Layout::blocks, c.n), c.k * kBlockRows, kElementGrain, parallel,
       [&](int64_t begin, int64_t end) { k.blocks(c, begin, end); });
}

}  // namespace fastq
