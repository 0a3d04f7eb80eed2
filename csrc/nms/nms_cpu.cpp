// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <memory>
#include <vector>

#include "common/bounds.h"
#include "common/isa.h"
#include "common/parallel_for.h"
#include "common/sort_items.h"
#include "common/suppression.h"
#include "nms/nms.h"
#include "nms/nms_bits.h"
#include "nms/nms_pairs.h"
#include "nms/nms_tree.h"

namespace pydet {
namespace cpu {
namespace {

// The boxes of one class in score order. members[k].index is the rank of the k-th (null: k itself).
template <class A>
struct Group {
  int64_t count, limit;  // `limit` boxes are kept at most
  const ClassItem* members;
  const Box<A>* boxes;
  uint8_t* keep;  // by rank: 1 for kept boxes

  int64_t rank(int64_t k) const { return members == nullptr ? k : members[k].index; }
};

// Groups of more boxes take a tree: bits are compared for all that are left, whereas in a tree only
// what is near is met.
constexpr int64_t kMostByBits = 2560;

template <class A>
struct SuppressByBits {
  static void run(const Group<A>* group, const SuppressionRule<A>* rule, const PlaneBins<A>* plane,
                  BitScratch<A>* scratch) {
    BitGroup<A> bits(group->count, group->boxes, *rule, *plane, scratch);
    bits.run(group->limit, [&](int64_t k) { group->keep[group->rank(k)] = 1; });
  }
};

// Compares each kept box with all behind it: the least work for few boxes.
constexpr int64_t kMostByLeaves = 384;

template <class A, Isa kIsa>
struct SuppressByLeaves {
  static void run(const Group<A>* group, const SuppressionRule<A>* rule) {
    const int64_t num_leaves = (group->count + kBoundsLanes - 1) / kBoundsLanes;
    Leaf<A> leaves[kMostByLeaves / kBoundsLanes];
    uint32_t undecided[kMostByLeaves / kBoundsLanes];
    for (int64_t number = 0; number < num_leaves; ++number) {
      const int64_t begin = number * kBoundsLanes, left = group->count - begin;
      Leaf<A>& leaf = leaves[number];
      for (int lane = 0; lane < kBoundsLanes; ++lane)
        leaf.boxes.set(lane, group->boxes[begin + std::min<int64_t>(lane, left - 1)]);
      for (int lane = 0; lane < kBoundsLanes; ++lane) {
        const Box<A> box = leaf.boxes.box(lane);
        const A box_area = area(box);
        leaf.area[lane] =
            can_overlap(box, box_area) ? box_area : std::numeric_limits<A>::quiet_NaN();
      }
      undecided[number] = left < kBoundsLanes ? (1u << left) - 1 : ~0u;
    }
    // Leaf by leaf: first which of its own boxes are kept, then what these hide of the others.
    int64_t num_kept = 0;
    for (int64_t number = 0; number < num_leaves; ++number) {
      const Leaf<A>& leaf = leaves[number];
      uint32_t kept = 0;
      while (undecided[number] != 0 && num_kept < group->limit) {
        const int lane = __builtin_ctz(undecided[number]);
        undecided[number] &= undecided[number] - 1;
        group->keep[group->rank(number * kBoundsLanes + lane)] = 1;
        ++num_kept;
        kept |= 1u << lane;
        strike_out(*rule, leaf, lane, leaf, &undecided[number]);
      }
      for (int64_t other = number + 1; other < num_leaves; ++other) {
        for (uint32_t left = kept; left != 0; left &= left - 1)
          strike_out(*rule, leaf, __builtin_ctz(left), leaves[other], &undecided[other]);
      }
    }
  }

