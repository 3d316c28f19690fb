// A few threads that share loops.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>

namespace fastq {

using Loop = std::function<void(int64_t begin, int64_t end)>;

// Runs loops on `count` threads, the caller's among them, which are started when the first loop is long enough; on
// fewer where the system does not start them all. Any thread may call it: while one loop runs, those of other callers
// run on theirs alone. The parts of a loop do not depend on who runs them. A process that was forked starts its own.
class Threads {
 public:
  explicit Threads(int count);
  ~Threads();
  Threads(const Threads&) = delete;
  Threads& operator=(const Threads&) = delete;

  int count() const { return count_; }
  // body(begin, end) over [0, n), in pieces of at least `grain`. Throws what a body throws, when all have ended.
  void run(int64_t n, int64_t grain, const Loop& body);

 private:
  struct Crew;
  Crew* crew();

  const int count_;
  std::atomic<Crew*> crew_ = nullptr;
};

}  // namespace fastq
