// SPDX-License-Identifier: Apache-2.0
// Greedy suppression within one group of boxes on the CPU, by a tree: each kept box is compared
// with what is near to it.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>

#include "common/box_tree.h"
#include "common/isa.h"
#include "common/suppression.h"

namespace pydet {
namespace cpu {

// A bit for each lane of `among` that the box hides.
template <Isa kIsa, class A>
uint32_t hidden_by(const SuppressionRule<A>& rule, const Leaf<A>& leaf, uint32_t among,
                   const Box<A>& box, A box_area) {
  // An IoU above t takes intersection * (1 + t) > t * (area + area): the necessary test of the rule
  // in fewer steps. With a margin for rounding, the second one for areas near the smallest numbers;
  // at t = 0 it is any intersection.
  const A t = rule.threshold * (A(1) - A(0x1p-16)), one_more = A(1) + rule.threshold;
  const bool is_any = rule.overlap == SuppressionOverlap::kIou && t == A(0);
  const A least = t * box_area - (is_any ? A(0) : A(1e-30));
  uint32_t surely = 0, maybe = bits_where<kIsa>([&](int lane) {
                         const Box<A> other = leaf.boxes.box(lane);
                         const A width = min_of(box.x2, other.x2) - max_of(box.x1, other.x1);
                         const A height = min_of(box.y2, other.y2) - max_of(box.y1, other.y1);
                         const A inter = max_of(width, A(0)) * height;
                         return inter * one_more > t * leaf.area[lane] + least;
                       });
  for (maybe &= among; maybe != 0; maybe &= maybe - 1) {
    const int lane = __builtin_ctz(maybe);
    surely |=
        static_cast<uint32_t>(rule.hides(box, box_area, leaf.boxes.box(lane), leaf.area[lane]))
        << lane;
  }
  return surely;
}

enum class Near : uint8_t { kUnknown, kFew, kMany };

// The leaves that the boxes of one leaf may meet, where these are few: found once for all of them,
// which saves each the way from the roots.
template <class A>
struct NearLeaves {
  Bounds<A> cores;
  uint32_t number[kBoundsLanes];

  // kFew, or kMany: then what was written means nothing.
  template <Isa kIsa>
  Near find(const BoxTree<A>& tree, const Leaf<A>& leaf) {
    int count = 0;
    bool is_few = true;
    tree.template for_each_node<kIsa>(leaf.boxes.hull(), [&](int64_t node, uint32_t leaves) {
      is_few = count + __builtin_popcount(leaves) <= kBoundsLanes;
      if (!is_few) return false;
      for (; leaves != 0; leaves &= leaves - 1) {
        const int child = __builtin_ctz(leaves);
        cores.set(count, tree.nodes[node].box(child));
        number[count++] = static_cast<uint32_t>(node * kBoundsLanes + child);
      }
      return true;
    });
    for (int lane = count; lane < kBoundsLanes; ++lane) cores.clear(lane);
    return is_few ? Near::kFew : Near::kMany;
  }
};

// What the groups of one image need, for `num_boxes` boxes in all of them.
template <class A>
struct TreeScratch {
  TreeMemory<A> trees;
  std::unique_ptr<NearLeaves<A>[]> near;  // of each leaf
  std::unique_ptr<Near[]> how_near;
  std::unique_ptr<uint32_t[]> undecided;  // a bit a lane of each leaf

  explicit TreeScratch(int64_t num_boxes)
      : trees(num_boxes),
        near(new NearLeaves<A>[leaf_begin(num_boxes)]),
        how_near(new Near[leaf_begin(num_boxes)]),
        undecided(new uint32_t[leaf_begin(num_boxes)]) {}
};

template <class A, Isa kIsa>
class TreeGroup {
 public:
  // The boxes are in score order, and the first of the group is box `begin` of the image.
  TreeGroup(int64_t begin, int64_t count, const Box<A>* boxes, const SuppressionRule<A>& rule,
            TreeScratch<A>* scratch)
      : count_(count),
        boxes_(boxes),
        rule_(rule),
        tree_(scratch->trees.tree(begin)),
        near_(&scratch->near[leaf_begin(begin)]),
        how_near_(&scratch->how_near[leaf_begin(begin)]),
        undecided_(&scratch->undecided[leaf_begin(begin)]) {
    build_tree<A>(count, boxes, rule.threshold, &tree_);
    std::fill_n(undecided_, tree_.num_leaves, ~0u);
    std::fill_n(how_near_, tree_.num_leaves, Near::kUnknown);
  }

  // Calls keep(k) for each kept box, `limit` at most.
  template <class Keep>
  void run(int64_t limit, const Keep& keep) {
    int64_t num_kept = 0;
    for (int64_t k = 0; k < count_ && num_kept < limit; ++k) {
      const uint32_t place = tree_.place[k];
      if (place != kNoPlace) {
        uint32_t& leaf = undecided_[place / kBoundsLanes];
        const uint32_t lane = 1u << place % kBoundsLanes;
        if ((leaf & lane) == 0) continue;
        leaf &= ~lane;
        strike_out(place / kBoundsLanes, boxes_[k]);
      }
      keep(k);
      ++num_kept;
    }
  }

 private:
  // What the box of leaf `own` hides.
  void strike_out(uint32_t own, const Box<A>& box) {
    const A box_area = area(box);
    // Of leaf `number`; false once that has no undecided box left.
    const auto strike_in = [&](int64_t number) {
      uint32_t& undecided = undecided_[number];
      undecided &= ~hidden_by<kIsa>(rule_, tree_.leaves[number], undecided, box, box_area);
      return undecided != 0;
    };
    NearLeaves<A>& near = near_[own];
    Near& how = how_near_[own];
    if (how == Near::kFew) {
      uint32_t leaves = near.cores.template meets<kIsa>(box);
      for (; leaves != 0; leaves &= leaves - 1) {
        const int child = __builtin_ctz(leaves);
        if (!strike_in(near.number[child])) near.cores.clear(child);  // nobody comes here again
      }
      return;
    }
    int num_met = 0;
    tree_.template for_each_node<kIsa>(box, [&](int64_t node, uint32_t leaves) {
      num_met += __builtin_popcount(leaves);
      for (; leaves != 0; leaves &= leaves - 1) {
        const int child = __builtin_ctz(leaves);
        if (!strike_in(node * kBoundsLanes + child)) tree_.nodes[node].clear(child);
      }
      return true;
    });
    if (how == Near::kMany) return;
    // One that meets many itself need not look for those of its whole leaf.
    how = num_met <= kBoundsLanes / 4 ? near.template find<kIsa>(tree_, tree_.leaves[own])
                                      : Near::kMany;
  }

  int64_t count_;
  const Box<A>* boxes_;
  const SuppressionRule<A>& rule_;
  BoxTree<A> tree_;
  NearLeaves<A>* near_;
  Near* how_near_;
  uint32_t* undecided_;
};

}  // namespace cpu
}  // namespace pydet
