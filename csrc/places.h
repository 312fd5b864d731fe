// The places that a call's layers live in, and which layer lives where.
#pragma once

#include <memory>
#include <vector>

#include "cpu/parallel.h"
#include "cuda/gpu.h"
#include "layer.h"
#include "place.h"

namespace lampfast {

// What of the machine a call may use.
struct Machine {
  int threads;
  std::vector<cuda::Gpu> gpus;
};

// Made at the beginning of a call, and for all of it arithmetic is as everywhere (parallel.h).
class Places {
 public:
  // Throws std::invalid_argument where a layer's device is not the machine's, or not its target's.
  Places(const Job& job, const Machine& machine);

  const Job& job() const { return job_; }
  cpu::Team& team() { return team_; }
  bool is_only_host() const {
    return parts_.size() == 1 && parts_[0].device == Layer::in_host_memory;
  }
  Place& of(std::size_t layer) { return *parts_[part_of_[layer]].place; }

  const Chosen& all() const { return all_; }

  // Calls body(place, those of the chosen that live there), for places that have any.
  template <class Body>
  void for_each(const Chosen& chosen, Body&& body) {
    if (parts_.size() == 1) {
      if (!chosen.empty()) body(*parts_[0].place, chosen);
      return;
    }
    for (Part& part : parts_) part.chosen.clear();
    for (const std::size_t i : chosen) parts_[part_of_[i]].chosen.push_back(i);
    for (Part& part : parts_) {
      if (!part.chosen.empty()) body(*part.place, part.chosen);
    }
  }

 private:
  struct Part {
    int device;
    std::unique_ptr<Place> place;
    Chosen chosen;
  };

  const cpu::DefaultFloatEnvironment environment_;
  const Job job_;
  cpu::Team team_;
  Chosen all_;
  std::vector<Part> parts_;
  std::vector<std::size_t> part_of_;  // of each layer
};

}  // namespace lampfast
