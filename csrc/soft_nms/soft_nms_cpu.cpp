// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <memory>
#include <vector>

#include "common/box_tree.h"
#include "common/decayed_output.h"
#include "common/isa.h"
#include "common/ordered_bits.h"
#include "common/parallel_for.h"
#include "common/suppression.h"
#include "soft_nms/soft_nms.h"

// A pick touches only the leaves of the tree that its box meets. Each leaf, node and root knows its
// best box, so the next pick is found by a look at the roots: no pass over all boxes, no order that
// a thread or an instruction set could change.

namespace pydet {
namespace cpu {
namespace {

// Of the lanes with a bit, the one of the smallest index.
inline int first_of(uint32_t lanes, const uint32_t* ids) {
  int result = __builtin_ctz(lanes);
  for (lanes &= lanes - 1; lanes != 0; lanes &= lanes - 1) {
    const int lane = __builtin_ctz(lanes);
    if (ids[lane] < ids[result]) result = lane;
  }
  return result;
}

// The best of 32 leaves, nodes or roots each: scores as integers of the same order (they are
// positive, or -1 for what is out), and the index of the box that has it.
template <class A>
struct Best {
  bits_t<A> score[kBoundsLanes];
  uint32_t id[kBoundsLanes];

  void clear() {
    for (int lane = 0; lane < kBoundsLanes; ++lane) {
      score[lane] = to_bits(A(-1));
      id[lane] = kNoPlace;
    }
  }

  bits_t<A> max() const {
    bits_t<A> result = score[0];
    for (int lane = 1; lane < kBoundsLanes; ++lane) result = std::max(result, score[lane]);
    return result;
  }

  // The lane of the best score, of equals that of the smallest index.
  template <Isa kIsa>
  int lane_of(bits_t<A> best) const {
    return first_of(bits_where<kIsa>([&](int lane) { return score[lane] == best; }), id);
  }

  template <Isa kIsa>
  void set(int lane, const Best& below) {
    score[lane] = below.max();
    id[lane] = below.id[below.template lane_of<kIsa>(score[lane])];
  }
};

// What a group of boxes of one class needs.
template <class A>
struct Group {
  BoxTree<A> tree;
  A (*scores)[kBoundsLanes];  // [num_leaves] by leaf and lane; -1 is out
  Best<A>*of_leaves, *of_nodes;
};

template <class A>
struct Rule {
  Decay method;
  A iou_threshold, sigma, score_threshold;
};

template <class A, Isa kIsa>
struct PickFromGroup {
  // Picks up to `limit` boxes; result[k] is the decayed score of the group's k-th box where it is
  // picked.
  template <class Write>
  static void pick(int64_t limit, const Rule<A>& rule, const Group<A>& group, const Write& write) {
    const BoxTree<A>& tree = group.tree;
    start(group);
    for (int64_t picks = 0; picks < limit; ++picks) {
      int64_t root = 0;
      bits_t<A> best = group.of_nodes[0].max();
      for (int64_t other = 1; other < tree.num_roots; ++other) {
        const bits_t<A> score = group.of_nodes[other].max();
        if (score > best || (score == best && best_id(group, other) < best_id(group, root))) {
          best = score;
          root = other;
        }
      }
      if (best < 0) return;  // all are out
      const int64_t k = best_id(group, root);
      const int64_t leaf = group.tree.place[k] / kBoundsLanes;
      const int lane = static_cast<int>(group.tree.place[k] % kBoundsLanes);
      write(k, group.scores[leaf][lane]);
      group.scores[leaf][lane] = A(-1);
      decay(rule, group, tree.leaves[leaf].boxes.box(lane), tree.leaves[leaf].area[lane]);
    }
  }

 private:
  static int64_t best_id(const Group<A>& group, int64_t root) {
    const Best<A>& nodes = group.of_nodes[root];
    return nodes.id[nodes.template lane_of<kIsa>(nodes.max())];
  }

  static void start(const Group<A>& group) {
    const BoxTree<A>& tree = group.tree;
    for (int64_t node = 0; node < tree.num_nodes; ++node) group.of_leaves[node].clear();
    for (int64_t root = 0; root < tree.num_roots; ++root) group.of_nodes[root].clear();
    for (int64_t leaf = 0; leaf < tree.num_leaves; ++leaf) refresh_leaf(group, leaf);
    for (int64_t node = 0; node < tree.num_nodes; ++node) refresh_node(group, node);
  }