 private:
  // What a box hides of a leaf.
  static void strike_out(const SuppressionRule<A>& rule, const Leaf<A>& own, int lane,
                         const Leaf<A>& leaf, uint32_t* undecided) {
    *undecided &= ~hidden_by<kIsa>(rule, leaf, *undecided, own.boxes.box(lane), own.area[lane]);
  }
};

template <class A>
struct BuildTree {
  static void run(const Group<A>* group, const SuppressionRule<A>* rule, BoxTree<A>* tree) {
    build_tree<A>(group->count, group->boxes, rule->threshold, tree);
  }
};

template <class A, Isa kIsa>
struct SuppressByTree {
  static void run(const Group<A>* group, const SuppressionRule<A>* rule, BoxTree<A>* tree,
                  uint32_t* undecided) {
    TreeGroup<A, kIsa> boxes(group->count, group->boxes, *rule, tree, undecided);
    boxes.run(group->limit, [&](int64_t k) { group->keep[group->rank(k)] = 1; });
  }
};

template <class A>
void suppress_many(int64_t begin, const Group<A>& group, const SuppressionRule<A>& rule,
                   TreeScratch<A>* scratch) {
  BoxTree<A> tree = scratch->trees.tree(begin);
  run_on_best_isa<BuildTree<A>>(&group, &rule, &tree);
  std::vector<HidingPair> pairs;
  if (find_few_pairs(tree, rule, &pairs)) {
    suppress_by_pairs(group.count, group.limit, &pairs,
                      [&](int64_t k) { group.keep[group.rank(k)] = 1; });
  } else {
    run_for_isa<SuppressByTree, A>(&group, &rule, &tree, &scratch->undecided[leaf_begin(begin)]);
  }
}

// What one image needs; one a worker, so that nothing is allocated inside of a thread.
template <class T>
struct Workspace {
  using A = acc_t<T>;
  ScoreSort<A> by_score;
  ClassGroups groups;
  std::unique_ptr<Box<A>[]> boxes;  // class by class, in score order
  std::unique_ptr<uint8_t[]> keep;
  std::vector<BitScratch<A>> bits;  // one for each thread that may work on this image
  TreeScratch<A> trees;

