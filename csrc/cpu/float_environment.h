// The floating-point environment in which the engine computes, whatever the caller's is.
#pragma once

#include <cfenv>

namespace lampfast::cpu {

// While one exists, its thread rounds to nearest and does not flush subnormals to zero.
class FloatEnvironment {
 public:
  // FE_DFL_ENV also clears flush-to-zero and denormals-are-zero, which threads inherit from the one
  // that started them.
  FloatEnvironment() {
    std::fegetenv(&saved_);
    std::fesetenv(FE_DFL_ENV);
  }
  ~FloatEnvironment() { std::fesetenv(&saved_); }
  FloatEnvironment(const FloatEnvironment&) = delete;
  FloatEnvironment& operator=(const FloatEnvironment&) = delete;

 private:
  std::fenv_t saved_;
};

}  // namespace lampfast::cpu
