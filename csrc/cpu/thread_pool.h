// The threads that work together for one call of the engine.
#pragma once

#include <cstdint>
#include <memory>

#include "core/function_ref.h"
#include "core/test_sizes.h"

namespace lampfast::cpu {

// Has what a throw needs allocated for this thread: where the C library does that at a thread's
// first throw, it ends the process if it fails, and a throw for lack of memory is the likeliest
// one. Returns false if there is no memory; this thread must not throw then.
bool prepare_to_throw() noexcept;

// The calling thread and its helpers, for one call. Helpers start once there is enough to do and
// end with the thread that they help.
class ThreadPool {
 public:
  class Helpers;

  explicit ThreadPool(int threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int size() const { return size_; }

  // Below this many weights another thread costs more than it saves.
  static constexpr std::int64_t least_parallel_size = test_sizes ? 2 : 1 << 15;

  // Calls body(task, worker) for every task in [0, tasks), in no order (worker in [0, size())) in
  // the default float environment, and returns when all are done. `weights` is the work of all
  // tasks together, as a number of weights that are read in the same time. The first exception
  // stops the other tasks and is thrown again here.
  void for_each(std::int64_t tasks, std::int64_t weights,
                FunctionRef<void(std::int64_t task, int worker)> body);

  // Starts the helpers that such a for_each needs, which then fails only where its body does.
  void start_helpers(std::int64_t tasks, std::int64_t weights);

 private:
  bool wants_helpers(std::int64_t tasks, std::int64_t weights) const {
    return size_ > 1 && tasks > 1 && weights >= least_parallel_size;
  }

  const int size_;
  std::shared_ptr<Helpers> helpers_;  // of the thread that has made the pool; null if size_ is 1
  bool is_started_ = false;
};

}  // namespace lampfast::cpu
