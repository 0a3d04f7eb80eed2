// SPDX-License-Identifier: Apache-2.0
// Finds the boxes of a set that meet a given one, on the CPU. Boxes near each other share a leaf of
// 32; 32 leaves share a node, 32 nodes a root, and the roots are scanned: a set of 32 768 boxes has
// one. One vector test tells which of 32 bounds a box meets.
//
// The tree only ever leaves out what cannot meet; what an op computes does not depend on its shape.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>

#include "common/bounds.h"
#include "common/box.h"
#include "common/sort_items.h"
#include "common/suppression.h"

namespace pydet {

template <class A>
struct Leaf {
  Bounds<A> boxes;
  A area[kBoundsLanes];
  int64_t id[kBoundsLanes];  // increasing
  uint32_t alive;            // a bit a lane; the user's to clear
};

template <class A>
struct BoxTree {
  int64_t num_leaves, num_nodes, num_roots;
  Leaf<A>* leaves;   // [num_leaves]
  Bounds<A>* nodes;  // [num_nodes] bounds of 32 leaves each
  Bounds<A>* roots;  // [num_roots] bounds of 32 nodes each

  // Calls visit(node, bits) for each node with leaves whose bounds meet the box (see meets).
  template <class Visit>
  void for_each_node(const Box<A>& box, A least, const Visit& visit) const {
    for (int64_t root = 0; root < num_roots; ++root) {
      for (uint32_t bits = roots[root].meets(box, least); bits != 0; bits &= bits - 1) {
        const int64_t node = root * kBoundsLanes + __builtin_ctz(bits);
        const uint32_t leaf_bits = nodes[node].meets(box, least);
        if (leaf_bits != 0) visit(node, leaf_bits);
      }
    }
  }
};

// A lower limit of the intersection that an IoU of at least `threshold` with a box of this area
// takes, with a margin for what rounding may do to the areas.
template <class A>
A least_intersection(A box_area, A threshold) {
  constexpr A kTiny = static_cast<A>(1e-30);  // below, the margin is not relative any more
  return box_area < kTiny ? A(0) : threshold * box_area * (A(1) - A(1) / A(1 << 16));
}

// Memory for the trees of all groups of `count` boxes: a group that begins at box `begin` and has
// more than 32 boxes takes leaves from leaf_begin(begin) on, nodes and roots from
// node_begin(begin).
inline int64_t leaf_begin(int64_t begin) { return begin / (kBoundsLanes / 2); }
inline int64_t node_begin(int64_t begin) { return begin / kBoundsLanes; }

// 11 bits of each coordinate of the centre, interleaved: near boxes have near numbers.
class PlaceCode {
 public:
  // Of a sample of the boxes: the range that most centres lie in. Boxes far away from all others
  // share its border, and cost no precision.
  template <class A, class GetBox>
  PlaceCode(int64_t count, const GetBox& box_of, A) {
    constexpr int64_t kSample = 128;
    double xs[kSample], ys[kSample];
    const int64_t sample = std::min(count, kSample);
    for (int64_t i = 0; i < sample; ++i) {
      const Box<A> box = box_of(i * (count / sample));
      xs[i] = 0.5 * box.x1 + 0.5 * box.x2;
      ys[i] = 0.5 * box.y1 + 0.5 * box.y2;
    }
    set_range(sample, xs, &x_first_, &x_scale_);
    set_range(sample, ys, &y_first_, &y_scale_);
  }

  template <class A>
  uint64_t operator()(const Box<A>& box) const {
    return spread(cell(0.5 * box.x1 + 0.5 * box.x2, x_first_, x_scale_)) |
           spread(cell(0.5 * box.y1 + 0.5 * box.y2, y_first_, y_scale_)) << 1;
  }

 private:
  static constexpr double kCells = 2048.0;

  static void set_range(int64_t count, double* values, double* first, double* scale) {
    std::sort(values, values + count);
    const double low = values[count / 16], high = values[count - 1 - count / 16];
    const double range = high - low;
    *first = low - 0.5 * range;
    *scale = range > 0 && range < 1e300 ? kCells / (2 * range) : 0;
  }

  static uint32_t cell(double value, double first, double scale) {
    const double place = (value - first) * scale;
    return place > 0 ? static_cast<uint32_t>(std::min(place, kCells - 1)) : 0;
  }

  static uint64_t spread(uint32_t x) {
    x = (x | x << 8) & 0x00ff00ffu;
    x = (x | x << 4) & 0x0f0f0f0fu;
    x = (x | x << 2) & 0x33333333u;
    return (x | x << 1) & 0x55555555u;
  }

  double x_first_ = 0, x_scale_ = 0, y_first_ = 0, y_scale_ = 0;
};

// Fills the tree's arrays with the boxes box_of(k), k in [0, count), that can overlap others.
// place[k] is 32 * leaf + lane, or -1 for a box that stands outside of the tree. `items` and
// `scratch` have room for count.
template <class A, class GetBox>
void build_tree(int64_t count, const GetBox& box_of, Item* items, Item* scratch, int64_t* place,
                BoxTree<A>* tree) {
  int64_t inside = 0;
  for (int64_t k = 0; k < count; ++k) {
    const Box<A> box = box_of(k);
    place[k] = -1;
    if (can_overlap(box, area(box))) items[inside++] = {0, k};
  }
  if (inside > kBoundsLanes) {
    const auto inside_box = [&](int64_t i) { return box_of(items[i].index); };
    const PlaceCode code(inside, inside_box, A(0));
    for (int64_t i = 0; i < inside; ++i) items[i].key = code(inside_box(i));
    items = sort_items(inside, items, scratch);
  }
  tree->num_leaves = (inside + kBoundsLanes - 1) / kBoundsLanes;
  tree->num_nodes = (tree->num_leaves + kBoundsLanes - 1) / kBoundsLanes;
  tree->num_roots = (tree->num_nodes + kBoundsLanes - 1) / kBoundsLanes;
  for (int64_t i = 0; i < tree->num_nodes; ++i) tree->nodes[i].clear();
  for (int64_t i = 0; i < tree->num_roots; ++i) tree->roots[i].clear();
  for (int64_t number = 0; number < tree->num_leaves; ++number) {
    Leaf<A>& leaf = tree->leaves[number];
    Item* first = items + number * kBoundsLanes;
    const int64_t size = std::min<int64_t>(kBoundsLanes, inside - number * kBoundsLanes);
    std::sort(first, first + size, [](const Item& a, const Item& b) { return a.index < b.index; });
    leaf.boxes.clear();
    leaf.alive = size == kBoundsLanes ? ~0u : (1u << size) - 1;
    for (int lane = 0; lane < kBoundsLanes; ++lane) {
      if (lane >= size) {
        leaf.area[lane] = std::numeric_limits<A>::quiet_NaN();
        leaf.id[lane] = std::numeric_limits<int64_t>::max();
        continue;
      }
      const int64_t k = first[lane].index;
      const Box<A> box = box_of(k);
      leaf.boxes.set(lane, box);
      leaf.area[lane] = area(box);
      leaf.id[lane] = k;
      place[k] = number * kBoundsLanes + lane;
    }
    tree->nodes[number / kBoundsLanes].set(static_cast<int>(number % kBoundsLanes),
                                           leaf.boxes.hull());
  }
  for (int64_t node = 0; node < tree->num_nodes; ++node) {
    tree->roots[node / kBoundsLanes].set(static_cast<int>(node % kBoundsLanes),
                                         tree->nodes[node].hull());
  }
}

}  // namespace pydet
