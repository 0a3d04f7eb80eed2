// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <memory>
#include <vector>

#include "common/box_tree.h"
#include "common/decayed_output.h"
#include "common/fusion.h"
#include "common/isa.h"
#include "common/parallel_for.h"
#include "common/suppression.h"
#include "weighted_boxes_fusion/weighted_boxes_fusion.h"

namespace pydet {
namespace cpu {
namespace {

// The fused boxes of 32 clusters, which one vector test compares with a box.
template <class A>
struct Block {
  Bounds<A> boxes;
  A area[kBoundsLanes];  // NaN: overlaps nothing

  void clear() {
    boxes.clear();
    std::fill_n(area, kBoundsLanes, std::numeric_limits<A>::quiet_NaN());
  }
};

template <class T>
struct Group {
  int64_t count;
  const ClassItem* members;  // by falling score: members[k].index is a rank (null: k itself)
  const ScoreItem<acc_t<T>>* ranked;
  const T *boxes, *scores;
  Cluster<acc_t<T>>* clusters;  // [count]
  Block<acc_t<T>>* blocks;      // [ceil(count / 32)]
};

template <class T, Isa kIsa>
struct FuseGroup {
  using A = acc_t<T>;

  static void run(const Group<T>* group, A threshold, int64_t* num_clusters) {
    int64_t clusters = 0;
    for (int64_t k = 0; k < group->count; ++k) {
      const int64_t rank = group->members == nullptr ? k : group->members[k].index;
      const int64_t index = group->ranked[rank].index;
      const Box<A> box = load_box(group->boxes, index);
      const A score = load(group->scores + index), box_area = area(box);
      const bool overlaps = can_overlap(box, box_area);
      const int64_t found =
          overlaps ? best_cluster(group->blocks, clusters, box, box_area, threshold) : -1;
      if (found < 0) {
        group->clusters[clusters] = Cluster<A>::of(index, box, score);
        if (clusters % kBoundsLanes == 0) group->blocks[clusters / kBoundsLanes].clear();
        if (overlaps) place(group->blocks, clusters, box);
        ++clusters;
      } else {
        group->clusters[found].add(box, score);
        place(group->blocks, found, group->clusters[found].fused);
      }
    }
    *num_clusters = clusters;
  }

 private:
  static void place(Block<A>* blocks, int64_t cluster, const Box<A>& box) {
    Block<A>& block = blocks[cluster / kBoundsLanes];
    block.boxes.set(static_cast<int>(cluster % kBoundsLanes), box);
    block.area[cluster % kBoundsLanes] = area(box);
  }

  // The cluster with the greatest IoU above the threshold, the first of equals; -1 for none.
  static int64_t best_cluster(const Block<A>* blocks, int64_t clusters, const Box<A>& box,
                              A box_area, A threshold) {
    int64_t best = -1;
    A best_iou = threshold;
    for (int64_t first = 0; first < clusters; first += kBoundsLanes) {
      const Block<A>& block = blocks[first / kBoundsLanes];
      uint32_t maybe = bits_where<kIsa>([&](int lane) {
        return may_exceed(intersection(box, block.boxes.box(lane)), box_area, block.area[lane],
                          best_iou);
      });
      for (; maybe != 0; maybe &= maybe - 1) {
        const int lane = __builtin_ctz(maybe);
        const A overlap = iou(intersection(box, block.boxes.box(lane)), box_area, block.area[lane]);
        if (overlap > best_iou) {
          best_iou = overlap;
          best = first + lane;
        }
      }
    }
    return best;
  }
};

// What one image needs; one a worker, so that nothing is allocated inside of a thread.
template <class T>
struct Workspace {
  using A = acc_t<T>;
  ScoreSort<A> by_score;
  ClassGroups groups;
  std::unique_ptr<A[]> scores;
  std::unique_ptr<Cluster<A>[]> clusters;
  std::unique_ptr<Block<A>[]> blocks;

