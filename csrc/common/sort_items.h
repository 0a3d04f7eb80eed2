// SPDX-License-Identifier: Apache-2.0
// Sorting by keys of integers on the CPU, and grouping by class: what all suppression ops begin
// with.
#pragma once

#include <algorithm>
#include <cstdint>

#include "common/suppression.h"

namespace pydet {

// A sort key and what it belongs to: (score, box) or (class, rank), say. No image has 2^31 boxes
// (see check_suppression_inputs).
template <class Key>
struct Item {
  Key key;
  uint32_t index;
};
template <class A>
using ScoreItem = Item<decltype(score_key(A()))>;
using ClassItem = Item<uint64_t>;

// Sorts by increasing key, stable for indices that increase; returns the buffer that holds the
// result. Bits that all keys share cost no pass: 80 classes take one.
template <class Key>
Item<Key>* sort_items(int64_t count, Item<Key>* items, Item<Key>* scratch) {
  constexpr int kKeyBits = 8 * sizeof(Key);
  // Below this many items a comparison sort is quicker than clearing the counters of a radix sort.
  constexpr int64_t kRadixMin = 256;
  // Of few items fewer bits at a time: the counters of a pass are not to outnumber them.
  constexpr int kMostBits = 11;
  const int most_bits = count < 4096 ? 8 : kMostBits;
  if (count < kRadixMin) {
    std::sort(items, items + count, [](const Item<Key>& a, const Item<Key>& b) {
      return a.key != b.key ? a.key < b.key : a.index < b.index;
    });
    return items;
  }
  Key any = 0, all = static_cast<Key>(~Key{0});
  for (int64_t i = 0; i < count; ++i) {
    any |= items[i].key;
    all &= items[i].key;
  }
  int low = 0, high = kKeyBits;  // the bits that differ lie in [low, high)
  while (low < kKeyBits && ((any ^ all) >> low & 1) == 0) ++low;
  while (high > low && ((any ^ all) >> (high - 1) & 1) == 0) --high;
  const int passes = (high - low + most_bits - 1) / most_bits;
  if (passes == 0) return items;
  const int bits = (high - low + passes - 1) / passes;
  const uint32_t mask = (1u << bits) - 1;
  for (int pass = 0; pass < passes; ++pass) {
    const int shift = low + pass * bits;
    uint32_t starts[1 << kMostBits];
    std::fill_n(starts, mask + 1, 0u);
    for (int64_t i = 0; i < count; ++i) ++starts[items[i].key >> shift & mask];
    uint32_t start = 0;
    for (uint32_t digit = 0; digit <= mask; ++digit) {
      const uint32_t size = starts[digit];
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
inline ClassItem* group_items(int64_t count, ClassItem* items, ClassItem* scratch,
                              int64_t* group_begin, int64_t* num_groups) {
  ClassItem* sorted = sort_items(count, items, scratch);
  *num_groups = 0;
  for (int64_t k = 0; k < count; ++k) {
    if (k == 0 || sorted[k].key != sorted[k - 1].key) group_begin[(*num_groups)++] = k;
  }
  group_begin[*num_groups] = count;
  return sorted;
}

}  // namespace pydet
