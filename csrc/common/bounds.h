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
    const auto at_most = [](const A* values, A most) {
      return bits_where_at_most<kIsa>([=](int lane) { return values[lane]; },
                                      [=](int) { return most; });
    };
    const auto at_least = [](const A* values, A least) {
      return bits_where_at_most<kIsa>([=](int) { return least; },
                                      [=](int lane) { return values[lane]; });
    };
    return at_most(x1, other.x2) & at_most(y1, other.y2) & at_least(x2, other.x1) &
           at_least(y2, other.y1);
  }
};

}  // namespace pydet
