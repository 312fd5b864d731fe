// Helpers spin between the stages of a call, and sleep between calls.
#include "cpu/thread_pool.h"

#include <cxxabi.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <exception>
#include <iterator>
#include <memory>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#include "cpu/float_environment.h"

namespace lampfast::cpu {
namespace {

// Polls for a while before its thread goes to sleep: the next stage of a call usually begins soon,
// and waking a thread takes long, on virtual machines some milliseconds at times.
template <class Ready>
void spin(Ready&& ready) {
  using Clock = std::chrono::steady_clock;
  const auto end = Clock::now() + std::chrono::milliseconds(2);
  do {
    for (int i = 0; i < 64; ++i) {
      if (ready()) return;
    }
    std::this_thread::yield();
  } while (Clock::now() < end);
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

// Helpers outlive calls, since starting a thread takes longer than many calls do; between calls
// they sleep. Nobody waits for a helper that has not entered a round of work: where the system
// takes long to wake it, the others have done its part.
class ThreadPool::Helpers {
 public:
  explicit Helpers(int count) : count_(static_cast<std::size_t>(count)) {}
  Helpers(const Helpers&) = delete;
  Helpers& operator=(const Helpers&) = delete;

  ~Helpers() {
    ends_ = true;
    announce(nullptr);
    for (std::thread& thread : threads_) thread.join();
  }

  // Never destroys them: threads that are not there cannot be joined.
  static void abandon(std::shared_ptr<Helpers>& helpers) {
    Helpers& abandoned = *helpers;
    abandoned.itself_ = std::move(helpers);
  }

  int count() const { return static_cast<int>(count_); }

  // Starts those that are missing.
  void start() {
    try {
      threads_.reserve(count_);
      while (threads_.size() < count_) {
        threads_.emplace_back(
            [this, worker = static_cast<int>(threads_.size()) + 1] { serve(worker); });
      }
    } catch (...) {
      // The system is short of threads or memory: the threads that did start, and the caller, do
      // all the work.
    }
  }

  // Calls work(worker) on the helpers that wake in time and, as worker 0, on this thread.
  void run(FunctionRef<void(int)> work) {
    is_resting_ = false;
    announce(&work);
    work(0);
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      work_ = nullptr;  // a helper that comes now is too late
    }
    const auto idle = [this] { return busy_.load() == 0; };
    spin(idle);
    std::unique_lock<std::mutex> lock(mutex_);
    finished_.wait(lock, idle);
  }

  // Lets helpers sleep until the next run(), after which they stay awake for a while.
  void rest() { is_resting_ = true; }

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
    bool can_work = false;  // else the other threads do it all
    for (std::int64_t seen = 0; !ends_;) {
      const FunctionRef<void(int)>* const work = enter_next_round(seen);
      if (work == nullptr) continue;
      can_work = can_work || prepare_to_throw();
      if (can_work) (*work)(worker);
      // Under the lock, or the caller could miss it between its last check and its wait.
      const std::lock_guard<std::mutex> lock(mutex_);
      if (--busy_ == 0) finished_.notify_one();
    }
  }

  // Waits for a round after the one that was seen last. Returns its work, or null if that is done
  // already.
  const FunctionRef<void(int)>* enter_next_round(std::int64_t& seen) {
    const auto is_next = [this, &seen] { return round_.load() != seen; };
    spin([&] { return is_next() || is_resting_.load(); });
    std::unique_lock<std::mutex> lock(mutex_);
    started_.wait(lock, is_next);
    seen = round_;
    if (work_ != nullptr) ++busy_;
    return work_;
  }

  const std::size_t count_;
  std::mutex mutex_;
  std::condition_variable started_;
  std::condition_variable finished_;
  std::atomic<std::int64_t> round_{0};
  std::atomic<int> busy_{0};  // helpers in the current round
  std::atomic<bool> is_resting_{false};
  std::atomic<bool> ends_{false};
  const FunctionRef<void(int)>* work_ = nullptr;
  std::vector<std::thread> threads_;
  std::shared_ptr<Helpers> itself_;  // see abandon()
};

namespace {

// The helpers of a thread, which are as many as its last call wanted. A child process that was
// forked has none of its parent's threads: it leaves their remains alone.
class HelpersOfThread {
 public:
  ~HelpersOfThread() { abandon_after_fork(); }

  std::shared_ptr<ThreadPool::Helpers> get(int count) {
    abandon_after_fork();
    if (helpers_ == nullptr || helpers_->count() != count) {
      helpers_ = std::make_shared<ThreadPool::Helpers>(count);
    }
    return helpers_;
  }

 private:
  void abandon_after_fork() {
    const pid_t process = getpid();
    if (process != process_ && helpers_ != nullptr) ThreadPool::Helpers::abandon(helpers_);
    process_ = process;
  }

  std::shared_ptr<ThreadPool::Helpers> helpers_;
  pid_t process_ = getpid();
};

thread_local HelpersOfThread helpers_of_thread;

}  // namespace

ThreadPool::ThreadPool(int threads) : size_(std::max(threads, 1)) {
  if (size_ > 1) helpers_ = helpers_of_thread.get(size_ - 1);
}

ThreadPool::~ThreadPool() {
  if (is_started_) helpers_->rest();
}

void ThreadPool::start_helpers(std::int64_t tasks, std::int64_t weights) {
  if (is_started_ || !wants_helpers(tasks, weights)) return;
  is_started_ = true;
  helpers_->start();
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
