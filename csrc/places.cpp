#include "places.h"

#include <algorithm>
#include <numeric>
#include <stdexcept>

#include "host.h"

namespace lampfast {
namespace {

const cuda::Gpu& gpu_of(const Machine& machine, int device) {
  for (const cuda::Gpu& gpu : machine.gpus) {
    if (gpu.device == device) return gpu;
  }
  throw std::invalid_argument("a layer's device is none of the call's");
}

}  // namespace

// The host comes first: it does its part while the GPUs' work, once started, is under way.
Places::Places(const Job& job, const Machine& machine)
    : job_(job), team_(machine.threads), all_(job.layers.size()), part_of_(job.layers.size()) {
  std::iota(all_.begin(), all_.end(), std::size_t{0});
  std::vector<int> devices;
  for (std::size_t i = 0; i < job.layers.size(); ++i) {
    const int device = job.layers[i].device;
    if (!job.targets.empty() && job.targets[i].device != device) {
      throw std::invalid_argument("a layer and its target live on different devices");
    }
    if (std::find(devices.begin(), devices.end(), device) == devices.end()) {
      devices.push_back(device);
    }
  }
  if (devices.empty()) devices.push_back(Layer::in_host_memory);
  std::sort(devices.begin(), devices.end());
  for (const int device : devices) {
    const bool is_host = device == Layer::in_host_memory;
    auto place = is_host ? host_place(job_, team_) : cuda::gpu_place(job_, gpu_of(machine, device));
    parts_.push_back({device, std::move(place), {}});
  }
  for (std::size_t i = 0; i < job.layers.size(); ++i) {
    while (parts_[part_of_[i]].device != job.layers[i].device) ++part_of_[i];
  }
}

}  // namespace lampfast
