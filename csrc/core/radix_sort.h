// A stable sort by an unsigned key, a digit at a time from the least significant one.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace lampfast {

// Sorts by the lowest key_bits (one or more) of key_of(item), and returns where the sorted items
// are: where they were, or in `other`, which has room for as many.
template <class Item, class KeyOf>
Item* radix_sort(Item* items, Item* other, std::size_t count, int key_bits, KeyOf&& key_of) {
  constexpr int most_digit_bits = 11;
  constexpr std::size_t few = 32;
  if (count <= few) {
    for (std::size_t i = 1; i < count; ++i) {
      const Item item = items[i];
      std::size_t to = i;
      for (; to > 0 && key_of(item) < key_of(items[to - 1]); --to) items[to] = items[to - 1];
      items[to] = item;
    }
    return items;
  }
  // No more digits than items, or their counts would take longer than the items.
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
      const std::size_t here = places[digit];
      places[digit] = start;
      start += here;
    }
    for (std::size_t i = 0; i < count; ++i) other[places[digit_of(items[i], pass)]++] = items[i];
    std::swap(items, other);
  }
  return items;
}

}  // namespace lampfast
