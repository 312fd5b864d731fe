// A stable radix sort by an unsigned key, least significant digit first.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace lampfast::cpu {

// Sorts by key_of(item), which must be below 2^key_bits (key_bits >= 1). Returns where the sorted
// items are: `items`, or `other`, a buffer of the same size.
template <class Item, class KeyOf>
Item* radix_sort(Item* items, Item* other, std::size_t count, int key_bits, KeyOf&& key_of) {
  constexpr int most_digit_bits = 11;
  constexpr std::size_t most_inserted = 32;
  if (count <= most_inserted) {
    for (std::size_t i = 1; i < count; ++i) {
      const Item item = items[i];
      std::size_t to = i;
      for (; to > 0 && key_of(item) < key_of(items[to - 1]); --to) items[to] = items[to - 1];
      items[to] = item;
    }
    return items;
  }
  // A digit has no more values than there are items, or handling its counts would take longer than
  // moving the items.
  const auto digit_bits_of = [&](int passes) { return (key_bits + passes - 1) / passes; };
  int passes = (key_bits + most_digit_bits - 1) / most_digit_bits;
  while ((std::size_t{1} << digit_bits_of(passes)) > count) ++passes;
  const int digit_bits = digit_bits_of(passes);
  const std::size_t digits = std::size_t{1} << digit_bits;
  const auto digit_of = [&](const Item& item, int pass) {
    return static_cast<std::size_t>(key_of(item) >> (pass * digit_bits)) & (digits - 1);
  };
  std::vector<std::size_t> all_places(static_cast<std::size_t>(passes) * digits);
  std::size_t* first = all_places.data();
  // Two digits are counted in one sweep: most keys that are sorted here have two.
  int counted = 0;
  for (; counted + 2 <= passes; counted += 2) {
    std::size_t* one = first + static_cast<std::size_t>(counted) * digits;
    std::size_t* two = one + digits;
    for (std::size_t i = 0; i < count; ++i) {
      ++one[digit_of(items[i], counted)];
      ++two[digit_of(items[i], counted + 1)];
    }
  }
  if (counted < passes) {
    std::size_t* last = first + static_cast<std::size_t>(counted) * digits;
    for (std::size_t i = 0; i < count; ++i) ++last[digit_of(items[i], counted)];
  }
  for (int pass = 0; pass < passes; ++pass) {
    std::size_t* places = first + static_cast<std::size_t>(pass) * digits;
    if (places[digit_of(items[0], pass)] == count) continue;  // all items have the same digit
    std::size_t start = 0;
    for (std::size_t digit = 0; digit < digits; ++digit) {
      const std::size_t digit_count = places[digit];
      places[digit] = start;
      start += digit_count;
    }
    for (std::size_t i = 0; i < count; ++i) other[places[digit_of(items[i], pass)]++] = items[i];
    std::swap(items, other);
  }
  return items;
}

}  // namespace lampfast::cpu
