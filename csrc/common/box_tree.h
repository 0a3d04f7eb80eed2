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
#include <memory>

#include "common/bounds.h"
#include "common/box.h"
#include "common/sort_items.h"
#include "common/suppression.h"

namespace pydet {

using PlaceItem = Item<uint32_t>;
constexpr uint32_t kNoPlace = std::numeric_limits<uint32_t>::max();

template <class A>
struct Leaf {
  Bounds<A> boxes;
  A area[kBoundsLanes];
  uint32_t id[kBoundsLanes];
};

// Leaves, nodes and roots are known by the hull of the cores of their boxes: what is left of a box
// without a share of its width on the left and on the right, and of its height. A box that has that
// share of both sides in common with another meets its core. Cores may be turned inside out.
template <class A>
struct BoxTree {
  Leaf<A>* leaves;             // [num_leaves]
  Bounds<A>* nodes;            // [num_nodes] of 32 leaves each
  Bounds<A>* roots;            // [num_roots] of 32 nodes each
  uint32_t* place;             // 32 * leaf + lane of each box, or kNoPlace
  PlaceItem *items, *scratch;  // one a box, while the tree is built
  int64_t num_leaves = 0, num_nodes = 0, num_roots = 0;

  // Calls visit(node, bits) for each node with leaves whose cores the box may meet, until one call
  // returns false.
  template <Isa kIsa, class Visit>
  void for_each_node(const Box<A>& box, const Visit& visit) const {
    for (int64_t root = 0; root < num_roots; ++root) {
      for (uint32_t bits = roots[root].template meets<kIsa>(box); bits != 0; bits &= bits - 1) {
        const int64_t node = root * kBoundsLanes + __builtin_ctz(bits);
        const uint32_t leaf_bits = nodes[node].template meets<kIsa>(box);
        if (leaf_bits != 0 && !visit(node, leaf_bits)) return;
      }
    }
  }
};

// Where a group that begins at box `begin` and has more than 32 boxes finds its leaves, and its
// nodes and roots, in arrays that all groups of an image share; with the number of all boxes, the
// length of these arrays.
inline int64_t leaf_begin(int64_t begin) { return begin / (kBoundsLanes / 2); }
inline int64_t node_begin(int64_t begin) { return begin / kBoundsLanes; }

// Memory for the trees of all groups of an image.
template <class A>
struct TreeMemory {
  std::unique_ptr<Leaf<A>[]> leaves;
  std::unique_ptr<Bounds<A>[]> nodes, roots;
  std::unique_ptr<uint32_t[]> place;
  std::unique_ptr<PlaceItem[]> items, scratch;

  explicit TreeMemory(int64_t num_boxes)
      : leaves(new Leaf<A>[leaf_begin(num_boxes)]),
        nodes(new Bounds<A>[node_begin(num_boxes)]),
        roots(new Bounds<A>[node_begin(num_boxes)]),
        place(new uint32_t[num_boxes]),
        items(new PlaceItem[num_boxes]),
        scratch(new PlaceItem[num_boxes]) {}

  // For the group that begins at box `begin`.
  BoxTree<A> tree(int64_t begin) {
    const int64_t leaf = leaf_begin(begin), node = node_begin(begin);
    return {&leaves[leaf], &nodes[node],  &roots[node],
            &place[begin], &items[begin], &scratch[begin]};
  }
};

// What the tree of a group of up to 32 boxes has in place of its part of the shared arrays.
template <class A>
struct OneLeaf {
  Leaf<A> leaf;
  Bounds<A> node, root;

  BoxTree<A> tree(const BoxTree<A>& shared) {
    return {&leaf, &node, &root, shared.place, shared.items, shared.scratch};
  }
};

// The centres of boxes in 2048 x 2048 cells, and the places of cells on the curve of Hilbert
// (Mathematische Annalen 38, 1891). What is next to each other on the curve is so in the plane; in
// the order of interleaved bits it may be far away, leaves are larger, and a box meets about twice
// as many.
class PlaceCode {
 public:
  // Of a sample of the boxes, box_of(i) for i in [0, count): the range that most centres lie in.
  // Boxes far away from all others share its border, and cost no precision.
  template <class GetBox>
  PlaceCode(int64_t count, const GetBox& box_of) {
    constexpr int64_t kSample = 128;
    double xs[kSample], ys[kSample];
    const int64_t sample = std::min(count, kSample);
    for (int64_t i = 0; i < sample; ++i) {
      const auto box = box_of(i * (count / sample));
      xs[i] = 0.5 * box.x1 + 0.5 * box.x2;
      ys[i] = 0.5 * box.y1 + 0.5 * box.y2;
    }
    set_range(sample, xs, &x_first_, &x_scale_);
    set_range(sample, ys, &y_first_, &y_scale_);
  }

