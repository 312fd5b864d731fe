// Asynchronous copies between the host and a GPU, and the wait for them.
#pragma once

#include <cstddef>

#include "cuda/runtime.h"

namespace lampfast::cuda {

class Transfer {
 public:
  Transfer(int device, cudaStream_t stream) : device_(device), stream_(stream) {}
  // Memory that copies use must not go back to its owner before they are done, even if an exception
  // ends the call. Errors are not reported here, as they were or will be elsewhere.
  ~Transfer() {
    if (!is_copying_ && event_ == nullptr) return;
    bool has_failed = false;
    const auto call = [&](cudaError_t status) { has_failed = has_failed || status != cudaSuccess; };
    int previous = device_;
    call(cudaGetDevice(&previous));
    call(cudaSetDevice(device_));  // the stream 0 is that of the current device
    if (is_copying_)
      call(has_mark_ ? cudaEventSynchronize(event_) : cudaStreamSynchronize(stream_));
    if (event_ != nullptr) call(cudaEventDestroy(event_));
    call(cudaSetDevice(previous));
    if (has_failed) cudaGetLastError();  // or a later call of someone else would report it
  }
  Transfer(const Transfer&) = delete;
  Transfer& operator=(const Transfer&) = delete;

  cudaStream_t stream() const { return stream_; }

  // The values must stay where they are until the next wait. They should be in page-locked memory:
  // of other memory the driver makes a copy first, and may wait for the stream before.
  template <class T>
  void send(T* to, const T* values, std::size_t count) {
    copy(to, values, count * sizeof(T), cudaMemcpyHostToDevice, "cudaMemcpyAsync to the device");
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
    has_mark_ = false;
  }

  // No copies follow before the end, which then waits for those up to here, and not for what is
  // queued behind them.
  void mark_last_copy() {
    const DeviceGuard guard(device_);
    if (event_ == nullptr) {
      check(cudaEventCreateWithFlags(&event_, cudaEventDisableTiming), "cudaEventCreateWithFlags");
    }
    check(cudaEventRecord(event_, stream_), "cudaEventRecord");
    has_mark_ = true;
  }

 private:
  void copy(void* to, const void* from, std::size_t bytes, cudaMemcpyKind kind, const char* name) {
    if (bytes == 0) return;
    is_copying_ = true;
    has_mark_ = false;
    check(cudaMemcpyAsync(to, from, bytes, kind, stream_), name);
  }

  int device_;
  cudaStream_t stream_;
  cudaEvent_t event_ = nullptr;
  bool is_copying_ = false;
  bool has_mark_ = false;  // the event is behind the last copy
};

}  // namespace lampfast::cuda
