// The CUDA runtime with its errors as exceptions, and what all launches have in common.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <stdexcept>
#include <string>
#include <utility>

#include "core/test_sizes.h"

namespace lampfast::cuda {

inline void check(cudaError_t status, const char* call) {
  if (status == cudaSuccess) return;
  cudaGetLastError();  // or the next call of anybody's would report it again
  throw std::runtime_error(std::string(call) + " failed: " + cudaGetErrorName(status) + ", " +
                           cudaGetErrorString(status));
}

// While it lives, calls of this thread go to one device; then to the one before.
class DeviceGuard {
 public:
  explicit DeviceGuard(int device) {
    check(cudaGetDevice(&previous_), "cudaGetDevice");
    if (device != previous_) check(cudaSetDevice(device), "cudaSetDevice");
    changed_ = device != previous_;
  }
  ~DeviceGuard() {
    if (changed_) cudaSetDevice(previous_);
  }
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

 private:
  int previous_ = 0;
  bool changed_ = false;
};

constexpr int block_threads = test_sizes ? 64 : 256;

// `name` is for the error.
template <class... Expected, class... Actual>
void launch(const char* name, void (*kernel)(Expected...), std::int64_t blocks, cudaStream_t stream,
            Actual&&... arguments) {
  if (blocks == 0) return;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(blocks));
  config.blockDim = dim3(block_threads);
  config.stream = stream;
  check(cudaLaunchKernelEx(&config, kernel, std::forward<Actual>(arguments)...), name);
}

// Has a kernel loaded now rather than when it is first launched.
template <class... Expected>
void load(const char* name, void (*kernel)(Expected...)) {
  cudaFuncAttributes attributes;
  check(cudaFuncGetAttributes(&attributes, kernel), name);
}

}  // namespace lampfast::cuda