  explicit Workspace(int64_t n)
      : by_score(n),
        groups(n),
        scores(new A[n]),
        clusters(new Cluster<A>[n]),
        blocks(new Block<A>[leaf_begin(n)]) {}
};

// Boxes that a thread takes at a time, about.
constexpr int64_t kGrain = 512;

template <class T>
void run_group(int64_t begin, Group<T> group, const FusionParams& p, Workspace<T>& w, T* fused) {
  using A = acc_t<T>;
  Block<A> one_block;
  group.clusters = &w.clusters[begin];
  group.blocks = group.count <= kBoundsLanes ? &one_block : &w.blocks[leaf_begin(begin)];
  int64_t num_clusters = 0;
  run_for_isa<FuseGroup, T>(static_cast<const Group<T>*>(&group),
                            threshold_below<A>(p.iou_threshold), &num_clusters);
  for (int64_t c = 0; c < num_clusters; ++c) {
    const Cluster<A>& cluster = group.clusters[c];
    w.scores[cluster.founder] =
        cluster.score(p.by_best, p.overflow, p.num_models, static_cast<A>(p.total_weight));
    store_box(fused, cluster.founder, cluster.fused);
  }
}

// One image: fills its rows and returns the number of clusters, at most max_output.
template <class T>
int64_t fuse_image(const FusionParams& p, const T* boxes, const T* scores, const int64_t* idxs,
                   Workspace<T>& w, T* fused, int64_t* keep, T* fused_scores) {
  using A = acc_t<T>;
  w.by_score.clear();
  for (int64_t i = 0; i < p.num_boxes; ++i) {
    const A score = load(scores + i);
    w.scores[i] = A(-1);
    store_box(fused, i, Box<A>{0, 0, 0, 0});
    if (score > A(0)) w.by_score.add(score, i);
  }
  const ScoreItem<A>* ranked = w.by_score.sort();
  const int64_t count = w.by_score.count();
  const Group<T> all{count, nullptr, ranked, boxes, scores, nullptr, nullptr};
  if (idxs == nullptr) {
    if (count > 0) run_group(0, all, p, w, fused);
  } else {
    w.groups.find(count, [&](int64_t rank) { return idxs[ranked[rank].index]; });
    parallel_for(w.groups.size(), w.groups.grain(kGrain), [&](int64_t first, int64_t end) {
      for (int64_t number = first; number < end; ++number) {
        const int64_t begin = w.groups.begin(number);
        Group<T> group = all;
        group.count = w.groups.count(number);
        group.members = w.groups.members() + begin;
        run_group(begin, group, p, w, fused);
      }
    });
  }
  return write_by_score(p.num_boxes, p.max_output, A(0), w.scores.get(), &w.by_score, keep,
                        fused_scores);
}

}  // namespace

template <class T>
void weighted_boxes_fusion(const FusionParams& params, const T* boxes, const T* scores,
                           const int64_t* idxs, T* fused, int64_t* keep, T* fused_scores,
                           int64_t* counts) {
  const int64_t n = params.num_boxes, row = params.max_output;
  const int64_t workers = std::min(params.batch, num_threads());
  std::vector<Workspace<T>> workspaces;
  for (int64_t i = 0; i < workers; ++i) workspaces.emplace_back(n);
  parallel_workers(workers, params.batch, 1, [&](int64_t worker, int64_t b, int64_t) {
    counts[b] = fuse_image(params, boxes + 4 * b * n, scores + b * n,
                           idxs == nullptr ? nullptr : idxs + b * n, workspaces[worker],
                           fused + 4 * b * n, keep + b * row, fused_scores + b * row);
  });
}

template void weighted_boxes_fusion(const FusionParams&, const float*, const float*, const int64_t*,
                                    float*, int64_t*, float*, int64_t*);
template void weighted_boxes_fusion(const FusionParams&, const double*, const double*,
                                    const int64_t*, double*, int64_t*, double*, int64_t*);
template void weighted_boxes_fusion(const FusionParams&, const Half*, const Half*, const int64_t*,
                                    Half*, int64_t*, Half*, int64_t*);
template void weighted_boxes_fusion(const FusionParams&, const BFloat16*, const BFloat16*,
                                    const int64_t*, BFloat16*, int64_t*, BFloat16*, int64_t*);

}  // namespace cpu
}  // namespace pydet
