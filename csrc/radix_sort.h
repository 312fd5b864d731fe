// A stable sort by an unsigned key, a digit at a time from the least significant one.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <numeric>
#include <vector>

namespace lampfast {

// Sorts by key_of(item), of which only the lowest key_bits may be set.
template <class Item, class KeyOf>
void radix_sort(std::vector<Item>& items, int key_bits, KeyOf&& key_of) {
  constexpr int digit_bits = 11;
  constexpr std::size_t digits = std::size_t{1} << digit_bits;
  if (items.size() < digits) {
    std::stable_sort(items.begin(), items.end(),
                     [&](const Item& a, const Item& b) { return key_of(a) < key_of(b); });
    return;
  }
  std::vector<Item> other(items.size());
  for (int shift = 0; shift < key_bits; shift += digit_bits) {
    const auto digit = [&](const Item& item) { return key_of(item) >> shift & (digits - 1); };
    std::array<std::size_t, digits + 1> starts{};
    for (const Item& item : items) ++starts[digit(item) + 1];
    std::partial_sum(starts.begin(), starts.end(), starts.begin());
    for (const Item& item : items) other[starts[digit(item)]++] = item;
    std::swap(items, other);
  }
}

}  // namespace lampfast
