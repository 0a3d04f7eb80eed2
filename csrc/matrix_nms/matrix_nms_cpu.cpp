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
#include "matrix_nms/matrix_nms.h"

// Boxes that do not meet decay nothing, so each box asks the tree of its class for those that it
// meets, twice: for the greatest overlap with a better one (its peak), then for its decay.

namespace pydet {
namespace cpu {
namespace {

// The boxes of one class by falling score, as the tree holds them.
template <class A>
struct Group {
  BoxTree<A> tree;
  A (*peaks)[kBoundsLanes];  // [num_leaves] by leaf and lane: the greatest IoU with a better box
};

// All IoUs of a leaf with box number k that count: those of better boxes; 0 for the others.
template <class A>
void better_ious(const Leaf<A>& leaf, uint32_t k, const Box<A>& box, A box_area, A* ious) {
  for (int lane = 0; lane < kBoundsLanes; ++lane) {
    const A overlap = iou(intersection(box, leaf.boxes.box(lane)), box_area, leaf.area[lane]);
    ious[lane] = leaf.id[lane] < k ? overlap : A(0);
  }
}

// The least or the greatest of 32 numbers that are not negative.
template <class A>
A least_of(const A* values) {
  bits_t<A> least = to_bits(values[0]);
  for (int lane = 1; lane < kBoundsLanes; ++lane) least = std::min(least, to_bits(values[lane]));
  return from_ordered<A>(least);
}
template <class A>
A greatest_of(const A* values) {
  bits_t<A> greatest = to_bits(values[0]);
  for (int lane = 1; lane < kBoundsLanes; ++lane) {
    greatest = std::max(greatest, to_bits(values[lane]));
  }
  return from_ordered<A>(greatest);
}

// Calls visit(leaf number, leaf) for all leaves that the box meets.
template <Isa kIsa, class A, class Visit>
void for_each_leaf(const BoxTree<A>& tree, const Box<A>& box, const Visit& visit) {
  tree.template for_each_node<kIsa>(box, [&](int64_t node, uint32_t leaves) {
    for (; leaves != 0; leaves &= leaves - 1) {
      const int64_t number = node * kBoundsLanes + __builtin_ctz(leaves);
      visit(number, tree.leaves[number]);
    }
    return true;
  });
}

// The peaks of the boxes [begin, end) of a group.
template <class A, Isa kIsa>
struct FindPeaks {
  static void run(int64_t begin, int64_t end, const Group<A>* group) {
    for (int64_t k = begin; k < end; ++k) {
      if (group->tree.place[k] == kNoPlace) continue;
      const int64_t own = group->tree.place[k] / kBoundsLanes;
      const int own_lane = static_cast<int>(group->tree.place[k] % kBoundsLanes);
      const Box<A> box = group->tree.leaves[own].boxes.box(own_lane);
      const A box_area = group->tree.leaves[own].area[own_lane];
      A peak = 0;
      for_each_leaf<kIsa>(group->tree, box, [&](int64_t, const Leaf<A>& leaf) {
        A ious[kBoundsLanes];
        better_ious(leaf, static_cast<uint32_t>(k), box, box_area, ious);
        peak = std::max(peak, greatest_of(ious));
      });
      group->peaks[own][own_lane] = peak;
    }
  }
};

// The factors of the boxes [begin, end) of a group.
template <class A, Isa kIsa>
struct FindWeights {
  static void run(int64_t begin, int64_t end, const Group<A>* group, Decay method, A sigma,
                  A* weights) {
    for (int64_t k = begin; k < end; ++k) {
      weights[k] = 1;
      if (group->tree.place[k] == kNoPlace) continue;
      const int64_t own = group->tree.place[k] / kBoundsLanes;
      const int own_lane = static_cast<int>(group->tree.place[k] % kBoundsLanes);
      const Box<A> box = group->tree.leaves[own].boxes.box(own_lane);
      const A box_area = group->tree.leaves[own].area[own_lane];
      MatrixDecay<A> decay(method);
      for_each_leaf<kIsa>(group->tree, box, [&](int64_t number, const Leaf<A>& leaf) {
        A ious[kBoundsLanes];
        better_ious(leaf, static_cast<uint32_t>(k), box, box_area, ious);
        const A* peaks = group->peaks[number];
        if (method == Decay::kLinear) {
          for (int lane = 0; lane < kBoundsLanes; ++lane) {
            ious[lane] = MatrixDecay<A>::linear(ious[lane], peaks[lane]);
          }
          decay.value = std::min(decay.value, least_of(ious));
        } else {
          for (int lane = 0; lane < kBoundsLanes; ++lane) {
            ious[lane] = MatrixDecay<A>::gaussian(ious[lane], peaks[lane]);
          }
          decay.value = std::max(decay.value, greatest_of(ious));
        }
      });
      weights[k] = decay.weight(sigma);
    }
  }
};

// What one image needs; one a worker, so that nothing is allocated inside of a thread.
template <class T>
struct Workspace {
  using A = acc_t<T>;
  ScoreSort<A> by_score;
  ClassGroups groups;
  std::unique_ptr<Box<A>[]> boxes;  // class by class, in score order
  std::unique_ptr<A[]> weights, decayed;
  TreeMemory<A> trees;
  std::unique_ptr<A[][kBoundsLanes]> peaks;

