// Runs independent tasks on a few threads, each with the same floating-point environment.
#pragma once

#include <cfenv>
#include <cstdint>
#include <functional>

namespace lampfast::cpu {

// While it lives, this thread rounds to nearest and its subnormals count, whatever the caller set.
class DefaultFloatEnvironment {
 public:
  DefaultFloatEnvironment();
  ~DefaultFloatEnvironment();
  DefaultFloatEnvironment(const DefaultFloatEnvironment&) = delete;
  DefaultFloatEnvironment& operator=(const DefaultFloatEnvironment&) = delete;

 private:
  std::fenv_t saved_;
};

// Calls body(task, worker) for every task in [0, tasks), in no order, on at most `threads` threads
// (worker in [0, threads)) in the default float environment, and returns when all are done. The
// first exception stops the others and is thrown again here.
void parallel_for(int threads, std::int64_t tasks,
                  const std::function<void(std::int64_t task, int worker)>& body);

}  // namespace lampfast::cpu
