#include "threads.h"

#include <unistd.h>

#include <algorithm>
#include <condition_variable>
#include <exception>
#include <memory>
#include <mutex>
#include <new>
#include <system_error>
#include <thread>
#include <vector>

namespace fastq {

// Pieces for each thread: the last ones to end are short.
constexpr int64_t kPieces = 4;

struct Threads::Crew {
  const pid_t process = getpid();
  std::mutex in_use;  // by the caller whose loop it is
  std::mutex mutex;   // of all that follows
  std::condition_variable begun, ended;
  std::vector<std::thread> threads;
  uint64_t loops = 0;
  int busy = 0;
  bool stop = false;
  const Loop* body = nullptr;
  int64_t n = 0, piece = 1;
  std::atomic<int64_t> next = 0;
  std::exception_ptr error;

  // Where the system starts no more threads, those that there are do.
  explicit Crew(int others) {
    threads.reserve(size_t(others));
    try {
      for (int i = 0; i < others; ++i) threads.emplace_back([this] { serve(); });
    } catch (const std::system_error&) {
    } catch (const std::bad_alloc&) {
    }
  }
  ~Crew() {
    {
      const std::lock_guard lock(mutex);
      stop = true;
    }
    begun.notify_all();
    for (std::thread& thread : threads) thread.join();
  }

  void work() {
    try {
      for (int64_t begin; (begin = next.fetch_add(piece)) < n;) (*body)(begin, std::min(begin + piece, n));
    } catch (...) {
      next = n;
      const std::lock_guard lock(mutex);
      error = std::current_exception();
    }
  }

  void serve() {
    uint64_t seen = 0;
    std::unique_lock lock(mutex);
    while (true) {
      begun.wait(lock, [&] { return stop || loops != seen; });
      if (stop) return;
      seen = loops;
      lock.unlock();
      work();
      lock.lock();
      if (--busy == 0) ended.notify_one();
    }
  }

  void run(int64_t length, int64_t of_piece, const Loop& loop) {
    {
      const std::lock_guard lock(mutex);
      body = &loop;
      n = length;
      piece = of_piece;
      next = 0;
      error = nullptr;
      busy = int(threads.size());
      ++loops;
    }
    begun.notify_all();
    work();
    std::unique_lock lock(mutex);
    ended.wait(lock, [&] { return busy == 0; });
    if (error != nullptr) std::rethrow_exception(error);
  }
};

Threads::Threads(int count) : count_(count) {}

Threads::~Threads() {
  Crew* const own = crew_.load();
  if (own != nullptr && own->process == getpid()) delete own;
}

// The one of this process. One that was forked has a copy of its parent's, whose threads are not there: it is left.
Threads::Crew* Threads::crew() {
  Crew* found = crew_.load();
  while (found == nullptr || found->process != getpid()) {
    auto fresh = std::make_unique<Crew>(count_ - 1);
    if (crew_.compare_exchange_strong(found, fresh.get())) return fresh.release();
  }
  return found;
}

void Threads::run(int64_t n, int64_t grain, const Loop& body) {
  if (n <= 0) return;
  const int64_t least = std::max<int64_t>(grain, 1);
  if (count_ <= 1 || n <= least) return body(0, n);
  Crew* const shared = crew();
  const std::unique_lock<std::mutex> lock(shared->in_use, std::try_to_lock);
  if (!lock.owns_lock()) return body(0, n);
  shared->run(n, std::max(least, n / (count_ * kPieces)), body);
}

}  // namespace fastq
