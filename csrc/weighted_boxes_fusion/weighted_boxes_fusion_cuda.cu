// SPDX-License-Identifier: Apache-2.0
#include "common/block_best.cuh"
#include "common/decayed_output.cuh"
#include "common/fusion.h"
#include "common/launch.cuh"
#include "common/rank.cuh"
#include "common/segments.cuh"
#include "common/suppression.h"
#include "weighted_boxes_fusion/weighted_boxes_fusion.h"

// Each box is compared with what the boxes before it were fused into, so a block takes one class of
// an image at a time and its boxes one after the other; its threads share the clusters. Classes and
// images run side by side. Then all clusters are sorted by their score.

namespace pydet {
namespace cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
constexpr int64_t kMaxBlocks = 1 << 10;  // about what a GPU holds; they stride over segments
constexpr uint32_t kNoCluster = ~uint32_t{0};

// The workspace: where each part starts, in bytes.
struct Layout {
  size_t clusters, boxes, scores, total;
  PairSortLayout rank;
  SegmentLayout segments;
};

// A box that waits for its turn.
template <class A>
struct alignas(16) Visitor {
  Box<A> box;
  A area, score;
  int64_t index;
};

template <class T>
__device__ Visitor<acc_t<T>> load_visitor(const T* boxes, const T* scores, int64_t index) {
  const Box<acc_t<T>> box = load_box(boxes, index);
  return {box, area(box), load(scores + index), index};
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    fusion_start_kernel(int64_t total, T* fused, acc_t<T>* cluster_scores) {
  using A = acc_t<T>;
  const int64_t stride = int64_t{gridDim.x} * kThreads;
  for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < total; i += stride) {
    store_box(fused, i, Box<A>{0, 0, 0, 0});
    cluster_scores[i] = A(-1);
  }
}

// clusters and cluster_boxes (their fused boxes once more, side by side for the search) [batch,
// num_boxes] are scratch: those of a segment lie from its begin on. Cluster c is read and written
// by thread c % kThreads alone.
template <class T>
__global__ void __launch_bounds__(kThreads, 2)
    weighted_boxes_fusion_kernel(FusionParams p, acc_t<T> threshold, Segments segments,
                                 const T* boxes, const T* scores, Cluster<acc_t<T>>* clusters,
                                 SegmentBox<acc_t<T>>* cluster_boxes, T* fused,
                                 acc_t<T>* cluster_scores) {
  using A = acc_t<T>;
  __shared__ Visitor<A> visitors[kThreads];
  __shared__ Best<A> warps[2][kWarps];
  const uint32_t thread = threadIdx.x;
  const int64_t count = *segments.count;
  for (int64_t slot = blockIdx.x; slot < count; slot += gridDim.x) {
    const int64_t begin = segments.begins[slot], end = segments.end(begin);
    Cluster<A>* own = clusters + begin;
    SegmentBox<A>* own_boxes = cluster_boxes + begin;
    uint32_t num_clusters = 0;
    for (int64_t first = begin; first < end; first += kThreads) {
      Visitor<A> visitor{};
      if (first + thread < end) {
        visitor = load_visitor(boxes, scores, segments.order[first + thread]);
      }
      __syncthreads();  // the visitors before have had their turn
      visitors[thread] = visitor;
      // Those without a positive score take no part; they stand last.
      const int waiting = __syncthreads_count(visitor.score > A(0));
      for (int turn = 0; turn < waiting; ++turn) {
        const Visitor<A>& now = visitors[turn];
        Best<A> match{threshold, kNoCluster};
        if (can_overlap(now.box, now.area)) {
          for (uint32_t c = thread; c < num_clusters; c += kThreads) {
            const SegmentBox<A> other = own_boxes[c];
            const A other_area = area(other.box), inter = intersection(now.box, other.box);
            if (!(inter > A(0)) || !can_overlap(other.box, other_area)) continue;
            const A overlap = iou(inter, now.area, other_area);
            if (overlap > match.value) match = {overlap, c};
          }
        }
        match = best_of_block(match, warps[turn % 2]);
        const bool founds = match.number == kNoCluster;
        const uint32_t c = founds ? num_clusters : match.number;
        if (c % kThreads == thread) {
          if (founds) {
            own[c] = Cluster<A>::of(now.index, now.box, now.score);
          } else {
            own[c].add(now.box, now.score);
          }
          own_boxes[c].box = own[c].fused;
        }
        num_clusters += founds;
      }
    }
    for (uint32_t c = thread; c < num_clusters; c += kThreads) {
      cluster_scores[own[c].founder] =
          own[c].score(p.by_best, p.overflow, p.num_models, static_cast<A>(p.total_weight));
      store_box(fused, own[c].founder, own[c].fused);
    }
  }
}

template <class T>
const char* make_layout(const FusionParams& p, Layout* layout) {
  const Places take(&layout->total);
  const int64_t total = p.batch * p.num_boxes;
  layout->clusters = take(total * sizeof(Cluster<acc_t<T>>));
  layout->boxes = take(total * sizeof(SegmentBox<acc_t<T>>));
  layout->scores = take(total * sizeof(acc_t<T>));
  if (const char* error = make_pair_sort_layout(total, take, &layout->rank)) return error;
  return make_segment_layout(total, take, &layout->segments);
}

// Fills `fused` and the clusters' scores.
template <class T>
const char* fuse(const FusionParams& p, const Layout& layout, const T* boxes, const T* scores,
                 const int64_t* idxs, T* fused, char* bytes, CUstream_st* stream) {
  using A = acc_t<T>;
  A* cluster_scores = reinterpret_cast<A*>(bytes + layout.scores);
  const int64_t total = p.batch * p.num_boxes;
  launch(fusion_start_kernel<T>, grid_size(total, kThreads), kThreads, 0, stream, total, fused,
         cluster_scores);
  if (const char* error = launch_error()) return error;
  const int64_t* order = nullptr;
  const char* error =
      rank_boxes(p.batch, p.num_boxes, true, A(0), scores, layout.rank, bytes, &order, stream);
  if (error != nullptr) return error;
  Segments segments;
  error =
      find_segments(p.batch, p.num_boxes, idxs, order, layout.segments, bytes, &segments, stream);
  if (error != nullptr) return error;
  const int64_t most = idxs == nullptr ? p.batch : total;  // segments
  launch(weighted_boxes_fusion_kernel<T>, static_cast<unsigned int>(min_of(most, kMaxBlocks)),
         kThreads, 0, stream, p, threshold_below<A>(p.iou_threshold), segments, boxes, scores,
         reinterpret_cast<Cluster<A>*>(bytes + layout.clusters),
         reinterpret_cast<SegmentBox<A>*>(bytes + layout.boxes), fused, cluster_scores);
  return launch_error();
}

}  // namespace

