// SPDX-License-Identifier: Apache-2.0
// The tree must lead from each box to all that suppression may hide, at any scale and threshold.
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "check.h"
#include "common/box_tree.h"
#include "common/isa.h"
#include "common/suppression.h"

namespace {

using pydet::Box;
using pydet::kBoundsLanes;

// Boxes near each other, some alike but for the last bits, slivers, and some that overlap nothing.
template <class A>
std::vector<Box<A>> random_boxes(int64_t count, A scale, uint32_t seed) {
  const auto next = [&seed] {
    seed = seed * 1664525u + 1013904223u;
    return static_cast<A>(seed >> 8) / (1 << 24);
  };
  const A inf = std::numeric_limits<A>::infinity();
  std::vector<Box<A>> boxes;
  for (int64_t i = 0; i < count; ++i) {
    const A x = 30 * next(), y = 30 * next();
    const A width = std::exp2(6 * next()), height = std::exp2(6 * next());
    Box<A> box{scale * x, scale * y, scale * (x + width), scale * (y + height)};
    if (i % 3 == 1) {
      box = boxes[i - 1];  // its IoU with the one before is near a threshold
      const A share = i % 2 == 0 ? A(0.3) : A(0.5);
      (i % 4 < 2 ? box.x2 : box.y2) -= share * (i % 4 < 2 ? box.x2 - box.x1 : box.y2 - box.y1);
    } else if (i % 3 == 2 && i % 5 == 0) {
      box = boxes[i - 1];
      box.x1 = std::nextafter(box.x1, -inf);
    }
    if (i % 31 == 7) box.y2 = box.y1 + scale * A(1e-3);
    if (i % 31 == 8) box.x2 = box.x1 - scale;
    if (i % 31 == 9) box.y1 = i % 2 == 0 ? inf : static_cast<A>(NAN);
    boxes.push_back(box);
  }
  return boxes;
}

template <class A, pydet::Isa kIsa>
struct VisitLeaves {
  static void run(const pydet::BoxTree<A>* tree, const Box<A>* box, std::vector<bool>* visited) {
    tree->template for_each_node<kIsa>(*box, [&](int64_t node, uint32_t bits) {
      for (; bits != 0; bits &= bits - 1)
        (*visited)[node * kBoundsLanes + __builtin_ctz(bits)] = true;
      return true;
    });
  }
};

template <class A>
void test(A scale, double threshold, pydet::SuppressionOverlap overlap) {
  constexpr int64_t kCount = 300;
  const std::vector<Box<A>> boxes = random_boxes<A>(kCount, scale, 7);
  const pydet::SuppressionRule<A> rule(overlap, threshold);
  pydet::TreeMemory<A> memory(kCount);
  pydet::BoxTree<A> tree = memory.tree(0);
  pydet::build_tree<A>(kCount, boxes.data(), rule.threshold, &tree);
  for (int64_t i = 0; i < kCount; ++i) {
    std::vector<bool> visited(tree.num_leaves);
    pydet::run_for_isa<VisitLeaves, A>(static_cast<const pydet::BoxTree<A>*>(&tree), &boxes[i],
                                       &visited);
    const A area = pydet::area(boxes[i]);
    if (!pydet::can_overlap(boxes[i], area)) {
      CHECK(tree.place[i] == pydet::kNoPlace);
      continue;
    }
    CHECK(tree.leaves[tree.place[i] / kBoundsLanes].id[tree.place[i] % kBoundsLanes] == i);
    for (int64_t k = 0; k < kCount; ++k) {
      const A other = pydet::area(boxes[k]);
      if (!pydet::can_overlap(boxes[k], other)) continue;
      // Suppression hides above the threshold; soft suppression decays from it on.
      const A iou = pydet::iou(pydet::intersection(boxes[i], boxes[k]), area, other);
      const bool decays = iou > A(0) && iou >= rule.threshold;
      if (rule.hides(boxes[i], area, boxes[k], other) || decays)
        CHECK(visited[tree.place[k] / kBoundsLanes]);
    }
  }
}

template <class A>
void test_type(std::initializer_list<A> scales) {
  for (const A scale : scales) {
    for (const double threshold :
         {0.0, 1e-7, 1.01e-6, 0.3, 0.5, 0.7, std::nextafter(1.0, 0.0), 1.0}) {
      test<A>(scale, threshold, pydet::SuppressionOverlap::kIou);
      test<A>(scale, threshold, pydet::SuppressionOverlap::kDiou);
    }
  }
}

}  // namespace

int main() {
  // Areas around the smallest normal number, around 1e-30, and near the largest.
  test_type<float>({1.0f, 0x1p-66f, 0x1p-52f, 0x1p50f});
  test_type<double>({1.0, 0x1p-514, 0x1p-52, 0x1p500});
  return check::result();
}
