// SPDX-License-Identifier: Apache-2.0
// Greedy suppression within one group of boxes on the CPU where few boxes hide others. All pairs of
// which one hides the other are found first, leaf by leaf of a tree, and decided in score order
// then: each pair is compared once, while both leaves lie in the cache, and by all threads.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "common/box_tree.h"
#include "common/isa.h"
#include "common/parallel_for.h"
#include "common/sort_items.h"
#include "nms/nms_tree.h"

namespace pydet {
namespace cpu {

// The better box of a pair is its key, the one that it hides its index: numbers within the group.
using HidingPair = PlaceItem;

template <class A, Isa kIsa>
struct FindPairs {
  // Appends the pairs of a box in a leaf of [first, end) and one in the same leaf or behind. Stops
  // with the first pairs beyond `most`.
  static void run(const BoxTree<A>* tree, const SuppressionRule<A>* rule, int64_t first,
                  int64_t end, size_t most, std::vector<HidingPair>* pairs) {
    for (int64_t number = first; number < end && pairs->size() <= most; ++number) {
      const Leaf<A>& leaf = tree->leaves[number];
      for (int lane = 0; lane + 1 < kBoundsLanes; ++lane)
        compare(*rule, leaf, lane, leaf, ~1u << lane, pairs);
      tree->template for_each_node<kIsa>(leaf.boxes.hull(), [&](int64_t node, uint32_t leaves) {
        for (; leaves != 0; leaves &= leaves - 1) {
          const int child = __builtin_ctz(leaves);
          const int64_t other = node * kBoundsLanes + child;
          if (other <= number) continue;
          uint32_t lanes = leaf.boxes.template meets<kIsa>(tree->nodes[node].box(child));
          for (; lanes != 0; lanes &= lanes - 1)
            compare(*rule, leaf, __builtin_ctz(lanes), tree->leaves[other], ~0u, pairs);
        }
        return pairs->size() <= most;
      });
    }
  }

 private:
  // A box with those of the other leaf that have a bit in `among`.
  static void compare(const SuppressionRule<A>& rule, const Leaf<A>& leaf, int lane,
                      const Leaf<A>& other, uint32_t among, std::vector<HidingPair>* pairs) {
    uint32_t hidden = hidden_by<kIsa>(rule, other, among, leaf.boxes.box(lane), leaf.area[lane]);
    for (; hidden != 0; hidden &= hidden - 1) {
      const uint32_t a = leaf.id[lane], b = other.id[__builtin_ctz(hidden)];
      pairs->push_back({std::min(a, b), std::max(a, b)});
    }
  }
};

// All pairs of a tree, where they are few; else false, and *pairs means nothing.
template <class A>
bool find_few_pairs(const BoxTree<A>& tree, const SuppressionRule<A>& rule,
                    std::vector<HidingPair>* pairs) {
  // So many a leaf: with more of them it takes less time to strike out from kept box to kept box.
  constexpr int64_t kFew = kBoundsLanes * 3 / 4;
  constexpr int64_t kSample = 16, kLeavesATask = 32;
  const int64_t sample = std::min(tree.num_leaves, kSample);
  for (int64_t i = 0; i < sample; ++i) {
    const int64_t number = i * tree.num_leaves / sample;
    run_for_isa<FindPairs, A>(&tree, &rule, number, number + 1, size_t{kFew * kSample}, pairs);
  }
  if (pairs->size() > static_cast<size_t>(kFew * sample)) return false;
  // The sample may have missed a crowd.
  const auto most = static_cast<size_t>(2 * kFew * tree.num_leaves);
  std::vector<std::vector<HidingPair>> found(num_threads());
  parallel_workers(num_threads(), tree.num_leaves, kLeavesATask,
                   [&](int64_t worker, int64_t first, int64_t end) {
                     run_for_isa<FindPairs, A>(&tree, &rule, first, end, most, &found[worker]);
                   });
  pairs->clear();
  for (const std::vector<HidingPair>& some : found) {
    if (some.size() > most) return false;
    pairs->insert(pairs->end(), some.begin(), some.end());
  }
  return true;
}

// Calls keep(k) for each of the `count` boxes that no kept one hides, `limit` at most.
template <class Keep>
void suppress_by_pairs(int64_t count, int64_t limit, std::vector<HidingPair>* pairs,
                       const Keep& keep) {
  std::vector<HidingPair> scratch(pairs->size());
  std::vector<uint8_t> is_hidden(count);
  const auto num_pairs = static_cast<int64_t>(pairs->size());
  const HidingPair* pair = sort_items(num_pairs, pairs->data(), scratch.data());
  const HidingPair* const end = pair + num_pairs;
  int64_t num_kept = 0;
  for (int64_t k = 0; k < count && num_kept < limit; ++k) {
    const uint8_t is_kept = is_hidden[k] == 0;
    for (; pair != end && pair->key == k; ++pair) is_hidden[pair->index] |= is_kept;
    if (is_kept == 0) continue;
    keep(k);
    ++num_kept;
  }
}

}  // namespace cpu
}  // namespace pydet
