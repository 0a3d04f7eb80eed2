// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <atomic>
#include <limits>
#include <memory>
#include <vector>

#include "common/box_tree.h"
#include "common/isa.h"
#include "common/parallel_for.h"
#include "common/sort_items.h"
#include "common/suppression.h"
#include "nms/nms.h"

namespace pydet {
namespace cpu {
namespace {

// Kept boxes that are compared with a candidate together: one vector register holds one coordinate
// of many.
constexpr int kLanes = 32;

template <class A>
struct Block {
  A x1[kLanes], y1[kLanes], x2[kLanes], y2[kLanes], area[kLanes];

  Box<A> box(int lane) const { return {x1[lane], y1[lane], x2[lane], y2[lane]}; }

  void set(int lane, const Box<A>& box, A box_area) {
    x1[lane] = box.x1;
    y1[lane] = box.y1;
    x2[lane] = box.x2;
    y2[lane] = box.y2;
    area[lane] = box_area;
  }

  // Boxes of NaN: they hide nothing.
  void clear() {
    const A nan = std::numeric_limits<A>::quiet_NaN();
    for (int lane = 0; lane < kLanes; ++lane) set(lane, {nan, nan, nan, nan}, nan);
  }
};

// Whether a box of the block hides the candidate.
template <class A>
bool hides(const SuppressionRule<A>& rule, const Block<A>& block, const Box<A>& box, A box_area) {
  int maybe = 0;
  for (int lane = 0; lane < kLanes; ++lane) {
    maybe |= rule.may_hide(intersection(box, block.box(lane)), box_area, block.area[lane]);
  }
  if (maybe == 0) return false;
  int surely = 0;
  if (rule.overlap == Overlap::kIou) {
    for (int lane = 0; lane < kLanes; ++lane) {
      surely |=
          iou(intersection(box, block.box(lane)), box_area, block.area[lane]) > rule.threshold;
    }
    return surely != 0;
  }
  for (int lane = 0; lane < kLanes && surely == 0; ++lane) {
    surely = rule.hides(block.box(lane), block.area[lane], box, box_area);
  }
  return surely != 0;
}

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

// How far a group is done.
struct Progress {
  int64_t next = 0;  // the first box that is not decided
  int64_t num_kept = 0;
  int64_t num_blocks = 0;  // full blocks of kept boxes
};

// From this many blocks of kept boxes on a tree of the boxes that are left finds faster what each
// one hides, if as many are left as building it takes.
constexpr int64_t kMostBlocks = 24, kTreeMin = 1024;

// Compares each box with all that are kept, until it is done or a tree pays.
template <class T>
struct SuppressByBlocks {
  using A = acc_t<T>;

  // `kept` has room for count / kLanes blocks.
  static void run(const Group<T>* group, const SuppressionRule<A>* rule, Block<A>* kept,
                  Progress* progress) {
    Block<A> last;  // the block being filled; only full ones are stored
    last.clear();
    int64_t k = 0, num_blocks = 0, num_kept = 0;
    int num_last = 0;
    const int64_t tree_until = group->count - kTreeMin;
    for (; k < group->count && num_kept < group->limit; ++k) {
      if (num_blocks >= kMostBlocks && num_last == 0 && k < tree_until) break;
      const Box<A> box = group->box(k);
      const A box_area = area(box);
      const bool overlaps = can_overlap(box, box_area);
      bool hidden = overlaps && hides(*rule, last, box, box_area);
      for (int64_t block = 0; overlaps && !hidden && block < num_blocks; ++block) {
        hidden = hides(*rule, kept[block], box, box_area);
      }
      if (hidden) continue;
      group->keep[group->rank(k)] = 1;
      ++num_kept;
      if (!overlaps) continue;
      last.set(num_last++, box, box_area);
      if (num_last == kLanes) {
        kept[num_blocks++] = last;
        last.clear();
        num_last = 0;
      }
    }
    *progress = {k, num_kept, num_blocks};
  }
};

// Strikes out what each kept box hides among the boxes that are left.
template <class T>
struct SuppressByTree {
  using A = acc_t<T>;

