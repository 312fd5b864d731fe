// Counting sort: tells the place that each element takes when elements are put together by group,
// in each group in the order in which they are visited. Places can be asked for again, so that what
// was dealt to them can be collected.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "core/strata.h"
#include "core/test_sizes.h"
#include "cpu/chunks.h"
#include "cpu/thread_pool.h"

namespace lampfast::cpu {

// `Index` must be able to count all elements. They are visited in parts, one thread each:
// visit(begin, end, body) calls body(index, key) for the elements [begin, end) in order.
template <class Index>
class Grouping {
 public:
  // An element's group is key >> rest_bits.
  template <class Visit>
  Grouping(std::int64_t size, std::size_t groups, int rest_bits, ThreadPool& pool, Visit&& visit)
      : size_(size),
        rest_bits_(rest_bits),
        pool_(pool),
        parts_(std::clamp<std::int64_t>(size / part_size, 1, 4 * pool.size())),
        starts_(groups + 1),
        places_(static_cast<std::size_t>(parts_)) {
    for_each_part([&](std::size_t part, std::int64_t begin, std::int64_t end) {
      places_[part].resize(groups);
      Index* counts = places_[part].data();
      visit(begin, end, [=](std::int64_t, auto key) { ++counts[key >> rest_bits]; });
    });
    Index start = 0;
    for (std::size_t group = 0; group < groups; ++group) {
      starts_[group] = start;
      for (std::vector<Index>& places : places_) {
        const Index count = places[group];
        places[group] = start;
        start += count;
      }
    }
    starts_[groups] = start;
  }

  // The first place of each group, and the end of the last.
  const std::vector<Index>& starts() const { return starts_; }

  // Calls body(index, key, place) for every element.
  template <class Visit, class Body>
  void for_each(Visit&& visit, Body&& body) {
    // Keys that another thread has changed since they were counted could lead beyond the last
    // place.
    const auto last = static_cast<Index>(size_ - 1);
    for_each_part([&](std::size_t part, std::int64_t begin, std::int64_t end) {
      Index* next = places_[part].data();
      visit(begin, end, [&, next, last, rest_bits = rest_bits_](std::int64_t index, auto key) {
        body(index, key, std::min(next[key >> rest_bits]++, last));
      });
    });
    // Every part's place in a group is now where the next part's was at first, so moving all by one
    // part restores them.
    std::rotate(places_.begin(), places_.end() - 1, places_.end());
    std::copy(starts_.begin(), starts_.end() - 1, places_[0].begin());
  }

 private:
  static constexpr std::int64_t part_size = test_sizes ? 2 : 1 << 17;

  template <class Body>
  void for_each_part(Body&& body) {
    pool_.for_each(parts_, size_, [&](std::int64_t part, int) {
      body(static_cast<std::size_t>(part), part_begin(size_, parts_, part),
           part_begin(size_, parts_, part + 1));
    });
  }

  std::int64_t size_;
  int rest_bits_;
  ThreadPool& pool_;
  std::int64_t parts_;
  std::vector<Index> starts_;
  std::vector<std::vector<Index>> places_;  // by part and group: where its next element goes
};

}  // namespace lampfast::cpu
