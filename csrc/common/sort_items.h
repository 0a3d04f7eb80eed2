// SPDX-License-Identifier: Apache-2.0
// Sorting by keys of integers on the CPU, and grouping by class: what all suppression ops begin
// with.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>

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
  constexpr int64_t kRadixMin = 64;
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

// Orders the boxes of one image by falling score, ties by index.
template <class A>
class ScoreSort {
 public:
  explicit ScoreSort(int64_t most)
      : items_(new ScoreItem<A>[most]), scratch_(new ScoreItem<A>[most]) {}

  void clear() { count_ = 0; }
  int64_t count() const { return count_; }

  // Indices have to increase.
  void add(A score, int64_t index) {
    items_[count_++] = {score_key(score), static_cast<uint32_t>(index)};
  }

  // [count()]; valid until the next clear.
  const ScoreItem<A>* sort() { return sort_items(count_, items_.get(), scratch_.get()); }

 private:
  std::unique_ptr<ScoreItem<A>[]> items_, scratch_;
  int64_t count_ = 0;
};

// The classes of one image: groups of what belongs to one class, in its order.
class ClassGroups {
 public:
  explicit ClassGroups(int64_t most)
      : items_(new ClassItem[most]), scratch_(new ClassItem[most]), begin_(new int64_t[most + 1]) {}

  // Groups i in [0, count) by class_of(i).
  template <class ClassOf>
  void find(int64_t count, const ClassOf& class_of) {
    for (int64_t i = 0; i < count; ++i) {
      items_[i] = {static_cast<uint64_t>(class_of(i)), static_cast<uint32_t>(i)};
    }
    members_ = sort_items(count, items_.get(), scratch_.get());
    num_groups_ = 0;
    for (int64_t k = 0; k < count; ++k) {
      if (k == 0 || members_[k].key != members_[k - 1].key) begin_[num_groups_++] = k;
    }
    begin_[num_groups_] = count;
  }

  int64_t size() const { return num_groups_; }
  const ClassItem* members() const { return members_; }  // group by group
  int64_t begin(int64_t group) const { return begin_[group]; }
  int64_t count(int64_t group) const { return begin_[group + 1] - begin_[group]; }

  // The number of groups that have about `members` together: what a thread takes at a time.
  int64_t grain(int64_t members) const {
    return std::max<int64_t>(1, members * num_groups_ / std::max<int64_t>(1, begin_[num_groups_]));
  }

 private:
  std::unique_ptr<ClassItem[]> items_, scratch_;
  std::unique_ptr<int64_t[]> begin_;
  const ClassItem* members_ = nullptr;
  int64_t num_groups_ = 0;
};

}  // namespace pydet
