// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <memory>
#include <vector>

#include "common/box_tree.h"
#include "common/isa.h"
#include "common/parallel_for.h"
#include "common/sort_items.h"
#include "common/suppression.h"
#include "nms/nms.h"
#include "nms/nms_bits.h"

namespace pydet {
namespace cpu {
namespace {

// The boxes of one class in score order. members[k].index is the rank of the k-th (null: k itself),
// order[rank] the index of its box.
template <class T>
struct Group {
  int64_t count, limit;  // `limit` boxes are kept at most
  const Item* members;
  const int64_t* order;
  const T* boxes;
  uint8_t* keep;  // by rank: 1 for kept boxes

  int64_t rank(int64_t k) const { return members == nullptr ? k : members[k].index; }
  Box<acc_t<T>> box(int64_t k) const { return load_box(boxes, order[rank(k)]); }
};

// Groups of more boxes take a tree: bits are compared for all that are left, whereas in a tree only
// what is near is met.
constexpr int64_t kMostByBits = 8192;

template <class T>
struct SuppressByBits {
  using A = acc_t<T>;

  static void run(const Group<T>* group, const SuppressionRule<A>* rule, const PlaneBins<A>* plane,
                  BitScratch<A>* scratch) {
    BitGroup<A> bits(
        group->count, [&](int64_t k) { return group->box(k); }, *rule, *plane, scratch);
    bits.run(group->limit, [&](int64_t k) { group->keep[group->rank(k)] = 1; });
  }
};

template <class T>
struct SuppressByTree {
  using A = acc_t<T>;

  // place[k] is where in the tree box k stands.
  static void run(const Group<T>* group, const SuppressionRule<A>* rule, const BoxTree<A>* tree,
                  const int64_t* place) {
    int64_t num_kept = 0;
    for (int64_t k = 0; k < group->count && num_kept < group->limit; ++k) {
      const int64_t where = place[k];
      if (where >= 0) {
        Leaf<A>& leaf = tree->leaves[where / kBoundsLanes];
        const int lane = static_cast<int>(where % kBoundsLanes);
        if ((leaf.alive >> lane & 1) == 0) continue;
        leaf.alive &= ~(1u << lane);
        strike_out(*rule, *tree, leaf.boxes.box(lane), leaf.area[lane]);
      }
      group->keep[group->rank(k)] = 1;
      ++num_kept;
    }
  }

 private:
  static void strike_out(const SuppressionRule<A>& rule, const BoxTree<A>& tree, const Box<A>& box,
                         A box_area) {
    const A least = least_intersection(box_area, rule.threshold);
    tree.for_each_node(box, least, [&](int64_t node, uint32_t leaves) {
      for (; leaves != 0; leaves &= leaves - 1) {
        const int child = __builtin_ctz(leaves);
        Leaf<A>& leaf = tree.leaves[node * kBoundsLanes + child];
        leaf.alive &= ~hidden_by(rule, leaf, box, box_area);
        if (leaf.alive == 0) tree.nodes[node].clear(child);  // nobody comes here again
      }
    });
  }

  // A bit for each lane that the box hides; those that are not alive may have either.
  static uint32_t hidden_by(const SuppressionRule<A>& rule, const Leaf<A>& leaf, const Box<A>& box,
                            A box_area) {
    uint32_t maybe = 0, surely = 0;
    for (int lane = 0; lane < kBoundsLanes; ++lane) {
      const A inter = intersection(box, leaf.boxes.box(lane));
      maybe |= static_cast<uint32_t>(rule.may_hide(inter, box_area, leaf.area[lane])) << lane;
    }
    for (maybe &= leaf.alive; maybe != 0; maybe &= maybe - 1) {
      const int lane = __builtin_ctz(maybe);
      surely |=
          static_cast<uint32_t>(rule.hides(box, box_area, leaf.boxes.box(lane), leaf.area[lane]))
          << lane;
    }
    return surely;
  }
};

// What one image needs; one a worker, so that nothing is allocated inside of a thread.
template <class T>
struct Workspace {
  using A = acc_t<T>;
  std::unique_ptr<Item[]> items, scratch, tree_items, tree_scratch;
  std::unique_ptr<int64_t[]> order, group_begin, place;
  std::unique_ptr<uint8_t[]> keep;
  std::unique_ptr<Leaf<A>[]> leaves;
  std::unique_ptr<Bounds<A>[]> nodes, roots;
  std::vector<BitScratch<A>> bits;  // one for each thread that may work on this image