  static void refresh_leaf(const Group<A>& group, int64_t leaf) {
    const A* scores = group.scores[leaf];
    bits_t<A> best = to_bits(scores[0]);
    for (int lane = 1; lane < kBoundsLanes; ++lane) best = std::max(best, to_bits(scores[lane]));
    Best<A>& node = group.of_leaves[leaf / kBoundsLanes];
    node.score[leaf % kBoundsLanes] = best;
    if (best < 0) return;  // all are out: nobody asks which is the first
    const uint32_t* ids = group.tree.leaves[leaf].id;
    const uint32_t equal =
        bits_where<kIsa>([&](int lane) { return to_bits(scores[lane]) == best; });
    node.id[leaf % kBoundsLanes] = ids[first_of(equal, ids)];
  }

  static void refresh_node(const Group<A>& group, int64_t node) {
    group.of_nodes[node / kBoundsLanes].template set<kIsa>(static_cast<int>(node % kBoundsLanes),
                                                           group.of_leaves[node]);
  }

  // Lowers the scores of all boxes that meet this one, which itself is out already.
  static void decay(const Rule<A>& rule, const Group<A>& group, const Box<A>& box, A box_area) {
    const bool linear = rule.method == Decay::kLinear;
    group.tree.template for_each_node<kIsa>(box, [&](int64_t node, uint32_t leaves) {
      for (; leaves != 0; leaves &= leaves - 1) {
        const int64_t number = node * kBoundsLanes + __builtin_ctz(leaves);
        const Leaf<A>& leaf = group.tree.leaves[number];
        A* scores = group.scores[number];
        A ious[kBoundsLanes];
        for (int lane = 0; lane < kBoundsLanes; ++lane) {
          ious[lane] = iou(intersection(box, leaf.boxes.box(lane)), box_area, leaf.area[lane]);
        }
        for (int lane = 0; lane < kBoundsLanes; ++lane) {
          const A weight =
              linear ? decay_weight(Decay::kLinear, ious[lane], rule.iou_threshold, rule.sigma)
                     : gaussian_weight(ious[lane], rule.sigma);
          scores[lane] = score_or_out(scores[lane] * weight, rule.score_threshold);
        }
        refresh_leaf(group, number);
      }
      refresh_node(group, node);
      return true;
    });
  }
};

// Kernel for run_for_isa, which takes plain arguments.
template <class A, Isa kIsa>
struct RunGroup {
  static void run(int64_t limit, const Rule<A>* rule, const Group<A>* group,
                  const ClassItem* members, A* decayed) {
    PickFromGroup<A, kIsa>::pick(limit, *rule, *group, [&](int64_t k, A score) {
      decayed[members == nullptr ? k : members[k].index] = score;
    });
  }
};

// What one image needs; one a worker, so that nothing is allocated inside of a thread.
template <class T>
struct Workspace {
  using A = acc_t<T>;
  ScoreSort<A> by_score;
  ClassGroups groups;
  std::unique_ptr<Box<A>[]> boxes;  // class by class
  std::unique_ptr<A[]> decayed;
  TreeMemory<A> trees;
  std::unique_ptr<A[][kBoundsLanes]> scores;
  std::unique_ptr<Best<A>[]> of_leaves, of_nodes;

