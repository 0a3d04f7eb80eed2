// SPDX-License-Identifier: Apache-2.0
// All pairs of boxes of which one hides the other, against two loops; or none of them, where there
// are many.
#include <algorithm>
#include <cstdint>
#include <vector>

#include "check.h"
#include "common/box_tree.h"
#include "common/suppression.h"
#include "nms/nms_pairs.h"

namespace {

using pydet::Box;
using pydet::SuppressionOverlap;
using pydet::cpu::HidingPair;

// Corners and sides of integers, so that many IoUs are equal to a threshold; some boxes are much
// like the one before.
template <class A>
std::vector<Box<A>> random_boxes(int64_t count, uint32_t size, uint32_t seed) {
  const auto next = [&seed](uint32_t below) {
    seed = seed * 1664525u + 1013904223u;
    return static_cast<A>((seed >> 8) % below);
  };
  std::vector<Box<A>> boxes;
  for (int64_t i = 0; i < count; ++i) {
    const A x = next(size), y = next(size), width = next(24), height = next(24);
    boxes.push_back({x, y, x + width, y + height});
    if (i % 8 == 1) {
      boxes[i] = boxes[i - 1];
      boxes[i].x2 += A(2);
    }
  }
  return boxes;
}

template <class A>
bool find(const std::vector<Box<A>>& boxes, const pydet::SuppressionRule<A>& rule,
          std::vector<HidingPair>* pairs) {
  const auto count = static_cast<int64_t>(boxes.size());
  pydet::TreeMemory<A> memory(count);
  pydet::BoxTree<A> tree = memory.tree(0);
  pydet::build_tree<A>(count, boxes.data(), rule.threshold, &tree);
  return pydet::cpu::find_few_pairs(tree, rule, pairs);
}

template <class A>
void test_all_pairs(int64_t count, SuppressionOverlap overlap, double threshold) {
  const std::vector<Box<A>> boxes = random_boxes<A>(count, 600, static_cast<uint32_t>(count));
  const pydet::SuppressionRule<A> rule(overlap, threshold);
  std::vector<HidingPair> pairs, wanted;
  CHECK(find(boxes, rule, &pairs));
  for (uint32_t i = 0; i < count; ++i) {
    for (uint32_t k = i + 1; k < count; ++k) {
      if (rule.hides(boxes[i], area(boxes[i]), boxes[k], area(boxes[k]))) wanted.push_back({i, k});
    }
  }
  const auto before = [](const HidingPair& a, const HidingPair& b) {
    return a.key != b.key ? a.key < b.key : a.index < b.index;
  };
  std::sort(pairs.begin(), pairs.end(), before);
  CHECK(!wanted.empty());
  CHECK(pairs.size() == wanted.size());
  CHECK(std::equal(pairs.begin(), pairs.end(), wanted.begin(), wanted.end(),
                   [&](const auto& a, const auto& b) { return !before(a, b) && !before(b, a); }));
}

// Among boxes that hardly meet a crowd at the end of the tree, where no leaf of the sample lies.
void test_crowd() {
  std::vector<Box<float>> boxes = random_boxes<float>(32000, 6000, 1);
  const pydet::SuppressionRule<float> rule(SuppressionOverlap::kIou, 0.5);
  std::vector<HidingPair> pairs;
  CHECK(find(boxes, rule, &pairs));
  for (int i = 0; i < 600; ++i) boxes.push_back({9000, -3000, 9020, -2980});
  CHECK(!find(boxes, rule, &pairs));
  CHECK(!find(random_boxes<float>(3000, 100, 2), rule, &pairs));
}

}  // namespace

int main() {
  for (const auto overlap : {SuppressionOverlap::kIou, SuppressionOverlap::kDiou}) {
    for (const double threshold : {0.25, 0.5, 0.7}) {
      test_all_pairs<float>(2000, overlap, threshold);
      test_all_pairs<double>(1501, overlap, threshold);
    }
  }
  test_all_pairs<float>(900, SuppressionOverlap::kIou, 0);
  test_crowd();
  return check::result();
}
