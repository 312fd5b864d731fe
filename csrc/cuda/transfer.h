// Asynchronous copies between the host and a GPU, and the wait for them.
#pragma once

#include <cstddef>
#include <vector>

#include "cuda/runtime.h"

namespace lampfast::cuda {

class Transfer {
 public:
  Transfer(int device, cudaStream_t stream) : device_(device), stream_(stream) {}
  // Memory that copies use must not go back to its owner before they are done, even if an exception
  // ends the call.
  ~Transfer() {
    if (is_copying_) cudaStreamSynchronize(stream_);
  }
  Transfer(const Transfer&) = delete;
  Transfer& operator=(const Transfer&) = delete;

  cudaStream_t stream() const { return stream_; }

  // The values must stay where they are until the next wait.
  template <class T>
  void send(T* to, const std::vector<T>& values) {
    copy(to, values.data(), values.size() * sizeof(T), cudaMemcpyHostToDevice,
         "cudaMemcpyAsync to the device");
  }

  // The values are there after the next wait.
  template <class T>
  void receive(std::byte* to, const T* from, std::size_t count) {
    copy(to, from, count * sizeof(T), cudaMemcpyDeviceToHost, "cudaMemcpyAsync to the host");
  }

  template <class T>
  void clear(T* at, std::size_t count) {
    if (count == 0) return;
    check(cudaMemsetAsync(at, 0, count * sizeof(T), stream_), "cudaMemsetAsync");
  }

  void wait() {
    const DeviceGuard guard(device_);
    check(cudaStreamSynchronize(stream_), "cudaStreamSynchronize");
    is_copying_ = false;
  }

 private:
  void copy(void* to, const void* from, std::size_t bytes, cudaMemcpyKind kind, const char* name) {
    if (bytes == 0) return;
    is_copying_ = true;
    check(cudaMemcpyAsync(to, from, bytes, kind, stream_), name);
  }

  int device_;
  cudaStream_t stream_;
  bool is_copying_ = false;
};

}  // namespace lampfast::cuda
