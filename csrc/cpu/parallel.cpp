#include "cpu/parallel.h"

#include <algorithm>
#include <atomic>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

namespace lampfast::cpu {

// FE_DFL_ENV also clears flush-to-zero and denormals-are-zero, which threads inherit from the one
// that started them.
DefaultFloatEnvironment::DefaultFloatEnvironment() {
  std::fegetenv(&saved_);
  std::fesetenv(FE_DFL_ENV);
}

DefaultFloatEnvironment::~DefaultFloatEnvironment() { std::fesetenv(&saved_); }

void parallel_for(int threads, std::int64_t tasks,
                  const std::function<void(std::int64_t task, int worker)>& body) {
  std::atomic<std::int64_t> next{0};
  std::exception_ptr failure;
  std::mutex failure_mutex;

  const auto work = [&](int worker) {
    const DefaultFloatEnvironment environment;
    try {
      for (std::int64_t task = next++; task < tasks; task = next++) body(task, worker);
    } catch (...) {
      const std::lock_guard<std::mutex> lock(failure_mutex);
      if (!failure) failure = std::current_exception();
      next = tasks;
    }
  };

  std::vector<std::thread> helpers;
  const auto wanted = static_cast<int>(std::min<std::int64_t>(threads, tasks));
  try {
    helpers.reserve(static_cast<std::size_t>(std::max(wanted, 0)));
    for (int worker = 1; worker < wanted; ++worker) helpers.emplace_back(work, worker);
  } catch (...) {
    // A system short of threads or memory: those that did start, and this one, do all the work.
  }
  work(0);
  for (auto& helper : helpers) helper.join();
  if (failure) std::rethrow_exception(failure);
}

}  // namespace lampfast::cpu
