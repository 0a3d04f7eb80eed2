// SPDX-License-Identifier: Apache-2.0
// Boxes as a structure of arrays, of which one vector test tells which meet a given box.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>

#include "common/box.h"
#include "common/lane_bits.h"

namespace pydet {

constexpr int kBoundsLanes = kBitLanes;

// Aligned, or half of all vectors of 64 bytes would lie in two cache lines.
template <class A>
struct alignas(64) Bounds {
  A x1[kBoundsLanes], y1[kBoundsLanes], x2[kBoundsLanes], y2[kBoundsLanes];

  Box<A> box(int lane) const { return {x1[lane], y1[lane], x2[lane], y2[lane]}; }

  void set(int lane, const Box<A>& box) {
    x1[lane] = box.x1;
    y1[lane] = box.y1;
    x2[lane] = box.x2;
    y2[lane] = box.y2;
  }

  // Of NaN: no box meets it.
  void clear(int lane) {
    const A nan = std::numeric_limits<A>::quiet_NaN();
    set(lane, {nan, nan, nan, nan});
  }

  void clear() {
    for (int lane = 0; lane < kBoundsLanes; ++lane) clear(lane);
  }

  // Around the lanes before the first that is cleared.
  Box<A> hull() const {
    Box<A> all = box(0);
    for (int lane = 1; lane < kBoundsLanes; ++lane) {
      if (!(x1[lane] == x1[lane])) break;
      all = {std::min(all.x1, x1[lane]), std::min(all.y1, y1[lane]), std::max(all.x2, x2[lane]),
             std::max(all.y2, y2[lane])};
    }
    return all;
  }

  // A bit for each lane that has a point in common with the box, be it on their edges.
  template <Isa kIsa>
  uint32_t meets(const Box<A>& other) const {
    // Not in one test: of that, compilers make a chain of four masked comparisons.
    const uint32_t in_x =
        bits_where<kIsa>([&](int lane) { return (x1[lane] <= other.x2) & (x2[lane] >= other.x1); });
    const uint32_t in_y =
        bits_where<kIsa>([&](int lane) { return (y1[lane] <= other.y2) & (y2[lane] >= other.y1); });
    return in_x & in_y;
  }
};

}  // namespace pydet