  Workspace(int64_t num_boxes, int64_t threads)
      : items(new Item[num_boxes]),
        scratch(new Item[num_boxes]),
        order(new int64_t[num_boxes]),
        group_begin(new int64_t[num_boxes + 1]),
        keep(new uint8_t[num_boxes]) {
    for (int64_t i = 0; i < threads; ++i) bits.emplace_back(std::min(num_boxes, kMostByBits));
    if (num_boxes <= kMostByBits) return;
    tree_items.reset(new Item[num_boxes]);
    tree_scratch.reset(new Item[num_boxes]);
    place.reset(new int64_t[num_boxes]);
    leaves.reset(new Leaf<A>[leaf_begin(num_boxes)]);
    nodes.reset(new Bounds<A>[node_begin(num_boxes)]);
    roots.reset(new Bounds<A>[node_begin(num_boxes)]);
  }
};

// Suppresses within one group; its boxes are the image's from `begin` on, if sorted by class.
template <class T>
void suppress_group(int64_t begin, const Group<T>& group, const SuppressionRule<acc_t<T>>& rule,
                    const PlaneBins<acc_t<T>>& plane, Workspace<T>& w, int64_t worker) {
  using A = acc_t<T>;
  if (group.count <= kMostByBits) {
    run_on_best_isa<SuppressByBits<T>>(&group, &rule, &plane, &w.bits[worker]);
    return;
  }
  BoxTree<A> tree{0,
                  0,
                  0,
                  w.leaves.get() + leaf_begin(begin),
                  w.nodes.get() + node_begin(begin),
                  w.roots.get() + node_begin(begin)};
  int64_t* place = w.place.get() + begin;
  build_tree<A>(
      group.count, [&](int64_t k) { return group.box(k); }, w.tree_items.get() + begin,
      w.tree_scratch.get() + begin, place, &tree);
  run_on_best_isa<SuppressByTree<T>>(&group, &rule, static_cast<const BoxTree<A>*>(&tree),
                                     static_cast<const int64_t*>(place));
}

// Boxes that a thread takes at a time, about.
constexpr int64_t kGrain = 2048;

// Suppresses among the first `count` boxes in score order and marks the kept ones in w.keep.
template <class T>
void suppress(int64_t count, const NmsParams& p, const T* boxes, const int64_t* idxs,
              Workspace<T>& w) {
  using A = acc_t<T>;
  const SuppressionRule<A> rule(p.overlap, p.iou_threshold);
  std::fill_n(w.keep.get(), count, uint8_t{0});
  const Group<T> all{count, p.max_output, nullptr, w.order.get(), boxes, w.keep.get()};
  const auto plane = PlaneBins<A>::of(count, [&](int64_t k) { return all.box(k); });
  if (idxs == nullptr) {
    suppress_group(0, all, rule, plane, w, 0);
    return;
  }
  for (int64_t rank = 0; rank < count; ++rank) {
    w.items[rank] = {static_cast<uint64_t>(idxs[w.order[rank]]), rank};
  }
  int64_t num_groups = 0;
  const Item* members =
      group_items(count, w.items.get(), w.scratch.get(), w.group_begin.get(), &num_groups);
  const int64_t grain = std::max<int64_t>(1, kGrain * num_groups / std::max<int64_t>(1, count));
  parallel_workers(static_cast<int64_t>(w.bits.size()), num_groups, grain,
                   [&](int64_t worker, int64_t first, int64_t end) {
                     for (int64_t number = first; number < end; ++number) {
                       const int64_t begin = w.group_begin[number];
                       Group<T> group = all;
                       group.count = w.group_begin[number + 1] - begin;
                       group.members = members + begin;
                       suppress_group(begin, group, rule, plane, w, worker);
                     }
                   });
}

// One image: fills its row of keep and returns the number of kept boxes.
template <class T>
int64_t nms_image(const NmsParams& p, const T* boxes, const T* scores, const int64_t* idxs,
                  Workspace<T>& w, int64_t* keep) {
  const acc_t<T> score_threshold = rounded_to<T>(p.score_threshold);
  int64_t count = 0;
  for (int64_t i = 0; i < p.num_boxes; ++i) {
    const acc_t<T> score = load(scores + i);
    if (!p.filter_scores || score > score_threshold) w.items[count++] = {score_key(score), i};
  }
  const Item* sorted = sort_items(count, w.items.get(), w.scratch.get());
  for (int64_t rank = 0; rank < count; ++rank) w.order[rank] = sorted[rank].index;

  // Often a few of the best boxes fill the output: try with those first. Eight times as many at
  // each further try, so all failed ones together cost little.
  int64_t num_kept = 0, prefix = std::min(count, std::max<int64_t>(4096, 8 * p.max_output));
  while (true) {
    suppress(prefix, p, boxes, idxs, w);
    num_kept = 0;
    for (int64_t rank = 0; rank < prefix && num_kept < p.max_output; ++rank) {
      if (w.keep[rank] != 0) keep[num_kept++] = w.order[rank];
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
  for (int64_t i = 0; i < workers; ++i) workspaces.emplace_back(n, threads);
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