  explicit Workspace(int64_t n)
      : by_score(n),
        groups(n),
        boxes(new Box<A>[n]),
        decayed(new A[n]),
        trees(n),
        scores(new A[leaf_begin(n)][kBoundsLanes]),
        of_leaves(new Best<A>[node_begin(n)]),
        of_nodes(new Best<A>[node_begin(n)]) {}
};

// One class of an image: its boxes are members[k].index, or k where members is null.
template <class T>
void run_group(int64_t begin, int64_t count, int64_t limit, const Rule<acc_t<T>>& rule,
               const ClassItem* members, const T* boxes, const T* scores, Workspace<T>& w) {
  using A = acc_t<T>;
  const auto index_of = [&](int64_t k) -> int64_t {
    return members == nullptr ? k : members[k].index;
  };
  const int64_t leaf = leaf_begin(begin), node = node_begin(begin);
  OneLeaf<A> one_leaf;
  A one_scores[1][kBoundsLanes];
  Best<A> one_of_leaves, one_of_nodes;
  Group<A> group{w.trees.tree(begin), &w.scores[leaf], &w.of_leaves[node], &w.of_nodes[node]};
  if (count <= kBoundsLanes) {
    group = {one_leaf.tree(group.tree), one_scores, &one_of_leaves, &one_of_nodes};
  }
  for (int64_t k = 0; k < count; ++k) w.boxes[begin + k] = load_box(boxes, index_of(k));
  // A Gaussian decays whatever overlaps.
  const A threshold = rule.method == Decay::kLinear ? rule.iou_threshold : A(0);
  build_tree<A>(count, &w.boxes[begin], threshold, &group.tree);
  for (int64_t i = 0; i < group.tree.num_leaves; ++i) {
    std::fill_n(group.scores[i], kBoundsLanes, A(-1));
  }
  for (int64_t k = 0; k < count; ++k) {
    const A score = score_or_out(load(scores + index_of(k)), rule.score_threshold);
    const uint32_t place = group.tree.place[k];
    w.decayed[index_of(k)] = place == kNoPlace ? score : A(-1);
    if (place != kNoPlace) group.scores[place / kBoundsLanes][place % kBoundsLanes] = score;
  }
  if (group.tree.num_leaves == 0) return;
  run_for_isa<RunGroup, A>(limit, &rule, static_cast<const Group<A>*>(&group), members,
                           w.decayed.get());
}

// Boxes that a thread takes at a time, about.
constexpr int64_t kGrain = 512;

// One image: fills its rows and returns the number of kept boxes.
template <class T>
int64_t soft_nms_image(const SoftNmsParams& p, const T* boxes, const T* scores, const int64_t* idxs,
                       Workspace<T>& w, int64_t* keep, T* decayed) {
  using A = acc_t<T>;
  const int64_t n = p.num_boxes;
  const Rule<A> rule{p.method, threshold_above<A>(p.iou_threshold), sigma_of<A>(p.sigma),
                     rounded_to<T>(p.score_threshold)};
  if (idxs == nullptr) {
    run_group<T>(0, n, p.max_output, rule, nullptr, boxes, scores, w);
  } else {
    w.groups.find(n, [&](int64_t i) { return idxs[i]; });
    parallel_for(w.groups.size(), w.groups.grain(kGrain), [&](int64_t first, int64_t end) {
      for (int64_t group = first; group < end; ++group) {
        const int64_t begin = w.groups.begin(group);
        run_group<T>(begin, w.groups.count(group), p.max_output, rule, w.groups.members() + begin,
                     boxes, scores, w);
      }
    });
  }
  return write_by_score(n, p.max_output, rule.score_threshold, w.decayed.get(), &w.by_score, keep,
                        decayed);
}

}  // namespace

template <class T>
void soft_nms(const SoftNmsParams& params, const T* boxes, const T* scores, const int64_t* idxs,
              int64_t* keep, T* decayed, int64_t* counts) {
  const int64_t n = params.num_boxes, row = params.max_output;
  const int64_t workers = std::min(params.batch, num_threads());
  std::vector<Workspace<T>> workspaces;
  for (int64_t i = 0; i < workers; ++i) workspaces.emplace_back(n);
  parallel_workers(workers, params.batch, 1, [&](int64_t worker, int64_t b, int64_t) {
    counts[b] = soft_nms_image(params, boxes + 4 * b * n, scores + b * n,
                               idxs == nullptr ? nullptr : idxs + b * n, workspaces[worker],
                               keep + b * row, decayed + b * row);
  });
}

template void soft_nms(const SoftNmsParams&, const float*, const float*, const int64_t*, int64_t*,
                       float*, int64_t*);
template void soft_nms(const SoftNmsParams&, const double*, const double*, const int64_t*, int64_t*,
                       double*, int64_t*);
template void soft_nms(const SoftNmsParams&, const Half*, const Half*, const int64_t*, int64_t*,
                       Half*, int64_t*);
template void soft_nms(const SoftNmsParams&, const BFloat16*, const BFloat16*, const int64_t*,
                       int64_t*, BFloat16*, int64_t*);

}  // namespace cpu
}  // namespace pydet
