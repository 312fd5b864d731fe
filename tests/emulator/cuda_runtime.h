// The part of CUDA that lampfast uses, on the CPU: sources for nvcc compile with g++ -x c++, and a
// launch runs its kernel to the end on the calling thread.
#pragma once

#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "device.h"

#define CUDART_VERSION 13000

#define LAMPFAST_EMULATOR_ERRORS(ERROR)                                           \
  ERROR(cudaSuccess, 0, "no error")                                               \
  ERROR(cudaErrorInvalidValue, 1, "invalid argument")                             \
  ERROR(cudaErrorMemoryAllocation, 2, "out of memory")                            \
  ERROR(cudaErrorInvalidConfiguration, 9, "invalid configuration argument")       \
  ERROR(cudaErrorInsufficientDriver, 35,                                          \
        "CUDA driver version is insufficient for CUDA runtime version")           \
  ERROR(cudaErrorInvalidDeviceFunction, 98, "invalid device function")            \
  ERROR(cudaErrorNoDevice, 100, "no CUDA-capable device is detected")             \
  ERROR(cudaErrorInvalidDevice, 101, "invalid device ordinal")                    \
  ERROR(cudaErrorNoKernelImageForDevice, 209,                                     \
        "no kernel image is available for execution on the device")               \
  ERROR(cudaErrorUnsupportedPtxVersion, 222,                                      \
        "the provided PTX was compiled with an unsupported toolchain.")           \
  ERROR(cudaErrorInvalidResourceHandle, 400, "invalid resource handle")           \
  ERROR(cudaErrorIllegalAddress, 700, "an illegal memory access was encountered") \
  ERROR(cudaErrorLaunchFailure, 719, "unspecified launch failure")                \
  ERROR(cudaErrorNotSupported, 801, "operation not supported")

#define LAMPFAST_EMULATOR_ENUMERATOR(NAME, NUMBER, TEXT) NAME = NUMBER,
enum cudaError_t { LAMPFAST_EMULATOR_ERRORS(LAMPFAST_EMULATOR_ENUMERATOR) };
#undef LAMPFAST_EMULATOR_ENUMERATOR

enum cudaDeviceAttr { cudaDevAttrMultiProcessorCount = 16 };

enum cudaMemcpyKind {
  cudaMemcpyHostToHost,
  cudaMemcpyHostToDevice,
  cudaMemcpyDeviceToHost,
  cudaMemcpyDeviceToDevice,
  cudaMemcpyDefault,
};

using cudaStream_t = struct CUstream_st*;
using cudaEvent_t = struct CUevent_st*;
constexpr unsigned cudaEventDisableTiming = 2;
struct cudaLaunchAttribute;

struct cudaLaunchConfig_t {
  dim3 gridDim;
  dim3 blockDim;
  std::size_t dynamicSmemBytes;
  cudaStream_t stream;
  cudaLaunchAttribute* attrs;
  unsigned numAttrs;
};

struct cudaFuncAttributes {
  int maxThreadsPerBlock;
};

namespace emulator {

// What the machine is like, for tests to say at any time by environment variables:
//   LAMPFAST_EMULATOR_DRIVER   the error that every call answers: 35, the driver is too old; 100,
//                              there is no GPU
//   LAMPFAST_EMULATOR_DEVICES  how many GPUs there are
//   LAMPFAST_EMULATOR_NO_CODE  the GPU that this build has no code for, and the error that
//                              loading a kernel there is answered with, as in 1:209
inline const char* environment(const char* variable, const char* otherwise) {
  const char* const found = std::getenv(variable);
  return found == nullptr ? otherwise : found;
}
inline int device_count() { return std::atoi(environment("LAMPFAST_EMULATOR_DEVICES", "2")); }
inline cudaError_t driver() {
  return static_cast<cudaError_t>(std::atoi(environment("LAMPFAST_EMULATOR_DRIVER", "0")));
}

inline thread_local int current_device = 0;
inline thread_local cudaError_t last_error = cudaSuccess;

inline std::atomic<cudaError_t> failure{cudaErrorIllegalAddress};
inline std::atomic<int> calls_before_failure{-1};  // negative: none will fail

// What calls have cost that a GPU would be waited for, or kept busy with.
struct Costs {
  std::atomic<long long> waits{0};
  std::atomic<long long> launches{0};
  std::atomic<long long> copies{0};
  std::atomic<long long> bytes_to_device{0};
  std::atomic<long long> bytes_to_host{0};
  std::atomic<long long> nanoseconds{0};  // that emulating all that took
};
inline Costs costs;

// Adds the time until its end.
class Stopwatch {
 public:
  Stopwatch() = default;
  ~Stopwatch() {
    const auto took = Clock::now() - start_;
    costs.nanoseconds += std::chrono::duration_cast<std::chrono::nanoseconds>(took).count();
  }
  Stopwatch(const Stopwatch&) = delete;
  Stopwatch& operator=(const Stopwatch&) = delete;

