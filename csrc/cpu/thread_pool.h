// The threads that work together for one call of the engine.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>

#include "core/test_sizes.h"

namespace lampfast::cpu {

// The calling thread and its helpers. Helpers start once there is enough to do and end with the
// pool: a call has many short stages, and starting threads for each would cost more than some of
// them take.
class ThreadPool {
 public:
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
                const std::function<void(std::int64_t task, int worker)>& body);

 private:
  class Helpers;

  int size_;
  std::unique_ptr<Helpers> helpers_;
};

}  // namespace lampfast::cpu
