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
  cudaGetLastError();  // clears it, or a later call of someone else would report it again
  throw std::runtime_error(std::string(call) + " failed: " + cudaGetErrorName(status) + ", " +
                           cudaGetErrorString(status));
}

// While one exists, CUDA calls of its thread go to the device; afterwards they go to the previous
// one again.
class DeviceGuard {
 public:
  explicit DeviceGuard(int device) {
    check(cudaGetDevice(&previous_), "cudaGetDevice");
    if (device != previous_) check(cudaSetDevice(device), "cudaSetDevice");
    has_changed_ = device != previous_;
  }
  ~DeviceGuard() {
    if (has_changed_) cudaSetDevice(previous_);
  }
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

 private:
  int previous_ = 0;
  bool has_changed_ = false;
};

constexpr int block_threads = test_sizes ? 64 : 256;

// `name` appears in the error message.
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

// Whether the build has code of a kernel that the current device and its driver can run.
template <class... Expected>
bool has_code(void (*kernel)(Expected...)) {
  cudaFuncAttributes attributes;
  const cudaError_t status = cudaFuncGetAttributes(&attributes, kernel);
  const bool is_missing = status == cudaErrorNoKernelImageForDevice ||
                          status == cudaErrorInvalidDeviceFunction ||
                          status == cudaErrorUnsupportedPtxVersion;
  if (is_missing) {
    cudaGetLastError();
  } else {
    check(status, "cudaFuncGetAttributes");
  }
  return !is_missing;
}

// Loads a kernel now rather than at its first launch.
template <class... Expected>
void load(const char* name, void (*kernel)(Expected...)) {
  cudaFuncAttributes attributes;
  check(cudaFuncGetAttributes(&attributes, kernel), name);
}

}  // namespace lampfast::cuda