template <class T>
const char* weighted_boxes_fusion_workspace_bytes(const FusionParams& params, size_t* bytes) {
  Layout layout;
  const char* error = make_layout<T>(params, &layout);
  *bytes = layout.total;
  return error;
}

template <class T>
const char* weighted_boxes_fusion(const FusionParams& params, const T* boxes, const T* scores,
                                  const int64_t* idxs, T* fused, int64_t* keep, T* fused_scores,
                                  int64_t* counts, void* workspace, CUstream_st* stream) {
  using A = acc_t<T>;
  const FusionParams& p = params;
  if (p.batch == 0) return nullptr;
  Layout layout;
  if (const char* error = make_layout<T>(p, &layout)) return error;
  char* bytes = static_cast<char*>(workspace);
  if (p.num_boxes > 0) {
    const char* error = fuse(p, layout, boxes, scores, idxs, fused, bytes, stream);
    if (error != nullptr) return error;
  }
  return write_by_score(p.batch, p.num_boxes, p.max_output, A(0),
                        reinterpret_cast<const A*>(bytes + layout.scores), layout.rank, bytes, keep,
                        fused_scores, counts, stream);
}

template const char* weighted_boxes_fusion_workspace_bytes<float>(const FusionParams&, size_t*);
template const char* weighted_boxes_fusion_workspace_bytes<double>(const FusionParams&, size_t*);
template const char* weighted_boxes_fusion_workspace_bytes<Half>(const FusionParams&, size_t*);
template const char* weighted_boxes_fusion_workspace_bytes<BFloat16>(const FusionParams&, size_t*);
template const char* weighted_boxes_fusion(const FusionParams&, const float*, const float*,
                                           const int64_t*, float*, int64_t*, float*, int64_t*,
                                           void*, CUstream_st*);
template const char* weighted_boxes_fusion(const FusionParams&, const double*, const double*,
                                           const int64_t*, double*, int64_t*, double*, int64_t*,
                                           void*, CUstream_st*);
template const char* weighted_boxes_fusion(const FusionParams&, const Half*, const Half*,
                                           const int64_t*, Half*, int64_t*, Half*, int64_t*, void*,
                                           CUstream_st*);
template const char* weighted_boxes_fusion(const FusionParams&, const BFloat16*, const BFloat16*,
                                           const int64_t*, BFloat16*, int64_t*, BFloat16*, int64_t*,
                                           void*, CUstream_st*);

}  // namespace cuda
}  // namespace pydet