 private:
  using Clock = std::chrono::steady_clock;

  Clock::time_point start_ = Clock::now();
};

// What a call has received is kept on a tape, from which the same call can be played again without
// its kernels and other copies: what it then takes is the time of the host.
enum class Tape { off, records, plays };
inline Tape tape = Tape::off;
inline std::vector<std::vector<std::byte>> received;
inline std::size_t next_received = 0;

inline void receive(void* to, const void* from, std::size_t bytes) {
  const auto* begin = static_cast<const std::byte*>(from);
  if (tape == Tape::plays) {
    const std::vector<std::byte>& kept = received.at(next_received++);
    if (kept.size() != bytes) throw std::logic_error("the tape has another call");
    begin = kept.data();
  }
  if (tape == Tape::records) received.emplace_back(begin, begin + bytes);
  if (bytes > 0) std::memcpy(to, begin, bytes);
}

// Makes a runtime call fail before it does anything: the next one, or the one after `later` others.
// Calls that only report errors do not count.
inline void fail_next(cudaError_t error, int later = 0) {
  failure = error;
  calls_before_failure = later;
}

// Whenever LAMPFAST_EMULATOR_FAIL changes, it says how many further calls succeed before one fails;
// if it is unset, none fails.
inline void heed_environment() {
  static thread_local std::string heeded = "-1";
  const std::string calls = environment("LAMPFAST_EMULATOR_FAIL", "-1");
  if (heeded == calls) return;
  heeded = calls;
  calls_before_failure = std::atoi(calls.c_str());
}

template <class Body>
cudaError_t call(Body&& body) {
  const Stopwatch stopwatch;
  heed_environment();
  const bool fails = calls_before_failure >= 0 && calls_before_failure-- == 0;
  const cudaError_t error = driver() != cudaSuccess ? driver() : fails ? failure.load() : body();
  if (error != cudaSuccess) last_error = error;
  return error;
}

template <class T>
cudaError_t answer(T* asked, T value) {
  return call([=] {
    *asked = value;
    return cudaSuccess;
  });
}

inline bool is_device(int device) { return device >= 0 && device < device_count(); }

// What the kernels of this build answer on the current GPU.
inline cudaError_t code() {
  const std::string missing = environment("LAMPFAST_EMULATOR_NO_CODE", "");
  const std::size_t colon = missing.find(':');
  if (colon == std::string::npos || std::stoi(missing) != current_device) return cudaSuccess;
  return static_cast<cudaError_t>(std::stoi(missing.substr(colon + 1)));
}

// A stream belongs to one GPU, and its handle says to which (tests/emulation.py). Kernels can only
// be launched there; null is the current GPU's.
inline bool is_of_current_device(cudaStream_t stream) {
  constexpr std::uintptr_t first = 0x5700;
  const auto handle = reinterpret_cast<std::uintptr_t>(stream);
  return handle == 0 || handle == first + static_cast<std::uintptr_t>(current_device);
}

inline bool can_launch(dim3 grid, dim3 block) {
  const auto within = [](dim3 size, unsigned x, unsigned y, unsigned z) {
    return size.x - 1 < x && size.y - 1 < y && size.z - 1 < z;  // 0 - 1 is the largest
  };
  return within(grid, 0x7fffffff, 65535, 65535) && within(block, 1024, 1024, 64) &&
         block.x * block.y * block.z <= most_threads;
}

}  // namespace emulator

// For tests, which find it by its name: the costs since the last call (emulation.py).
extern "C" __attribute__((visibility("default"), used)) inline void lampfast_emulator_costs(
    long long* taken) {
  using emulator::costs;
  for (auto* cost : {&costs.waits, &costs.launches, &costs.copies, &costs.bytes_to_device,
                     &costs.bytes_to_host, &costs.nanoseconds}) {
    *taken++ = cost->exchange(0);
  }
}

// For the measurement of the host's time (benchmarks/gpu_host.py): a Tape, which starts from its
// begin.
extern "C" __attribute__((visibility("default"), used)) inline void lampfast_emulator_tape(
    int mode) {
  emulator::tape = static_cast<emulator::Tape>(mode);
  emulator::next_received = 0;
  if (emulator::tape != emulator::Tape::plays) emulator::received.clear();
}

#define LAMPFAST_EMULATOR_NAME(NAME, NUMBER, TEXT) \
  if (error == NAME) return #NAME;
inline const char* cudaGetErrorName(cudaError_t error) {
  LAMPFAST_EMULATOR_ERRORS(LAMPFAST_EMULATOR_NAME)
  return "unrecognized error code";
}
#undef LAMPFAST_EMULATOR_NAME

#define LAMPFAST_EMULATOR_TEXT(NAME, NUMBER, TEXT) \
  if (error == NAME) return TEXT;
inline const char* cudaGetErrorString(cudaError_t error) {
  LAMPFAST_EMULATOR_ERRORS(LAMPFAST_EMULATOR_TEXT)
  return "unrecognized error code";
}
#undef LAMPFAST_EMULATOR_TEXT
#undef LAMPFAST_EMULATOR_ERRORS

