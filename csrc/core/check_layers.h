// Refuses layers and targets that would be read or written out of bounds. Python makes none such;
// whoever calls the extension by themselves learns what is wrong.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <stdexcept>
#include <string>
#include <vector>

#include "core/block_scales.h"
#include "core/key_format.h"
#include "core/layer.h"
#include "core/strided_walk.h"

namespace lampfast {

// The product of a shape, or -1 if an extent is negative or the product does not fit. Empty layers
// count as well: the products of their other extents are strides.
inline std::int64_t element_count(const std::vector<std::int64_t>& shape) {
  std::int64_t count = 1;
  bool is_empty = false;
  for (const std::int64_t extent : shape) {
    if (extent < 0 || __builtin_mul_overflow(count, std::max<std::int64_t>(extent, 1), &count)) {
      return -1;
    }
    is_empty = is_empty || extent == 0;
  }
  return is_empty ? 0 : count;
}

// Whether the distances in bytes between any elements fit 64 bits.
inline bool offsets_fit(const Layer& layer) {
  std::int64_t reach = 0;
  for (std::size_t a = 0; a < layer.shape.size(); ++a) {
    if (layer.shape[a] == 1) continue;  // its stride means nothing
    std::int64_t span;
    if (__builtin_mul_overflow(layer.shape[a], layer.strides[a], &span)) return false;
    if (span == std::numeric_limits<std::int64_t>::min() ||
        __builtin_add_overflow(reach, span < 0 ? -span : span, &reach)) {
      return false;
    }
  }
  constexpr std::int64_t most_bytes = 8;  // of an element
  return reach <= std::numeric_limits<std::int64_t>::max() / most_bytes;
}

inline std::string to_string(const std::vector<std::int64_t>& numbers) {
  std::string text;
  for (const std::int64_t number : numbers) {
    text += (text.empty() ? "(" : ", ") + std::to_string(number);
  }
  return text.empty() ? "()" : text + ")";
}

inline std::string name_of(Dtype dtype) {
  switch (dtype) {
    case Dtype::float32:
      return "float32";
    case Dtype::float16:
      return "float16";
    case Dtype::bfloat16:
      return "bfloat16";
    case Dtype::float64:
      return "float64";
    case Dtype::float8_e4m3fn:
      return "float8_e4m3fn";
    case Dtype::float8_e5m2:
      return "float8_e5m2";
    case Dtype::boolean:
      break;
  }
  return "boolean";
}

[[noreturn]] inline void refuse(const char* what, std::size_t position, const std::string& problem,
                                const std::string& need) {
  throw std::invalid_argument(std::string(what) + " " + std::to_string(position) + " has " +
                              problem + ", but needs " + need);
}

// What a layer and a target have to be by themselves. `what` names them in errors.
inline void check_tensor(const char* what, std::size_t position, const Layer& layer) {
  if (layer.shape.size() != layer.strides.size()) {
    refuse(what, position, "the strides " + to_string(layer.strides),
           "as many as its shape " + to_string(layer.shape) + " has dimensions");
  }
  if (layer.size < 0) {
    refuse(what, position, "the shape " + to_string(layer.shape),
           "extents of at least 0 whose product fits 64 bits");
  }
  if (!offsets_fit(layer)) {
    refuse(what, position,
           "the shape " + to_string(layer.shape) + " and the strides " + to_string(layer.strides),
           "its bytes to lie within 2^63 of each other");
  }
  if (layer.data == nullptr && layer.size > 0) {
    refuse(what, position, "the address 0", "that of its first element");
  }
}

// How far the scales reach is not known here.
inline void check_scales(std::size_t position, const Layer& layer) {
  const BlockScales& scales = *layer.scales;
  const bool is_coded = scales.codes == Dtype::float8_e4m3fn || scales.codes == Dtype::float8_e5m2;
  if (!is_coded || layer.device != Layer::in_host_memory) {
    refuse("layer", position,
           "scales, the dtype " + name_of(scales.codes) + " and the device " +
               std::to_string(layer.device),
           "a float8 dtype in host memory");
  }
  const std::size_t dimensions = layer.shape.size();
  if (scales.block.size() != dimensions || scales.strides.size() != dimensions ||
      dimensions > most_scaled_dimensions) {
    refuse("layer", position,
           "scales with the block " + to_string(scales.block) + " and the strides " +
               to_string(scales.strides),
           "as many of both as its shape " + to_string(layer.shape) + " has dimensions, at most " +
               std::to_string(most_scaled_dimensions));
  }
  const auto is_empty = [](std::int64_t extent) { return extent < 1; };
  if (std::any_of(scales.block.begin(), scales.block.end(), is_empty)) {
    refuse("layer", position, "scales with the block " + to_string(scales.block),
           "extents of at least 1");
  }
  if (scales.data == nullptr && layer.size > 0) {
    refuse("layer", position, "scales at the address 0", "that of the first one");
  }
}

inline void check_layers(const std::vector<Layer>& layers) {
  for (std::size_t i = 0; i < layers.size(); ++i) {
    check_tensor("layer", i, layers[i]);
    if (layers[i].scales) check_scales(i, layers[i]);
    if (layers[i].dtype == Dtype::boolean) {
      refuse("layer", i, "the dtype boolean", "a floating dtype");
    }
  }
}

// What a call writes to its targets.
enum class Written : std::uint8_t { weights, masks, scores };

inline void check_target(std::size_t position, const Layer& layer, const Layer& target,
                         Written written) {
  check_tensor("target", position, target);
  const auto refuse_dtype = [&](const std::string& need) {
    refuse("target", position, "the dtype " + name_of(target.dtype), need);
  };
  if (target.shape != layer.shape) {
    refuse("target", position, "the shape " + to_string(target.shape),
           "that of its layer, " + to_string(layer.shape));
  }
  switch (written) {
    case Written::weights:
      if (target.dtype == Dtype::boolean) refuse_dtype("a floating dtype");
      if (target.data == layer.data && target.dtype != layer.stored() && layer.size > 0) {
        refuse_dtype("that of its layer, which lies at the same address, " +
                     name_of(layer.stored()));
      }
      break;
    case Written::masks:
      if (target.dtype != Dtype::boolean) refuse_dtype("boolean");
      break;
    case Written::scores: {
      const bool is_wide = layer.dtype == Dtype::float64;
      const Dtype needed = is_wide ? Dtype::float64 : Dtype::float32;
      if (target.dtype != needed) refuse_dtype(name_of(needed));
      if (target.size > 0 && !is_row_major(target.shape, target.strides)) {
        refuse("target", position, "the strides " + to_string(target.strides),
               "those of a row-major tensor, " + to_string(row_major_strides(target.shape)));
      }
      break;
    }
  }
}

inline void check_targets(const std::vector<Layer>& layers, const std::vector<Layer>& targets,
                          Written written) {
  if (targets.size() != layers.size()) {
    throw std::invalid_argument(std::to_string(layers.size()) +
                                " layers need as many targets, not " +
                                std::to_string(targets.size()));
  }
  for (std::size_t i = 0; i < layers.size(); ++i) check_target(i, layers[i], targets[i], written);
}

}  // namespace lampfast
