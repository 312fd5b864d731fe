// How long each stage of a call took.
#pragma once

#include <chrono>

namespace lampfast {

// In seconds.
struct StageTimes {
  double estimate = 0.0;
  double partition = 0.0;
  double narrow = 0.0;
  double select = 0.0;
  double commit = 0.0;
};

// Adds the time from one start() to the next, or to the clock's end, to the stage that was started.
// Does nothing if `times` is null.
class StageClock {
 public:
  explicit StageClock(StageTimes* times) : times_(times) {}
  ~StageClock() { stop(); }
  StageClock(const StageClock&) = delete;
  StageClock& operator=(const StageClock&) = delete;

  void start(double StageTimes::* stage) {
    if (times_ == nullptr) return;
    stop();
    stage_ = stage;
    start_ = Clock::now();
  }

 private:
  using Clock = std::chrono::steady_clock;

  void stop() {
    if (stage_ == nullptr) return;
    times_->*stage_ += std::chrono::duration<double>(Clock::now() - start_).count();
  }

  StageTimes* times_;
  double StageTimes::* stage_ = nullptr;
  Clock::time_point start_;
};

}  // namespace lampfast
