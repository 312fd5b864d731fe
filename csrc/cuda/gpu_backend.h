// The GPU backend. A CPU-only build links stub.cpp instead.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "backend.h"

namespace lampfast::cuda {

bool built();

// Whether there is a driver that this build can use, and a GPU.
bool usable();
// Whether this build also has code for a GPU, which only loading a kernel there can tell.
bool runs_on(int device);

// One GPU as the caller lends it: work is queued on the stream, in memory that the caller owns.
struct Gpu {
  int device;
  std::uintptr_t stream;
  std::byte* memory;  // on the device
  std::int64_t bytes;
  std::byte* host_memory;  // page-locked, for results
  std::int64_t host_bytes;
};

// How much of either kind of memory a call needs for one device.
struct Needs {
  std::int64_t bytes;
  std::int64_t host_bytes;
};
Needs needs(const std::vector<Layer>& layers, int device);
Needs needs_of_scores(const std::vector<Layer>& layers, int device);

// Throws std::runtime_error that names the CUDA call that failed, as all its methods do.
std::unique_ptr<Backend> gpu_backend(const Job& job, const Gpu& gpu);

}  // namespace lampfast::cuda
