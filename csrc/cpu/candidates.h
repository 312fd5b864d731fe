// Where a partition stores candidates (the keys inside its intervals), within a fixed budget of
// memory.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <memory>
#include <utility>
#include <vector>

#include "core/candidate_budget.h"
#include "core/test_sizes.h"

namespace lampfast::cpu {

// The bytes that candidates may still take.
class CandidateBudget {
 public:
  static constexpr std::int64_t no_limit = std::numeric_limits<std::int64_t>::max();

  explicit CandidateBudget(std::int64_t bytes) : is_limited_(bytes != no_limit), left_(bytes) {}

  // How many keys a layer may store.
  std::int64_t share(std::int64_t layer_size) const {
    return is_limited_ ? candidate_share(layer_size) : no_limit;
  }

  bool take(std::int64_t bytes) {
    if (left_.fetch_sub(bytes) >= bytes) return true;
    left_.fetch_add(bytes);
    return false;
  }
  void give_back(std::int64_t bytes) { left_.fetch_add(bytes); }

 private:
  bool is_limited_;
  std::atomic<std::int64_t> left_;
};

// Memory for keys, taken from the budget until it is freed: as a rule for the candidates of one or
// several chunks.
using Slab = std::shared_ptr<std::byte[]>;
constexpr std::int64_t slab_bytes = test_sizes ? 64 : 1 << 14;

// Null when the budget is spent.
inline Slab take_slab(const std::shared_ptr<CandidateBudget>& budget,
                      std::int64_t bytes = slab_bytes) {
  if (!budget->take(bytes)) return nullptr;
  return Slab(new std::byte[static_cast<std::size_t>(bytes)],
              [budget, bytes](const std::byte* slab) {
                delete[] slab;
                budget->give_back(bytes);
              });
}

// Keys of one chunk of a layer, in the chunk's order, packed in the layer's own key type.
struct CandidateSegment {
  Slab slab;
  std::byte* keys;
  std::int64_t count;
  std::int64_t chunk_begin;
};

// Appends keys to slabs, chunk after chunk. Every thread has a writer of its own.
class CandidateWriter {
 public:
  explicit CandidateWriter(std::shared_ptr<CandidateBudget> budget) : budget_(std::move(budget)) {}

  // False when the budget is spent; what was appended for the chunk is then incomplete.
  template <class Key>
  bool append(const Key* keys, std::int64_t count, std::int64_t chunk_begin,
              std::vector<CandidateSegment>& segments) {
    constexpr auto size = std::int64_t{sizeof(Key)};
    used_ = (used_ + size - 1) / size * size;
    while (count > 0) {
      const std::int64_t taken = std::min(count, (slab_bytes - used_) / size);
      if (slab_ == nullptr || taken == 0) {
        slab_ = take_slab(budget_);
        used_ = 0;
        if (slab_ == nullptr) return false;
        continue;
      }
      std::byte* to = slab_.get() + used_;
      std::memcpy(to, keys, static_cast<std::size_t>(taken * size));
      // Two slabs may happen to be adjacent in memory, but a segment keeps only one of them alive
      // and must not reach into the other.
      const bool continues = !segments.empty() && segments.back().slab == slab_ &&
                             segments.back().chunk_begin == chunk_begin &&
                             segments.back().keys + segments.back().count * size == to;
      if (continues) {
        segments.back().count += taken;
      } else {
        segments.push_back({slab_, to, taken, chunk_begin});
      }
      used_ += taken * size;
      keys += taken;
      count -= taken;
    }
    return true;
  }

 private:
  std::shared_ptr<CandidateBudget> budget_;
  Slab slab_;
  std::int64_t used_ = 0;
};

}  // namespace lampfast::cpu
