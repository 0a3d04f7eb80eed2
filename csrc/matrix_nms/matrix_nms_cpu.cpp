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
  const uint32_t* place;     // 32 * leaf + lane of each box, or kNoPlace
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
template <class A, class Visit>
void for_each_leaf(const BoxTree<A>& tree, const Box<A>& box, const Visit& visit) {
  tree.for_each_node(box, [&](int64_t node, uint32_t leaves) {
    for (; leaves != 0; leaves &= leaves - 1) {
      const int64_t number = node * kBoundsLanes + __builtin_ctz(leaves);
      visit(number, tree.leaves[number]);
    }
  });
}

// The peaks of the boxes [begin, end) of a group.
template <class A>
struct FindPeaks {
  static void run(int64_t begin, int64_t end, const Group<A>* group) {
    for (int64_t k = begin; k < end; ++k) {
      if (group->place[k] == kNoPlace) continue;
      const int64_t own = group->place[k] / kBoundsLanes;
      const int own_lane = static_cast<int>(group->place[k] % kBoundsLanes);
      const Box<A> box = group->tree.leaves[own].boxes.box(own_lane);
      const A box_area = group->tree.leaves[own].area[own_lane];
      A peak = 0;
      for_each_leaf(group->tree, box, [&](int64_t, const Leaf<A>& leaf) {
        A ious[kBoundsLanes];
        better_ious(leaf, static_cast<uint32_t>(k), box, box_area, ious);
        peak = std::max(peak, greatest_of(ious));
      });
      group->peaks[own][own_lane] = peak;
    }
  }
};

// The factors of the boxes [begin, end) of a group.
template <class A>
struct FindWeights {
  static void run(int64_t begin, int64_t end, const Group<A>* group, Decay method, A sigma,
                  A* weights) {
    for (int64_t k = begin; k < end; ++k) {
      weights[k] = 1;
      if (group->place[k] == kNoPlace) continue;
      const int64_t own = group->place[k] / kBoundsLanes;
      const int own_lane = static_cast<int>(group->place[k] % kBoundsLanes);
      const Box<A> box = group->tree.leaves[own].boxes.box(own_lane);
      const A box_area = group->tree.leaves[own].area[own_lane];
      MatrixDecay<A> decay(method);
      for_each_leaf(group->tree, box, [&](int64_t number, const Leaf<A>& leaf) {
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
  std::unique_ptr<ScoreItem<A>[]> items, scratch;
  std::unique_ptr<ClassItem[]> class_items, class_scratch;
  std::unique_ptr<PlaceItem[]> place_items, place_scratch;
  std::unique_ptr<int64_t[]> group_begin;
  std::unique_ptr<uint32_t[]> order, place;
  std::unique_ptr<Box<A>[]> boxes;  // class by class, in score order
  std::unique_ptr<A[]> weights, decayed;
  std::unique_ptr<Leaf<A>[]> leaves;
  std::unique_ptr<A[][kBoundsLanes]> peaks;
  std::unique_ptr<Bounds<A>[]> nodes, roots;

  explicit Workspace(int64_t n)
      : items(new ScoreItem<A>[n]),
        scratch(new ScoreItem<A>[n]),
        class_items(new ClassItem[n]),
        class_scratch(new ClassItem[n]),
        place_items(new PlaceItem[n]),
        place_scratch(new PlaceItem[n]),
        group_begin(new int64_t[n + 1]),
        order(new uint32_t[n]),
        place(new uint32_t[n]),
        boxes(new Box<A>[n]),
        weights(new A[n]),
        decayed(new A[n]),
        leaves(new Leaf<A>[leaf_begin(n)]),
        peaks(new A[leaf_begin(n)][kBoundsLanes]),
        nodes(new Bounds<A>[node_begin(n)]),
        roots(new Bounds<A>[node_begin(n)]) {}
};

// Boxes that a thread takes at a time, about.
constexpr int64_t kGrain = 256;

// One class of an image: the boxes of ranks members[k].index, or k where members is null.
template <class T>
void run_group(int64_t begin, int64_t count, const MatrixNmsParams& p, const ClassItem* members,
               const T* boxes, const T* scores, Workspace<T>& w) {
  using A = acc_t<T>;
  const auto index_of = [&](int64_t k) {
    return w.order[members == nullptr ? k : members[k].index];
  };
  const int64_t leaf = leaf_begin(begin), node = node_begin(begin);
  Leaf<A> one_leaf;
  A one_peaks[1][kBoundsLanes];
  Bounds<A> one_node, one_root;
  const bool small = count <= kBoundsLanes;  // needs nothing of the shared arrays
  Group<A> group{{0, 0, 0, small ? &one_leaf : &w.leaves[leaf], small ? &one_node : &w.nodes[node],
                  small ? &one_root : &w.roots[node]},
                 small ? one_peaks : &w.peaks[leaf],
                 &w.place[begin]};
  for (int64_t k = 0; k < count; ++k) w.boxes[begin + k] = load_box(boxes, index_of(k));
  build_tree<A>(count, &w.boxes[begin], A(0), &w.place_items[begin], &w.place_scratch[begin],
                &w.place[begin], &group.tree);
  for (int64_t i = 0; i < group.tree.num_leaves; ++i) {
    std::fill_n(group.peaks[i], kBoundsLanes, A(0));
  }
  const Group<A>* shared = &group;
  const A sigma = sigma_of<A>(p.sigma);
  A* weights = &w.weights[begin];
  parallel_for(count, kGrain, [&](int64_t first, int64_t end) {
    run_on_best_isa<FindPeaks<A>>(first, end, shared);
  });
  parallel_for(count, kGrain, [&](int64_t first, int64_t end) {
    run_on_best_isa<FindWeights<A>>(first, end, shared, p.method, sigma, weights);
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
  int64_t count = 0;
  for (int64_t i = 0; i < p.num_boxes; ++i) {
    const A score = load(scores + i);
    w.decayed[i] = A(-1);
    if (score > score_threshold) {
      w.items[count++] = {score_key(score), static_cast<uint32_t>(i)};
    }
  }
  const ScoreItem<A>* sorted = sort_items(count, w.items.get(), w.scratch.get());
  for (int64_t rank = 0; rank < count; ++rank) w.order[rank] = sorted[rank].index;
  if (idxs == nullptr) {
    run_group<T>(0, count, p, nullptr, boxes, scores, w);
  } else {
    for (int64_t rank = 0; rank < count; ++rank) {
      w.class_items[rank] = {static_cast<uint64_t>(idxs[w.order[rank]]),
                             static_cast<uint32_t>(rank)};
    }
    int64_t num_groups = 0;
    const ClassItem* members = group_items(count, w.class_items.get(), w.class_scratch.get(),
                                           w.group_begin.get(), &num_groups);
    const auto run_groups = [&](int64_t first, int64_t end) {
      for (int64_t group = first; group < end; ++group) {
        const int64_t begin = w.group_begin[group];
        run_group<T>(begin, w.group_begin[group + 1] - begin, p, members + begin, boxes, scores, w);
      }
    };
    if (num_groups == 1) {
      run_groups(0, 1);  // here, so that the threads share its boxes
    } else {
      parallel_for(num_groups, kGrain * num_groups / std::max<int64_t>(1, count), run_groups);
    }
  }
  return write_by_score(p.num_boxes, p.max_output, score_threshold, w.decayed.get(), w.items.get(),
                        w.scratch.get(), keep, decayed);
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
