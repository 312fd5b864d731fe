// Memory in large pages, where the system has them: first touches and scattered accesses then cost
// less.
#pragma once

#include <cstddef>
#include <memory>

namespace lampfast::cpu {

// Asks for large pages for memory that is about to be written. It is only a hint.
void use_large_pages(void* memory, std::size_t bytes);

// A buffer that is used again and again, since the first touch of new memory is slow.
class ReusedBuffer {
 public:
  // Uninitialised memory for `count` trivial items; what was there before is lost.
  template <class Item>
  Item* of(std::size_t count) {
    const std::size_t bytes = count * sizeof(Item);
    if (bytes > bytes_) {
      memory_.reset();
      memory_.reset(new std::byte[bytes]);
      bytes_ = bytes;
      use_large_pages(memory_.get(), bytes);
    }
    return reinterpret_cast<Item*>(memory_.get());
  }

 private:
  std::unique_ptr<std::byte[]> memory_;
  std::size_t bytes_ = 0;
};

}  // namespace lampfast::cpu