  // The column in the low 16 bits, the row in the high ones.
  template <class A>
  uint32_t cell_of(const Box<A>& box) const {
    return cell(0.5 * box.x1 + 0.5 * box.x2, x_first_, x_scale_) |
           cell(0.5 * box.y1 + 0.5 * box.y2, y_first_, y_scale_) << 16;
  }

  // Without branches, for loops over cells.
  static uint32_t place_on_curve(uint32_t cell) {
    // From the whole plane to its cells. In each quarter the curve of a level runs as in the whole,
    // but for an exchange of the axes (all ones, or 0) and of both of their directions.
    uint32_t exchange = 0, reverse = 0, place = 0;
#if defined(__GNUC__)
#pragma GCC unroll kBits  // or else the loop around is not made of vectors
#endif
    for (int level = kBits - 1; level >= 0; --level) {
      uint32_t right = (cell ^ reverse) >> level & 1, down = (cell >> 16 ^ reverse) >> level & 1;
      const uint32_t differ = (right ^ down) & exchange;
      right ^= differ;
      down ^= differ;
      place = place << 2 | right << 1 | (right ^ down);  // top left, bottom left, bottom right, ...
      const uint32_t is_top = down - 1;
      exchange ^= is_top;
      reverse ^= is_top & (0u - right);
    }
    return place;
  }

 private:
  static constexpr int kBits = 11;
  static constexpr double kCells = 1 << kBits;

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

  double x_first_ = 0, x_scale_ = 0, y_first_ = 0, y_scale_ = 0;
};

// Fills the tree with those of the `count` boxes that can overlap others. `threshold` is what their
// IoU has to exceed for the tree's user to care: 0 for any overlap.
template <class A>
void build_tree(int64_t count, const Box<A>* boxes, A threshold, BoxTree<A>* tree) {
  PlaceItem* items = tree->items;
  uint32_t* place = tree->place;
  int64_t inside = 0;
  for (int64_t k = 0; k < count; ++k) {
    place[k] = kNoPlace;
    if (can_overlap(boxes[k], area(boxes[k]))) items[inside++] = {0, static_cast<uint32_t>(k)};
  }
  if (inside > kBoundsLanes) {
    const PlaceCode code(inside, [&](int64_t i) { return boxes[items[i].index]; });
    for (int64_t i = 0; i < inside; ++i) items[i].key = code.cell_of(boxes[items[i].index]);
    for (int64_t i = 0; i < inside; ++i) items[i].key = PlaceCode::place_on_curve(items[i].key);
    items = sort_items(inside, items, tree->scratch);
  }
  tree->num_leaves = (inside + kBoundsLanes - 1) / kBoundsLanes;
  tree->num_nodes = (tree->num_leaves + kBoundsLanes - 1) / kBoundsLanes;
  tree->num_roots = (tree->num_nodes + kBoundsLanes - 1) / kBoundsLanes;
  for (int64_t i = 0; i < tree->num_nodes; ++i) tree->nodes[i].clear();
  for (int64_t i = 0; i < tree->num_roots; ++i) tree->roots[i].clear();
  for (int64_t number = 0; number < tree->num_leaves; ++number) {
    Leaf<A>& leaf = tree->leaves[number];
    Bounds<A> cores;
    if ((number + 1) * kBoundsLanes > inside) {
      leaf.boxes.clear();
      cores.clear();
      std::fill_n(leaf.area, kBoundsLanes, std::numeric_limits<A>::quiet_NaN());
      std::fill_n(leaf.id, kBoundsLanes, kNoPlace);
    }
    const int64_t begin = number * kBoundsLanes, end = std::min(begin + kBoundsLanes, inside);
    for (int64_t i = begin; i < end; ++i) {
      // Boxes near each other may stand anywhere in memory.
      __builtin_prefetch(boxes + items[std::min(i + kBoundsLanes, inside - 1)].index);
      const int lane = static_cast<int>(i - begin);
      const uint32_t k = items[i].index;
      const Box<A> box = boxes[k];
      leaf.boxes.set(lane, box);
      leaf.area[lane] = area(box);
      leaf.id[lane] = k;
      place[k] = static_cast<uint32_t>(i);
      const A share = share_of_side(threshold, leaf.area[lane]);
      const A width = share * (box.x2 - box.x1), height = share * (box.y2 - box.y1);
      cores.set(lane, {box.x1 + width, box.y1 + height, box.x2 - width, box.y2 - height});
    }
    tree->nodes[number / kBoundsLanes].set(static_cast<int>(number % kBoundsLanes), cores.hull());
  }
  for (int64_t node = 0; node < tree->num_nodes; ++node) {
    tree->roots[node / kBoundsLanes].set(static_cast<int>(node % kBoundsLanes),
                                         tree->nodes[node].hull());
  }
}

}  // namespace pydet
