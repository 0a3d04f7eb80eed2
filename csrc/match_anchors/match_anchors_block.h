// SPDX-License-Identifier: Apache-2.0
// What the CPU kernel of match_anchors works on: blocks of anchors, and the ground truths with the
// highest quality of each.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstring>

#include "common/box.h"
#include "common/matching.h"
#include "common/ordered_bits.h"
#include "common/scalar.h"

namespace pydet {
namespace cpu {

// Anchors a block: its arrays stay in the first-level cache, and its bounding box is small enough
// to pass over most ground truths.
constexpr int64_t kBlock = 128;

// A ground truth that takes part: without NaN. `index` is its number in its image.
template <class A>
struct Truth {
  Box<A> box;
  A area;
  int32_t index;
};

// The highest quality of a ground truth over all anchors, and the first and last block in which it
// is met. Threads raise the three words in any order to the same end. `first` and `last` hold the
// quality's leading bits above the block number (its complement, for the first), so that a higher
// quality outweighs every block number. All are 0 as long as no anchor overlaps.
struct Highest {
  std::atomic<uint64_t> quality{0}, first{0}, last{0};
};

inline void raise_to(std::atomic<uint64_t>* word, uint64_t value) {
  uint64_t seen = word->load(std::memory_order_relaxed);
  while (seen < value && !word->compare_exchange_weak(seen, value, std::memory_order_relaxed)) {
  }
}

constexpr uint64_t kBlockMask = 0xffffffffu;

inline void raise_to(Highest* highest, uint64_t bits, int quality_bits, int64_t block) {
  const uint64_t leading = quality_bits == 32 ? bits : (bits >> 32) + 1;
  const uint64_t number = static_cast<uint64_t>(block);
  raise_to(&highest->quality, bits);
  raise_to(&highest->first, leading << 32 | (~number & kBlockMask));
  raise_to(&highest->last, leading << 32 | (number & kBlockMask));
}

// One image's part of the packed ground truth.
template <class A>
struct Image {
  const Truth<A>* truths;
  Highest* highest;  // one a truth; null where nobody asks for low-quality matches
  int64_t num_truths;
  const Truth<A>* ignored;
  int64_t num_ignored;
};

template <class T>
struct Job {
  const T* anchors;
  int64_t num_anchors;
  bool own_anchors;
  const Image<acc_t<T>>* images;
  int64_t* matched_idxs;
  acc_t<T>* matched_ious;

  const T* anchors_of(int64_t b) const {
    return own_anchors ? anchors + 4 * b * num_anchors : anchors;
  }
};

// The anchors of one block as a structure of arrays. One with a NaN, or beyond the last, is an
// empty box, which overlaps nothing.
template <class A>
struct Block {
  alignas(64) A x1[kBlock], y1[kBlock], x2[kBlock], y2[kBlock], area[kBlock];
  Box<A> bounds;
  bool all_valid;
  bool valid[kBlock];  // set only where not all are

  // All loops are plain and of a fixed length, which compilers turn into vectors.
  template <class T>
  void load_from(const T* anchors, int64_t count) {
    T padded[4 * kBlock] = {};
    if (count < kBlock) {
      std::memcpy(padded, anchors, 4 * count * sizeof(T));
      anchors = padded;
    }
    for (int64_t j = 0; j < kBlock; ++j) {
      x1[j] = load(anchors + 4 * j);
      y1[j] = load(anchors + 4 * j + 1);
      x2[j] = load(anchors + 4 * j + 2);
      y2[j] = load(anchors + 4 * j + 3);
    }
    bits_t<A> num_nan = 0;
    for (int64_t j = 0; j < kBlock; ++j) num_nan += has_nan(box(j)) ? 1 : 0;
    all_valid = num_nan == 0;
    if (!all_valid) empty_the_nan();
    for (int64_t j = 0; j < kBlock; ++j) area[j] = pydet::area(box(j));
    bounds = {lowest(x1), lowest(y1), highest(x2), highest(y2)};
  }

  void empty_the_nan() {
    for (int64_t j = 0; j < kBlock; ++j) {
      valid[j] = !has_nan(box(j));
      if (!valid[j]) x1[j] = y1[j] = x2[j] = y2[j] = A(0);
    }
  }

  static A lowest(const A* values) {
    bits_t<A> least = to_ordered(values[0]);
    for (int64_t j = 0; j < kBlock; ++j) least = std::min(to_ordered(values[j]), least);
    return from_ordered<A>(least);
  }

  static A highest(const A* values) {
    bits_t<A> most = to_ordered(values[0]);
    for (int64_t j = 0; j < kBlock; ++j) most = std::max(to_ordered(values[j]), most);
    return from_ordered<A>(most);
  }

  Box<A> box(int64_t j) const { return {x1[j], y1[j], x2[j], y2[j]}; }

  // False only where no anchor of the block overlaps the box.
  bool touches(const Box<A>& other) const {
    return other.x1 < bounds.x2 && bounds.x1 < other.x2 && other.y1 < bounds.y2 &&
           bounds.y1 < other.y2;
  }
};

}  // namespace cpu
}  // namespace pydet
