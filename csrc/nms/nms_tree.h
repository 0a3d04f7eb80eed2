// SPDX-License-Identifier: Apache-2.0
// Greedy suppression within one group of boxes on the CPU, by a tree: each kept box is compared
// with what is near to it.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
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
  const A least = t * box_area + (is_any ? std::numeric_limits<A>::denorm_min() : A(-1e-30));
  uint32_t maybe = bits_where_at_most<kIsa>(
      [&](int lane) { return t * leaf.area[lane] + least; },
      [&](int lane) {
        const Box<A> other = leaf.boxes.box(lane);
        const A width = min_of(box.x2, other.x2) - max_of(box.x1, other.x1);
        const A height = min_of(box.y2, other.y2) - max_of(box.y1, other.y1);
        return max_of(width, A(0)) * height * one_more;
      });
  maybe &= among;
  if (maybe == 0) return 0;
  if (rule.overlap == SuppressionOverlap::kIou) {
    return maybe & bits_where<kIsa>([&](int lane) {
             return iou(intersection(box, leaf.boxes.box(lane)), box_area, leaf.area[lane]) >
                    rule.threshold;
           });
  }
  uint32_t surely = 0;
  for (; maybe != 0; maybe &= maybe - 1) {
    const int lane = __builtin_ctz(maybe);
    surely |=
        static_cast<uint32_t>(rule.hides(box, box_area, leaf.boxes.box(lane), leaf.area[lane]))
        << lane;
  }
  return surely;
}

// What the groups of one image need, for `num_boxes` boxes in all of them.
template <class A>
struct TreeScratch {
  TreeMemory<A> trees;
  std::unique_ptr<uint32_t[]> undecided;  // a bit a lane of each leaf

  explicit TreeScratch(int64_t num_boxes)
      : trees(num_boxes), undecided(new uint32_t[leaf_begin(num_boxes)]) {}
};

template <class A, Isa kIsa>
class TreeGroup {
 public:
  // The boxes of the tree are in score order. What is struck out whole leaves the tree.
  TreeGroup(int64_t count, const Box<A>* boxes, const SuppressionRule<A>& rule, BoxTree<A>* tree,
            uint32_t* undecided)
      : count_(count), boxes_(boxes), rule_(rule), tree_(*tree), undecided_(undecided) {
    std::fill_n(undecided_, tree_.num_leaves, ~0u);
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
        strike_out(boxes_[k]);
      }
      keep(k);
      ++num_kept;
    }
  }

 private:
  // What the box hides.
  void strike_out(const Box<A>& box) {
    const A box_area = area(box);
    tree_.template for_each_node<kIsa>(box, [&](int64_t node, uint32_t leaves) {
      for (; leaves != 0; leaves &= leaves - 1) {
        const int child = __builtin_ctz(leaves);
        const int64_t number = node * kBoundsLanes + child;
        uint32_t& undecided = undecided_[number];
        undecided &= ~hidden_by<kIsa>(rule_, tree_.leaves[number], undecided, box, box_area);
        if (undecided == 0) tree_.nodes[node].clear(child);  // nobody comes here again
      }
      return true;
    });
  }

  int64_t count_;
  const Box<A>* boxes_;
  const SuppressionRule<A>& rule_;
  BoxTree<A>& tree_;
  uint32_t* undecided_;
};

}  // namespace cpu
}  // namespace pydet
