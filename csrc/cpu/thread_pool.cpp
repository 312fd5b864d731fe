// Helpers spin for a moment between stages, then sleep until the next one.
#include "cpu/thread_pool.h"

#include <cxxabi.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <exception>
#include <iterator>
#include <mutex>
#include <thread>
#include <vector>

#include "cpu/float_environment.h"

namespace lampfast::cpu {
namespace {

// Polls for a short while before its thread goes to sleep: the next stage of a call usually begins
// soon, and waking a thread takes long.
template <class Ready>
bool spin(Ready&& ready) {
  using Clock = std::chrono::steady_clock;
  const auto end = Clock::now() + std::chrono::microseconds(200);
  do {
    for (int i = 0; i < 64; ++i) {
      if (ready()) return true;
    }
    std::this_thread::yield();
  } while (Clock::now() < end);
  return false;
}

}  // namespace

bool prepare_to_throw() noexcept {
  // They are thread-local data of a library that Python has loaded, which glibc allocates at their
  // first use, with malloc. Blocks that a thread has freed are kept for it, by size, so that one of
  // these serves.
  void* volatile blocks[16];  // volatile, or compilers leave the calls out
  std::size_t taken = 0;
  while (taken < std::size(blocks) && (blocks[taken] = std::malloc(16 * (taken + 1))) != nullptr) {
    ++taken;
  }
  const bool is_prepared = taken == std::size(blocks);
  while (taken > 0) std::free(blocks[--taken]);
  return is_prepared && abi::__cxa_get_globals() != nullptr;
}

class ThreadPool::Helpers {
 public:
  explicit Helpers(int count) {
    try {
      threads_.reserve(static_cast<std::size_t>(count));
      for (int worker = 1; worker <= count; ++worker) {
        threads_.emplace_back([this, worker] { serve(worker); });
      }
    } catch (...) {
      // The system is short of threads or memory: the threads that did start, and the caller, do
      // all the work.
    }
  }

  ~Helpers() {
    announce(nullptr);
    for (std::thread& thread : threads_) thread.join();
  }

  // Calls work(worker) on every helper and, as worker 0, here.
  void run(FunctionRef<void(int)> work) {
    busy_ = static_cast<int>(threads_.size());
    announce(&work);
    work(0);
    const auto idle = [this] { return busy_.load() == 0; };
    if (spin(idle)) return;
    std::unique_lock<std::mutex> lock(mutex_);
    finished_.wait(lock, idle);
  }

 private:
  void announce(const FunctionRef<void(int)>* work) {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      work_ = work;
      ++round_;
    }
    started_.notify_all();
  }

  void serve(int worker) {
    const bool can_work = prepare_to_throw();  // else the other threads do it all
    for (std::int64_t seen = 0;; ++seen) {
      const auto next = [this, seen] { return round_.load() != seen; };
      if (!spin(next)) {
        std::unique_lock<std::mutex> lock(mutex_);
        started_.wait(lock, next);
      }
      const FunctionRef<void(int)>* work = work_;
      if (work == nullptr) return;
      if (can_work) (*work)(worker);
      if (--busy_ == 0) {
        // Under the lock, or the caller could miss it between its last check and its wait.
        const std::lock_guard<std::mutex> lock(mutex_);
        finished_.notify_one();
      }
    }
  }

  std::mutex mutex_;
  std::condition_variable started_;
  std::condition_variable finished_;
  std::atomic<std::int64_t> round_{0};
  std::atomic<int> busy_{0};
  const FunctionRef<void(int)>* work_ = nullptr;
  std::vector<std::thread> threads_;
};

ThreadPool::ThreadPool(int threads) : size_(std::max(threads, 1)) {}

ThreadPool::~ThreadPool() = default;

void ThreadPool::start_helpers(std::int64_t tasks, std::int64_t weights) {
  if (!helpers_ && wants_helpers(tasks, weights)) helpers_ = std::make_unique<Helpers>(size_ - 1);
}

void ThreadPool::for_each(std::int64_t tasks, std::int64_t weights,
                          FunctionRef<void(std::int64_t task, int worker)> body) {
  // Small tasks are claimed several at a time, so that claiming them does not take longer than
  // doing them.
  constexpr std::int64_t weights_at_a_time = test_sizes ? 8 : 1 << 13;
  const std::int64_t fair = std::max<std::int64_t>(tasks / (4 * size_), 1);
  const std::int64_t grain =
      std::clamp<std::int64_t>(weights > 0 ? weights_at_a_time * tasks / weights : fair, 1, fair);
  std::atomic<std::int64_t> next{0};
  std::exception_ptr failure;
  std::mutex failure_mutex;
  const auto work = [&](int worker) {
    const FloatEnvironment environment;
    try {
      for (std::int64_t begin = next.fetch_add(grain); begin < tasks;
           begin = next.fetch_add(grain)) {
        const std::int64_t end = std::min(begin + grain, tasks);
        for (std::int64_t task = begin; task < end; ++task) body(task, worker);
      }
    } catch (...) {
      const std::lock_guard<std::mutex> lock(failure_mutex);
      if (!failure) failure = std::current_exception();
      next = tasks;
    }
  };
  start_helpers(tasks, weights);
  if (wants_helpers(tasks, weights)) {
    helpers_->run(work);
  } else {
    work(0);
  }
  if (failure) std::rethrow_exception(failure);
}

}  // namespace lampfast::cpu
