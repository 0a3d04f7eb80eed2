// SPDX-License-Identifier: Apache-2.0
// What the CPU kernel of match_anchors works on: blocks of anchors with the box around each, and
// the ground truths with the highest quality of each.
#pragma once

#include <atomic>
#include <cstdint>
#include <cstring>
#include <limits>

#include "common/bounds.h"
#include "common/box.h"
#include "common/lanes.h"
#include "common/matching.h"
#include "common/ordered_bits.h"
#include "common/scalar.h"

namespace pydet {
namespace cpu {

// Anchors a block: its arrays stay in the first-level cache, and its bounding box is small enough
// to pass over most ground truths.
constexpr int64_t kBlock = 96;

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
  const Bounds<A>* bounds;  // of the truths, 32 by 32
  Highest* highest;         // one a truth; null where nobody asks for low-quality matches
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

// The box around the anchors of a block: the whole plane where one has a NaN, and may lie anywhere.
template <class A>
struct Hull {
  Box<A> box;
  bool has_nan;

  template <class T>
  static Hull of(const T* anchors, int64_t count) {
    using Lanes = cpu::Lanes<A>;
    using Vector = typename Lanes::Vector;
    constexpr int64_t kBoxes = Lanes::kCount / 4;
    A values[Lanes::kCount];  // of the last box, as a vector may hold two
    for (int64_t i = 0; i < Lanes::kCount; ++i) values[i] = load(anchors + 4 * (count - 1) + i % 4);
    Vector low, high;
    Lanes::load(values, &low);
    high = low;
    auto nan = low != low;
    for (int64_t j = 0; j + kBoxes <= count; j += kBoxes) {
      Vector boxes;
      Lanes::load(anchors + 4 * j, &boxes);
      low = boxes < low ? boxes : low;
      high = boxes > high ? boxes : high;
      nan |= boxes != boxes;
    }
    Hull hull{{low[0], low[1], high[2], high[3]}, nan[0] != 0};
    for (int64_t i = 1; i < Lanes::kCount; ++i) hull.has_nan |= nan[i] != 0;
    for (int64_t i = 4; i < Lanes::kCount; i += 4) {
      hull.box = {min_of(low[i], hull.box.x1), min_of(low[i + 1], hull.box.y1),
                  max_of(high[i + 2], hull.box.x2), max_of(high[i + 3], hull.box.y2)};
    }
    constexpr A kEnd = std::numeric_limits<A>::infinity();
    if (hull.has_nan) hull.box = {-kEnd, -kEnd, kEnd, kEnd};
    return hull;
  }

  // False only where no anchor of the block overlaps the other box.
  bool touches(const Box<A>& other) const {
    return other.x1 < box.x2 && box.x1 < other.x2 && other.y1 < box.y2 && box.y1 < other.y2;
  }
};

// The anchors of one block as a structure of arrays. One with a NaN, or beyond the last, is an
// empty box, which overlaps nothing.
template <class A>
struct Block {
  alignas(64) A x1[kBlock], y1[kBlock], x2[kBlock], y2[kBlock], area[kBlock];
  bool valid[kBlock];  // set only where not all are

  // All loops are plain and of a fixed length, which compilers turn into vectors.
  template <class T>
  void load_from(const T* anchors, int64_t count, bool any_nan) {
    if (count == kBlock) {
      load_whole(anchors);
    } else {
      T padded[4 * kBlock] = {};
      std::memcpy(padded, anchors, 4 * count * sizeof(T));
      load_whole(padded);
    }
    if (any_nan) empty_the_nan();
    for (int64_t j = 0; j < kBlock; ++j) area[j] = pydet::area(box(j));
  }

  Box<A> box(int64_t j) const { return {x1[j], y1[j], x2[j], y2[j]}; }

 private:
  template <class T>
  void load_whole(const T* anchors) {
    for (int64_t j = 0; j < kBlock; ++j) {
      x1[j] = load(anchors + 4 * j);
      y1[j] = load(anchors + 4 * j + 1);
      x2[j] = load(anchors + 4 * j + 2);
      y2[j] = load(anchors + 4 * j + 3);
    }
  }

  void empty_the_nan() {
    for (int64_t j = 0; j < kBlock; ++j) {
      valid[j] = !has_nan(box(j));
      if (!valid[j]) x1[j] = y1[j] = x2[j] = y2[j] = A(0);
    }
  }
};

}  // namespace cpu
}  // namespace pydet