  Workspace(int64_t num_boxes, bool has_classes, int64_t threads)
      : by_score(num_boxes),
        groups(has_classes ? num_boxes : 0),
        boxes(new Box<A>[num_boxes]),
        keep(new uint8_t[num_boxes]),
        trees(num_boxes > kMostByBits ? num_boxes : 0) {
    for (int64_t i = 0; i < threads; ++i) bits.emplace_back(std::min(num_boxes, kMostByBits));
  }
};

enum class Way { kLeaves, kBits, kTree };

// How the boxes of a group of so many are suppressed.
Way way_for(int64_t count) {
  // Without vectors the sets of bits are quicker for few boxes, too.
  if (count <= kMostByLeaves && active_isa() != Isa::kPortable) return Way::kLeaves;
  return count <= kMostByBits ? Way::kBits : Way::kTree;
}

// Suppresses within the group that begins at box `begin` of w.boxes. `plane`: for groups that take
// bits.
template <class T>
void suppress_group(int64_t begin, const Group<acc_t<T>>& group,
                    const SuppressionRule<acc_t<T>>& rule, const PlaneBins<acc_t<T>>& plane,
                    Workspace<T>& w, int64_t worker) {
  using A = acc_t<T>;
  switch (way_for(group.count)) {
    case Way::kLeaves:
      return run_for_isa<SuppressByLeaves, A>(&group, &rule);
    case Way::kBits:
      return run_on_best_isa<SuppressByBits<A>>(&group, &rule, &plane, &w.bits[worker]);
    case Way::kTree:
      return suppress_many(begin, group, rule, &w.trees);
  }
}

// Boxes that a thread takes at a time, about.
constexpr int64_t kGrain = 2048;

// Suppresses among the first `count` boxes in score order and marks the kept ones in w.keep.
template <class T>
void suppress(int64_t count, const NmsParams& p, const ScoreItem<acc_t<T>>* ranked, const T* boxes,
              const int64_t* idxs, Workspace<T>& w) {
  using A = acc_t<T>;
  const SuppressionRule<A> rule(p.overlap, p.iou_threshold);
  std::fill_n(w.keep.get(), count, uint8_t{0});
  const Group<A> all{count, p.max_output, nullptr, w.boxes.get(), w.keep.get()};
  if (idxs == nullptr) {
    for (int64_t rank = 0; rank < count; ++rank) {
      w.boxes[rank] = load_box(boxes, ranked[rank].index);
    }
    const auto plane = PlaneBins<A>::of(way_for(count) == Way::kBits ? count : 0, all.boxes);
    suppress_group(0, all, rule, plane, w, 0);
    return;
  }
  w.groups.find(count, [&](int64_t rank) { return idxs[ranked[rank].index]; });
  const ClassItem* members = w.groups.members();
  for (int64_t k = 0; k < count; ++k) {
    w.boxes[k] = load_box(boxes, ranked[members[k].index].index);
  }
  bool any_bits = false;
  for (int64_t number = 0; number < w.groups.size(); ++number)
    any_bits |= way_for(w.groups.count(number)) == Way::kBits;
  const auto plane = PlaneBins<A>::of(any_bits ? count : 0, all.boxes);
  parallel_workers(static_cast<int64_t>(w.bits.size()), w.groups.size(), w.groups.grain(kGrain),
                   [&](int64_t worker, int64_t first, int64_t end) {
                     for (int64_t number = first; number < end; ++number) {
                       const int64_t begin = w.groups.begin(number);
                       Group<A> group = all;
                       group.count = w.groups.count(number);
                       group.members = members + begin;
                       group.boxes = all.boxes + begin;
                       suppress_group(begin, group, rule, plane, w, worker);
                     }
                   });
}

// One image: fills its row of keep and returns the number of kept boxes.
template <class T>
int64_t nms_image(const NmsParams& p, const T* boxes, const T* scores, const int64_t* idxs,
                  Workspace<T>& w, int64_t* keep) {
  const acc_t<T> score_threshold = rounded_to<T>(p.score_threshold);
  w.by_score.clear();
  for (int64_t i = 0; i < p.num_boxes; ++i) {
    const acc_t<T> score = load(scores + i);
    if (p.filter_scores && !(score > score_threshold)) continue;
    w.by_score.add(score, i);
    // Read by rank later, from anywhere; now in the order in which they lie.
    __builtin_prefetch(boxes + 4 * i);
    if (idxs != nullptr) __builtin_prefetch(idxs + i);
  }
  const ScoreItem<acc_t<T>>* ranked = w.by_score.sort();
  const int64_t count = w.by_score.count();

  // Often a few of the best boxes fill the output: try with those first. Eight times as many at
  // each further try, so all failed ones together cost little.
  int64_t num_kept = 0, prefix = std::min(count, std::max<int64_t>(4096, 8 * p.max_output));
  while (true) {
    suppress(prefix, p, ranked, boxes, idxs, w);
    num_kept = 0;
    for (int64_t rank = 0; rank < prefix && num_kept < p.max_output; ++rank) {
      keep[num_kept] = ranked[rank].index;  // without a branch, which nobody can predict
      num_kept += w.keep[rank];
    }
    if (num_kept == p.max_output || prefix == count) break;
    prefix = std::min(count, 8 * prefix);
  }
  std::fill(keep + num_kept, keep + p.max_output, int64_t{-1});
  return num_kept;
}

}  // namespace

template <class T>
void nms(const NmsParams& params, const T* boxes, const T* scores, const int64_t* idxs,
         int64_t* keep, int64_t* counts) {
  const int64_t n = params.num_boxes;
  const int64_t workers = std::min(params.batch, num_threads());
  std::vector<Workspace<T>> workspaces;
  // The classes of a single image are shared out.
  const bool share = workers == 1 && idxs != nullptr;
  const int64_t threads = share ? std::min(num_threads(), n / kGrain + 1) : 1;
  for (int64_t i = 0; i < workers; ++i) workspaces.emplace_back(n, idxs != nullptr, threads);
  parallel_workers(workers, params.batch, 1, [&](int64_t worker, int64_t b, int64_t) {
    counts[b] = nms_image(params, boxes + 4 * b * n, scores + b * n,
                          idxs == nullptr ? nullptr : idxs + b * n, workspaces[worker],
                          keep + b * params.max_output);
  });
}

template void nms(const NmsParams&, const float*, const float*, const int64_t*, int64_t*, int64_t*);
template void nms(const NmsParams&, const double*, const double*, const int64_t*, int64_t*,
                  int64_t*);
template void nms(const NmsParams&, const Half*, const Half*, const int64_t*, int64_t*, int64_t*);
template void nms(const NmsParams&, const BFloat16*, const BFloat16*, const int64_t*, int64_t*,
                  int64_t*);

}  // namespace cpu
}  // namespace pydet