  // The tree holds the boxes from progress.next on; place[k - next] is where.
  static void run(const Group<T>* group, const SuppressionRule<A>* rule, const Block<A>* kept,
                  const BoxTree<A>* tree, const int64_t* place, Progress progress) {
    for (int64_t block = 0; block < progress.num_blocks; ++block) {
      for (int lane = 0; lane < kLanes; ++lane) {
        strike_out(*rule, *tree, kept[block].box(lane), kept[block].area[lane]);
      }
    }
    int64_t num_kept = progress.num_kept;
    for (int64_t k = progress.next; k < group->count && num_kept < group->limit; ++k) {
      const int64_t where = place[k - progress.next];
      if (where >= 0) {
        Leaf<A>& leaf = tree->leaves[where / kTreeLanes];
        const int lane = static_cast<int>(where % kTreeLanes);
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
        Leaf<A>& leaf = tree.leaves[node * kTreeLanes + child];
        leaf.alive &= ~hidden_by(rule, leaf, box, box_area);
        if (leaf.alive == 0) tree.nodes[node].clear(child);  // nobody comes here again
      }
    });
  }

  // A bit for each lane that the box hides; those that are not alive may have either.
  static uint32_t hidden_by(const SuppressionRule<A>& rule, const Leaf<A>& leaf, const Box<A>& box,
                            A box_area) {
    uint32_t maybe = 0, surely = 0;
    for (int lane = 0; lane < kTreeLanes; ++lane) {
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
  std::unique_ptr<Block<A>[]> kept;
  std::unique_ptr<uint8_t[]> keep;
  std::unique_ptr<Leaf<A>[]> leaves;
  std::unique_ptr<Bounds<A>[]> nodes, roots;

  explicit Workspace(int64_t num_boxes)
      : items(new Item[num_boxes]),
        scratch(new Item[num_boxes]),
        order(new int64_t[num_boxes]),
        group_begin(new int64_t[num_boxes + 1]),
        kept(new Block<A>[num_boxes / kLanes]),
        keep(new uint8_t[num_boxes]) {
    if (num_boxes < kTreeMin) return;  // no group takes a tree
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
                    Workspace<T>& w) {
  using A = acc_t<T>;
  // A group fills at most floor(count / kLanes) blocks, so those that start at floor(begin /
  // kLanes) end before the next group's.
  Block<A>* kept = w.kept.get() + begin / kLanes;
  Progress progress;
  run_on_best_isa<SuppressByBlocks<T>>(&group, &rule, kept, &progress);
  if (progress.next == group.count || progress.num_kept == group.limit) return;
  BoxTree<A> tree{0,
                  0,
                  0,
                  w.leaves.get() + leaf_begin(begin),
                  w.nodes.get() + node_begin(begin),
                  w.roots.get() + node_begin(begin)};
  int64_t* place = w.place.get() + begin;
  build_tree<A>(
      group.count - progress.next, [&](int64_t k) { return group.box(progress.next + k); },
      w.tree_items.get() + begin, w.tree_scratch.get() + begin, place, &tree);
  run_on_best_isa<SuppressByTree<T>>(&group, &rule, static_cast<const Block<A>*>(kept),
                                     static_cast<const BoxTree<A>*>(&tree),
                                     static_cast<const int64_t*>(place), progress);
}

// Boxes that a thread takes at a time, about.
constexpr int64_t kGrain = 2048;

// Suppresses among the first `count` boxes in score order and marks the kept ones in w.keep.
template <class T>
void suppress(int64_t count, const NmsParams& p, const T* boxes, const int64_t* idxs,
              Workspace<T>& w) {
  const SuppressionRule<acc_t<T>> rule(p.overlap, p.iou_threshold);
  std::fill_n(w.keep.get(), count, uint8_t{0});
  const Group<T> all{count, p.max_output, nullptr, w.order.get(), boxes, w.keep.get()};
  if (idxs == nullptr) {
    suppress_group(0, all, rule, w);
    return;
  }
  for (int64_t rank = 0; rank < count; ++rank) {
    w.items[rank] = {static_cast<uint64_t>(idxs[w.order[rank]]), rank};
  }
  int64_t num_groups = 0;
  const Item* members =
      group_items(count, w.items.get(), w.scratch.get(), w.group_begin.get(), &num_groups);
  parallel_for(num_groups, kGrain * num_groups / std::max<int64_t>(1, count),
               [&](int64_t first, int64_t end) {
                 for (int64_t number = first; number < end; ++number) {
                   const int64_t begin = w.group_begin[number];
                   Group<T> group = all;
                   group.count = w.group_begin[number + 1] - begin;
                   group.members = members + begin;
                   suppress_group(begin, group, rule, w);
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
  for (int64_t i = 0; i < workers; ++i) workspaces.emplace_back(n);
  std::atomic<int64_t> next{0};
  parallel_for(workers, 1, [&](int64_t worker, int64_t) {
    for (int64_t b = next++; b < params.batch; b = next++) {
      counts[b] = nms_image(params, boxes + 4 * b * n, scores + b * n,
                            idxs == nullptr ? nullptr : idxs + b * n, workspaces[worker],
                            keep + b * params.max_output);
    }
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
