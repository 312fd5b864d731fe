// Where the survey keeps the magnitudes inside the brackets, within a fixed budget of memory.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <memory>
#include <mutex>
#include <vector>

#include "tiny.h"

namespace lampfast {

// Keys of one chunk of a layer, in the chunk's order, packed in the layer's own key type.
struct Segment {
  std::byte* keys;
  std::int64_t count;
  std::int64_t chunk_begin;
};

// Hands out memory in slabs until the budget is spent.
class CandidateStore {
 public:
  static constexpr std::int64_t slab_bytes = tiny ? 64 : 1 << 14;

  static constexpr std::int64_t no_limit = std::numeric_limits<std::int64_t>::max();

  explicit CandidateStore(std::int64_t budget_bytes)
      : limited_(budget_bytes != no_limit), left_(budget_bytes) {}

  // How many keys a layer may store. One with more inside its bracket than a guess ever leaves
  // there by chance has ties, which would take the room of all other layers' candidates.
  std::int64_t share(std::int64_t layer_size) const {
    return limited_ ? layer_size / 16 + (tiny ? 16 : 1 << 13) : no_limit;
  }

  std::byte* take_slab() {
    if (left_.fetch_sub(slab_bytes) < slab_bytes) {
      left_.fetch_add(slab_bytes);
      return nullptr;
    }
    auto slab = std::make_unique<std::byte[]>(slab_bytes);
    std::byte* address = slab.get();
    const std::lock_guard<std::mutex> lock(mutex_);
    slabs_.push_back(std::move(slab));
    return address;
  }

 private:
  bool limited_;
  std::atomic<std::int64_t> left_;
  std::mutex mutex_;
  std::vector<std::unique_ptr<std::byte[]>> slabs_;
};

// One thread's way into the store: appends keys, layer after layer, to the slab that it holds.
class CandidateWriter {
 public:
  explicit CandidateWriter(CandidateStore& store) : store_(&store) {}

  // False when the budget is spent; what was appended for the chunk is then incomplete.
  template <class Key>
  bool append(const Key* keys, std::int64_t count, std::int64_t chunk_begin,
              std::vector<Segment>& segments) {
    constexpr auto size = std::int64_t{sizeof(Key)};
    used_ = (used_ + size - 1) / size * size;
    while (count > 0) {
      const std::int64_t taken = std::min(count, (CandidateStore::slab_bytes - used_) / size);
      if (slab_ == nullptr || taken == 0) {
        slab_ = store_->take_slab();
        used_ = 0;
        if (slab_ == nullptr) return false;
        continue;
      }
      std::byte* to = slab_ + used_;
      std::memcpy(to, keys, static_cast<std::size_t>(taken * size));
      const bool continues = !segments.empty() && segments.back().chunk_begin == chunk_begin &&
                             segments.back().keys + segments.back().count * size == to;
      if (continues) {
        segments.back().count += taken;
      } else {
        segments.push_back({to, taken, chunk_begin});
      }
      used_ += taken * size;
      keys += taken;
      count -= taken;
    }
    return true;
  }

 private:
  CandidateStore* store_;
  std::byte* slab_ = nullptr;
  std::int64_t used_ = 0;
};

}  // namespace lampfast