  explicit Workspace(int64_t n)
      : by_score(n),
        groups(n),
        boxes(new Box<A>[n]),
        weights(new A[n]),
        decayed(new A[n]),
        trees(n),
        peaks(new A[leaf_begin(n)][kBoundsLanes]) {}
};

// Boxes that a thread takes at a time, about.
constexpr int64_t kGrain = 256;

// One class of an image: the boxes of ranks members[k].index, or k where members is null.
template <class T>
void run_group(int64_t begin, int64_t count, const MatrixNmsParams& p,
               const ScoreItem<acc_t<T>>* ranked, const ClassItem* members, const T* boxes,
               const T* scores, Workspace<T>& w) {
  using A = acc_t<T>;
  const auto index_of = [&](int64_t k) {
    return ranked[members == nullptr ? k : members[k].index].index;
  };
  OneLeaf<A> one_leaf;
  A one_peaks[1][kBoundsLanes];
  Group<A> group{w.trees.tree(begin), &w.peaks[leaf_begin(begin)]};
  if (count <= kBoundsLanes) group = {one_leaf.tree(group.tree), one_peaks};
  for (int64_t k = 0; k < count; ++k) w.boxes[begin + k] = load_box(boxes, index_of(k));
  build_tree<A>(count, &w.boxes[begin], A(0), &group.tree);
  for (int64_t i = 0; i < group.tree.num_leaves; ++i) {
    std::fill_n(group.peaks[i], kBoundsLanes, A(0));
  }
  const Group<A>* shared = &group;
  const A sigma = sigma_of<A>(p.sigma);
  A* weights = &w.weights[begin];
  parallel_for(count, kGrain,
               [&](int64_t first, int64_t end) { run_for_isa<FindPeaks, A>(first, end, shared); });
  parallel_for(count, kGrain, [&](int64_t first, int64_t end) {
    run_for_isa<FindWeights, A>(first, end, shared, p.method, sigma, weights);
  });
  for (int64_t k = 0; k < count; ++k) {
    w.decayed[index_of(k)] = load(scores + index_of(k)) * weights[k];
  }
}

// One image: fills its rows and returns the number of kept boxes.
template <class T>
int64_t matrix_nms_image(const MatrixNmsParams& p, const T* boxes, const T* scores,
                         const int64_t* idxs, Workspace<T>& w, int64_t* keep, T* decayed) {
  using A = acc_t<T>;
  const A score_threshold = rounded_to<T>(p.score_threshold);
  w.by_score.clear();
  for (int64_t i = 0; i < p.num_boxes; ++i) {
    const A score = load(scores + i);
    w.decayed[i] = A(-1);
    if (score > score_threshold) w.by_score.add(score, i);
  }
  const ScoreItem<A>* ranked = w.by_score.sort();
  const int64_t count = w.by_score.count();
  if (idxs == nullptr) {
    run_group<T>(0, count, p, ranked, nullptr, boxes, scores, w);
  } else {
    w.groups.find(count, [&](int64_t rank) { return idxs[ranked[rank].index]; });
    const auto run_groups = [&](int64_t first, int64_t end) {
      for (int64_t group = first; group < end; ++group) {
        const int64_t begin = w.groups.begin(group);
        run_group<T>(begin, w.groups.count(group), p, ranked, w.groups.members() + begin, boxes,
                     scores, w);
      }
    };
    if (w.groups.size() == 1) {
      run_groups(0, 1);  // here, so that the threads share its boxes
    } else {
      parallel_for(w.groups.size(), w.groups.grain(kGrain), run_groups);
    }
  }
  return write_by_score(p.num_boxes, p.max_output, score_threshold, w.decayed.get(), &w.by_score,
                        keep, decayed);
}

}  // namespace

template <class T>
void matrix_nms(const MatrixNmsParams& params, const T* boxes, const T* scores, const int64_t* idxs,
                int64_t* keep, T* decayed, int64_t* counts) {
  const int64_t n = params.num_boxes, row = params.max_output;
  const int64_t workers = std::min(params.batch, num_threads());
  std::vector<Workspace<T>> workspaces;
  for (int64_t i = 0; i < workers; ++i) workspaces.emplace_back(n);
  parallel_workers(workers, params.batch, 1, [&](int64_t worker, int64_t b, int64_t) {
    counts[b] = matrix_nms_image(params, boxes + 4 * b * n, scores + b * n,
                                 idxs == nullptr ? nullptr : idxs + b * n, workspaces[worker],
                                 keep + b * row, decayed + b * row);
  });
}

template void matrix_nms(const MatrixNmsParams&, const float*, const float*, const int64_t*,
                         int64_t*, float*, int64_t*);
template void matrix_nms(const MatrixNmsParams&, const double*, const double*, const int64_t*,
                         int64_t*, double*, int64_t*);
template void matrix_nms(const MatrixNmsParams&, const Half*, const Half*, const int64_t*, int64_t*,
                         Half*, int64_t*);
template void matrix_nms(const MatrixNmsParams&, const BFloat16*, const BFloat16*, const int64_t*,
                         int64_t*, BFloat16*, int64_t*);

}  // namespace cpu
}  // namespace pydet
