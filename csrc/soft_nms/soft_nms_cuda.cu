// SPDX-License-Identifier: Apache-2.0
#include "common/block_best.cuh"
#include "common/decayed_output.cuh"
#include "common/launch.cuh"
#include "common/rank.cuh"
#include "common/segments.cuh"
#include "common/suppression.h"
#include "soft_nms/soft_nms.h"

// Picks of one class follow each other, so a block takes one class of an image at a time: each pick
// is one pass over its boxes that lowers their scores and finds the next best. Classes and images
// run side by side. Then all boxes are sorted by their last score.

namespace pydet {
namespace cuda {
namespace {

constexpr int kThreads = 512;
constexpr int kWarps = kThreads / 32;
constexpr int64_t kMaxBlocks = 1 << 10;  // about what a GPU holds; they stride over segments

// The workspace: where each part starts, in bytes.
struct Layout {
  size_t boxes, scores, decayed, total;
  PairSortLayout rank;
  SegmentLayout segments;
};

template <class A>
struct Rule {
  Decay method;
  A iou_threshold, sigma, score_threshold;
  int64_t max_output;
};

// sorted_boxes and sorted_scores are scratch in the order of the segments; decayed [batch,
// num_boxes] gets the score of each box that is picked and -1 elsewhere.
template <class T>
__global__ void __launch_bounds__(kThreads)
    soft_nms_kernel(Rule<acc_t<T>> rule, Segments segments, const T* boxes, const T* scores,
                    SegmentBox<acc_t<T>>* sorted_boxes, acc_t<T>* sorted_scores,
                    acc_t<T>* decayed) {
  using A = acc_t<T>;
  __shared__ Best<A> warps[2][kWarps];
  const int64_t count = *segments.count;
  for (int64_t slot = blockIdx.x; slot < count; slot += gridDim.x) {
    const int64_t begin = segments.begins[slot];
    const uint32_t size = static_cast<uint32_t>(segments.end(begin) - begin);
    const int64_t* order = segments.order + begin;
    SegmentBox<A>* own_boxes = sorted_boxes + begin;
    A* own_scores = sorted_scores + begin;
    Best<A> pick{A(-1), 0};  // a score and its place in the segment
    for (uint32_t k = threadIdx.x; k < size; k += kThreads) {
      const int64_t index = order[k];
      const Box<A> box = load_box(boxes, index);
      const A score = score_or_out(load(scores + index), rule.score_threshold);
      const bool overlaps = can_overlap(box, area(box));
      decayed[index] = overlaps ? A(-1) : score;
      own_boxes[k].box = box;
      own_scores[k] = overlaps ? score : A(-1);
      pick = better(pick, Best<A>{own_scores[k], k});
    }
    for (int64_t picks = 0; picks < rule.max_output; ++picks) {
      const Best<A> best = best_of_block(pick, warps[picks % 2]);
      if (best.value < A(0)) break;  // all are out; the same for the whole block
      const SegmentBox<A> picked = own_boxes[best.number];
      const A best_area = area(picked.box);
      pick = {A(-1), 0};
      // Each thread reads and writes the scores of its own boxes alone.
      for (uint32_t k = threadIdx.x; k < size; k += kThreads) {
        A score = own_scores[k];
        if (k == best.number) {
          decayed[order[k]] = score;
          score = own_scores[k] = A(-1);
        }
        if (score < A(0)) continue;
        const SegmentBox<A> other = own_boxes[k];
        const A inter = intersection(picked.box, other.box);
        if (inter > A(0)) {
          const A weight = decay_weight(rule.method, iou(inter, best_area, area(other.box)),
                                        rule.iou_threshold, rule.sigma);
          score = score_or_out(score * weight, rule.score_threshold);
          own_scores[k] = score;
        }
        pick = better(pick, Best<A>{score, k});
      }
    }
  }
}

template <class T>
const char* make_layout(const SoftNmsParams& p, Layout* layout) {
  const Places take(&layout->total);
  const int64_t total = p.batch * p.num_boxes;
  layout->boxes = take(total * sizeof(SegmentBox<acc_t<T>>));
  layout->scores = take(total * sizeof(acc_t<T>));
  layout->decayed = take(total * sizeof(acc_t<T>));
  if (const char* error = make_pair_sort_layout(total, take, &layout->rank)) return error;
  return make_segment_layout(total, take, &layout->segments);
}

}  // namespace

template <class T>
const char* soft_nms_workspace_bytes(const SoftNmsParams& params, size_t* bytes) {
  Layout layout;
  const char* error = make_layout<T>(params, &layout);
  *bytes = layout.total;
  return error;
}

template <class T>
const char* soft_nms(const SoftNmsParams& params, const T* boxes, const T* scores,
                     const int64_t* idxs, int64_t* keep, T* decayed, int64_t* counts,
                     void* workspace, CUstream_st* stream) {
  using A = acc_t<T>;
  const SoftNmsParams& p = params;
  if (p.batch == 0) return nullptr;
  Layout layout;
  if (const char* error = make_layout<T>(p, &layout)) return error;
  char* bytes = static_cast<char*>(workspace);
  A* last_scores = reinterpret_cast<A*>(bytes + layout.decayed);
  const A score_threshold = rounded_to<T>(p.score_threshold);
  if (p.num_boxes > 0) {
    Segments segments;
    const char* error = find_segments(p.batch, p.num_boxes, idxs, nullptr, layout.segments, bytes,
                                      &segments, stream);
    if (error != nullptr) return error;
    const Rule<A> rule{p.method, threshold_above<A>(p.iou_threshold), sigma_of<A>(p.sigma),
                       score_threshold, p.max_output};
    const int64_t most = idxs == nullptr ? p.batch : p.batch * p.num_boxes;  // segments
    launch(soft_nms_kernel<T>, static_cast<unsigned int>(min_of(most, kMaxBlocks)), kThreads, 0,
           stream, rule, segments, boxes, scores,
           reinterpret_cast<SegmentBox<A>*>(bytes + layout.boxes),
           reinterpret_cast<A*>(bytes + layout.scores), last_scores);
    if (const char* launched = launch_error()) return launched;
  }
  return write_by_score(p.batch, p.num_boxes, p.max_output, score_threshold,
                        static_cast<const A*>(last_scores), layout.rank, bytes, keep, decayed,
                        counts, stream);
}

template const char* soft_nms_workspace_bytes<float>(const SoftNmsParams&, size_t*);
template const char* soft_nms_workspace_bytes<double>(const SoftNmsParams&, size_t*);
template const char* soft_nms_workspace_bytes<Half>(const SoftNmsParams&, size_t*);
template const char* soft_nms_workspace_bytes<BFloat16>(const SoftNmsParams&, size_t*);
template const char* soft_nms(const SoftNmsParams&, const float*, const float*, const int64_t*,
                              int64_t*, float*, int64_t*, void*, CUstream_st*);
template const char* soft_nms(const SoftNmsParams&, const double*, const double*, const int64_t*,
                              int64_t*, double*, int64_t*, void*, CUstream_st*);
template const char* soft_nms(const SoftNmsParams&, const Half*, const Half*, const int64_t*,
                              int64_t*, Half*, int64_t*, void*, CUstream_st*);
template const char* soft_nms(const SoftNmsParams&, const BFloat16*, const BFloat16*,
                              const int64_t*, int64_t*, BFloat16*, int64_t*, void*, CUstream_st*);

}  // namespace cuda
}  // namespace pydet
