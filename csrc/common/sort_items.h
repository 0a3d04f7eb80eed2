// SPDX-License-Identifier: Apache-2.0
// Sorting by keys of integers on the CPU, and grouping by class: what all suppression ops begin
// with.
#pragma once

#include <algorithm>
#include <cstdint>

namespace pydet {

// A sort key and what it belongs to: (score, box) or (class, rank), say.
struct Item {
  uint64_t key;
  int64_t index;
};

// Sorts by increasing key, stable for indices that increase; returns the buffer that holds the
// result. Bits that all keys share cost no pass: 80 classes take one.
inline Item* sort_items(int64_t count, Item* items, Item* scratch) {
  // Below this many items a comparison sort is quicker than clearing the counters of a radix sort.
  constexpr int64_t kRadixMin = 256;
  // Of few items fewer bits at a time: the counters of a pass are not to outnumber them.
  constexpr int kMostBits = 11;
  const int most_bits = count < 4096 ? 8 : kMostBits;
  if (count < kRadixMin) {
    std::sort(items, items + count, [](const Item& a, const Item& b) {
      return a.key != b.key ? a.key < b.key : a.index < b.index;
    });
    return items;
  }
  uint64_t any = 0, all = ~uint64_t{0};
  for (int64_t i = 0; i < count; ++i) {
    any |= items[i].key;
    all &= items[i].key;
  }
  int low = 0, high = 64;  // the bits that differ lie in [low, high)
  while (low < 64 && ((any ^ all) >> low & 1) == 0) ++low;
  while (high > low && ((any ^ all) >> (high - 1) & 1) == 0) --high;
  const int passes = (high - low + most_bits - 1) / most_bits;
  if (passes == 0) return items;
  const int bits = (high - low + passes - 1) / passes;
  const uint64_t mask = (uint64_t{1} << bits) - 1;
  for (int pass = 0; pass < passes; ++pass) {
    const int shift = low + pass * bits;
    int64_t starts[1 << kMostBits];
    std::fill_n(starts, mask + 1, int64_t{0});
    for (int64_t i = 0; i < count; ++i) ++starts[items[i].key >> shift & mask];
    int64_t start = 0;
    for (uint64_t digit = 0; digit <= mask; ++digit) {
      const int64_t size = starts[digit];
      starts[digit] = start;
      start += size;
    }
    for (int64_t i = 0; i < count; ++i) scratch[starts[items[i].key >> shift & mask]++] = items[i];
    std::swap(items, scratch);
  }
  return items;
}

// Sorts items by their keys as sort_items and writes where each group of equal keys begins, and
// `count` behind the last; *num_groups tells how many there are.
inline Item* group_items(int64_t count, Item* items, Item* scratch, int64_t* group_begin,
                         int64_t* num_groups) {
  Item* sorted = sort_items(count, items, scratch);
  *num_groups = 0;
  for (int64_t k = 0; k < count; ++k) {
    if (k == 0 || sorted[k].key != sorted[k - 1].key) group_begin[(*num_groups)++] = k;
  }
  group_begin[*num_groups] = count;
  return sorted;
}

}  // namespace pydet