inline cudaError_t cudaPeekAtLastError() { return emulator::last_error; }
inline cudaError_t cudaGetLastError() { return std::exchange(emulator::last_error, cudaSuccess); }

template <class... Expected>
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, void (*)(Expected...)) {
  return emulator::call([=] {
    attributes->maxThreadsPerBlock = 1024;
    return emulator::code();
  });
}

inline cudaError_t cudaGetDeviceCount(int* count) {
  return emulator::call([=] {
    *count = emulator::device_count();
    return *count > 0 ? cudaSuccess : cudaErrorNoDevice;
  });
}

inline cudaError_t cudaSetDevice(int device) {
  return emulator::call([=] {
    if (!emulator::is_device(device)) return cudaErrorInvalidDevice;
    emulator::current_device = device;
    return cudaSuccess;
  });
}

inline cudaError_t cudaGetDevice(int* device) {
  return emulator::answer(device, emulator::current_device);
}

inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device) {
  return emulator::call([=] {
    if (!emulator::is_device(device)) return cudaErrorInvalidDevice;
    if (attribute != cudaDevAttrMultiProcessorCount) return cudaErrorInvalidValue;
    *value = 4;
    return cudaSuccess;
  });
}

inline cudaError_t cudaDriverGetVersion(int* version) {
  return emulator::answer(version, CUDART_VERSION);
}

inline cudaError_t cudaRuntimeGetVersion(int* version) {
  return emulator::answer(version, CUDART_VERSION);
}

inline cudaError_t cudaStreamSynchronize(cudaStream_t) {
  return emulator::call([] {
    ++emulator::costs.waits;
    return cudaSuccess;
  });
}

// An event is an address that nothing lies at: what it would wait for has always happened.
inline cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned flags) {
  return emulator::call([=] {
    if (flags != cudaEventDisableTiming) return cudaErrorInvalidValue;
    *event = reinterpret_cast<cudaEvent_t>(new char);
    return cudaSuccess;
  });
}

inline cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t = nullptr) {
  return emulator::call([=] { return event == nullptr ? cudaErrorInvalidValue : cudaSuccess; });
}

inline cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  return emulator::call([=] { return event == nullptr ? cudaErrorInvalidValue : cudaSuccess; });
}

inline cudaError_t cudaEventDestroy(cudaEvent_t event) {
  delete reinterpret_cast<char*>(event);
  return cudaSuccess;
}

inline cudaError_t cudaMemcpyAsync(void* to, const void* from, std::size_t bytes,
                                   cudaMemcpyKind kind, cudaStream_t = nullptr) {
  return emulator::call([=] {
    const bool is_known = kind >= cudaMemcpyHostToHost && kind <= cudaMemcpyDefault;
    if (!is_known || (bytes > 0 && (to == nullptr || from == nullptr)))
      return cudaErrorInvalidValue;
    if (kind == cudaMemcpyDeviceToHost) {
      emulator::receive(to, from, bytes);
    } else if (bytes > 0 && emulator::tape != emulator::Tape::plays) {
      std::memcpy(to, from, bytes);
    }
    ++emulator::costs.copies;
    if (kind == cudaMemcpyHostToDevice)
      emulator::costs.bytes_to_device += static_cast<long long>(bytes);
    if (kind == cudaMemcpyDeviceToHost)
      emulator::costs.bytes_to_host += static_cast<long long>(bytes);
    return cudaSuccess;
  });
}

inline cudaError_t cudaMemsetAsync(void* to, int value, std::size_t bytes, cudaStream_t = nullptr) {
  return emulator::call([=] {
    if (bytes > 0 && to == nullptr) return cudaErrorInvalidValue;
    if (bytes > 0 && emulator::tape != emulator::Tape::plays) std::memset(to, value, bytes);
    return cudaSuccess;
  });
}

template <class Kernel>
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, Kernel, int, std::size_t) {
  return emulator::answer(blocks, 2);
}

// Throws what the kernel throws, or std::logic_error if its threads deadlock or do what CUDA leaves
// undefined.
template <class... Expected, class... Actual>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Expected...),
                               Actual&&... arguments) {
  return emulator::call([&] {
    if (!emulator::is_of_current_device(config->stream)) return cudaErrorInvalidResourceHandle;
    if (emulator::code() != cudaSuccess) return emulator::code();
    if (!emulator::can_launch(config->gridDim, config->blockDim))
      return cudaErrorInvalidConfiguration;
    if (config->dynamicSmemBytes > 0 || config->numAttrs > 0) return cudaErrorNotSupported;
    const auto launch = [&](Expected... converted) {
      emulator::run_grid(config->gridDim, config->blockDim, [&] { kernel(converted...); });
    };
    if (emulator::tape != emulator::Tape::plays) launch(std::forward<Actual>(arguments)...);
    ++emulator::costs.launches;
    return cudaSuccess;
  });
}
