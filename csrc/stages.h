// How long each stage of a call took, for those who ask.
#pragma once

#include <chrono>

namespace lampfast {

// In seconds.
struct Stages {
  double guess = 0.0;
  double survey = 0.0;
  double select = 0.0;
  double apply = 0.0;
};

// Adds the time of its life to a stage, where there is one to add to.
class StageTimer {
 public:
  StageTimer(Stages* stages, double Stages::* stage)
      : seconds_(stages == nullptr ? nullptr : &(stages->*stage)), start_(Clock::now()) {}
  ~StageTimer() {
    if (seconds_ != nullptr) {
      *seconds_ += std::chrono::duration<double>(Clock::now() - start_).count();
    }
  }
  StageTimer(const StageTimer&) = delete;
  StageTimer& operator=(const StageTimer&) = delete;

 private:
  using Clock = std::chrono::steady_clock;

  double* seconds_;
  Clock::time_point start_;
};

}  // namespace lampfast
