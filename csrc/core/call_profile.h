// What a call has cost: how long each stage took, and how much it read. As a wrong estimate costs
// reads and never the answer, only this tells a bad estimator from a good one.
#pragma once

#include <chrono>
#include <cstdint>

namespace lampfast {

// How many elements were read, of all layers together.
struct ReadCounts {
  std::int64_t drawn = 0;       // by draws
  std::int64_t read = 0;        // by probes and partitions
  std::int64_t candidates = 0;  // found inside the intervals of partitions
};

struct CallProfile {
  // In seconds:
  double estimate = 0.0;
  double partition = 0.0;
  double narrow = 0.0;
  double select = 0.0;
  double commit = 0.0;
  ReadCounts elements;
  // How often the interval of a layer did not hold its threshold.
  std::int64_t misses = 0;
};

// Adds the time from one start() to the next, or to the clock's end, to the stage that was started.
// Does nothing if `profile` is null.
class StageClock {
 public:
  explicit StageClock(CallProfile* profile) : profile_(profile) {}
  ~StageClock() { stop(); }
  StageClock(const StageClock&) = delete;
  StageClock& operator=(const StageClock&) = delete;

  void start(double CallProfile::* stage) {
    if (profile_ == nullptr) return;
    stop();
    stage_ = stage;
    start_ = Clock::now();
  }

  void count_misses(std::int64_t misses) {
    if (profile_ != nullptr) profile_->misses = misses;
  }

 private:
  using Clock = std::chrono::steady_clock;

  void stop() {
    if (stage_ == nullptr) return;
    profile_->*stage_ += std::chrono::duration<double>(Clock::now() - start_).count();
  }

  CallProfile* profile_;
  double CallProfile::* stage_ = nullptr;
  Clock::time_point start_;
};

}  // namespace lampfast
