// The floor of a mask: one comparison of every weight with a threshold that is known, at the speed
// of memory. benchmarks/floors.py compiles it for the machine at hand.
#include <cstdint>

namespace {

// out[i] says whether the magnitude, which is the bits without the sign, is at least `key`.
template <class Bits>
void compare(const void* weights, std::int64_t count, std::uint64_t key, std::uint8_t* out) {
  const auto* bits = static_cast<const Bits*>(weights);
  const auto magnitude = static_cast<Bits>(static_cast<Bits>(~Bits{0}) >> 1);
  const auto bound = static_cast<Bits>(key);
  for (std::int64_t i = 0; i < count; ++i) out[i] = (bits[i] & magnitude) >= bound ? 1 : 0;
}

void write_chunk(const char* weights, std::int64_t bytes, std::int64_t count, std::uint64_t key,
                 std::uint8_t* out) {
  switch (bytes) {
    case 1:
      return compare<std::uint8_t>(weights, count, key, out);
    case 2:
      return compare<std::uint16_t>(weights, count, key, out);
    case 4:
      return compare<std::uint32_t>(weights, count, key, out);
    default:
      return compare<std::uint64_t>(weights, count, key, out);
  }
}

}  // namespace

struct Layer {
  const char* weights;
  std::int64_t bytes;  // of a weight
  std::int64_t count;
  std::uint64_t key;
  std::uint8_t* mask;
};

// One of `threads` threads' part: every so-manieth chunk of all layers.
extern "C" void write_masks(const Layer* layers, std::int64_t layer_count, std::int64_t thread,
                            std::int64_t threads) {
  constexpr std::int64_t chunk = 1 << 17;
  std::int64_t number = 0;
  for (std::int64_t l = 0; l < layer_count; ++l) {
    const Layer& layer = layers[l];
    for (std::int64_t begin = 0; begin < layer.count; begin += chunk, ++number) {
      if (number % threads != thread) continue;
      const std::int64_t count = layer.count - begin < chunk ? layer.count - begin : chunk;
      write_chunk(layer.weights + begin * layer.bytes, layer.bytes, count, layer.key,
                  layer.mask + begin);
    }
  }
}
