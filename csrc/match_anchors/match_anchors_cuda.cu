// SPDX-License-Identifier: Apache-2.0
#include "common/box.h"
#include "common/launch.cuh"
#include "common/matching.h"
#include "match_anchors/match_anchors.h"

namespace pydet {
namespace cuda {
namespace {

constexpr int kThreads = 256;  // anchors a block, one a thread, in registers
constexpr int kTile = 256;     // ground truths that a block holds in shared memory
constexpr unsigned int kAllLanes = 0xffffffffu;

// An unsigned integer as wide as the arithmetic. The bits of a number that is not negative are
// ordered as the number is, so an integer maximum finds the highest quality; being a maximum, it
// does not depend on the order in which threads come.
template <class A>
struct Bits;
template <>
struct Bits<float> {
  using type = unsigned int;
};
template <>
struct Bits<double> {
  using type = unsigned long long;
};
template <class A>
using bits_t = typename Bits<A>::type;

__device__ unsigned int to_bits(float value) { return __float_as_uint(value); }
__device__ unsigned long long to_bits(double value) {
  return static_cast<unsigned long long>(__double_as_longlong(value));
}

__device__ unsigned int warp_max(unsigned int value) {
#if __CUDA_ARCH__ >= 800
  return __reduce_max_sync(kAllLanes, value);
#else
  for (int lane = 16; lane > 0; lane /= 2)
    value = max_of(value, __shfl_xor_sync(kAllLanes, value, lane));
  return value;
#endif
}

__device__ unsigned long long warp_max(unsigned long long value) {
  for (int lane = 16; lane > 0; lane /= 2)
    value = max_of(value, __shfl_xor_sync(kAllLanes, value, lane));
  return value;
}

// What becomes of a ground truth: NaN coordinates take no part.
enum Kind : int { kUnused, kMatched, kCrowd };

template <class A>
struct Tile {
  alignas(16) Box<A> box[kTile];  // so that one load of 128 bits reads four coordinates
  A area[kTile];
  bits_t<A> highest[kTile];
  Kind kind[kTile];
};

// The ground truths of image b: rows [begin, end). Offsets that do not fit are clamped.
struct Range {
  int64_t begin, end;
};

__device__ Range range_of(const int64_t* offsets, int64_t b, int64_t num_gt) {
  if (offsets == nullptr) return {0, num_gt};
  const int64_t begin = min_of(max_of<int64_t>(offsets[b], 0), num_gt);
  return {begin, min_of(max_of(offsets[b + 1], begin), num_gt)};
}

// All threads of the block load the ground truths [begin, begin + count), one each. Ends with the
// tile complete for all.
template <class T>
__device__ void load_tile(Tile<acc_t<T>>& tile, const T* gt_boxes, const bool* gt_ignored,
                          const bits_t<acc_t<T>>* highest, int64_t begin, int count) {
  __syncthreads();  // nobody reads the tile before any more
  const int k = static_cast<int>(threadIdx.x);
  if (k < count) {
    const Box<acc_t<T>> box = load_box(gt_boxes, begin + k);
    const bool crowd = gt_ignored != nullptr && gt_ignored[begin + k];
    tile.box[k] = box;
    tile.area[k] = area(box);
    tile.kind[k] = has_nan(box) ? kUnused : (crowd ? kCrowd : kMatched);
    tile.highest[k] = highest == nullptr ? bits_t<acc_t<T>>(0) : highest[begin + k];
  }
  __syncthreads();
}

// A thread's anchor, of the set number `image`. One with a NaN, or beyond the last, is an empty
// box, which overlaps nothing.
template <class A>
struct Anchor {
  Box<A> box;
  A area;
  bool exists, valid;
};

template <class T>
__device__ Anchor<acc_t<T>> load_anchor(const T* anchors, int64_t image, int64_t i,
                                        int64_t num_anchors) {
  Anchor<acc_t<T>> anchor{};
  anchor.exists = i < num_anchors;
  if (anchor.exists) {
    anchor.box = load_box(anchors, image * num_anchors + i);
    anchor.valid = !has_nan(anchor.box);
    if (!anchor.valid) anchor.box = Box<acc_t<T>>{};
  }
  anchor.area = area(anchor.box);
  return anchor;
}

// First pass of the low-quality rule: the highest quality of each ground truth over all anchors.
// `highest` [num_gt] starts as zeros.
template <class T>
__global__ void __launch_bounds__(kThreads)
    highest_quality_kernel(int64_t num_images, int64_t num_anchors, int64_t num_gt,
                           bool own_anchors, const T* anchors, const T* gt_boxes,
                           const bool* gt_ignored, const int64_t* offsets,
                           bits_t<acc_t<T>>* highest) {
  using A = acc_t<T>;
  __shared__ Tile<A> tile;
  const int64_t blocks = ceil_div<int64_t>(num_anchors, kThreads);
  for (int64_t piece = blockIdx.x; piece < num_images * blocks; piece += gridDim.x) {
    const int64_t b = piece / blocks;
    const Anchor<A> anchor = load_anchor(anchors, own_anchors ? b : 0,
                                         piece % blocks * kThreads + threadIdx.x, num_anchors);
    const Range range = range_of(offsets, b, num_gt);
    for (int64_t begin = range.begin; begin < range.end; begin += kTile) {
      const int count = static_cast<int>(min_of<int64_t>(kTile, range.end - begin));
      load_tile<T>(tile, gt_boxes, gt_ignored, nullptr, begin, count);
      for (int k = 0; k < count; ++k) {
        if (tile.kind[k] != kMatched) continue;  // the same for all threads
        const A inter = intersection(anchor.box, tile.box[k]);
        // Most warps lie apart from most ground truths: one vote spares them the division.
        if (!__any_sync(kAllLanes, inter > A(0))) continue;
        const bits_t<A> quality =
            warp_max(to_bits(match_quality(inter, anchor.area, tile.area[k])));
        if (threadIdx.x % 32 == 0) atomicMax(&tile.highest[k], quality);
      }
      __syncthreads();
      const int k = static_cast<int>(threadIdx.x);
      if (k < count && tile.highest[k] != 0) atomicMax(highest + begin + k, tile.highest[k]);
    }
  }
}

// Notes in `best` the first anchor, by its distance from the last, as zeros stand for none.
__device__ inline void note_anchor(unsigned long long* best, int64_t i, int64_t num_anchors) {
  atomicMax(best, static_cast<unsigned long long>(num_anchors - i));
}

// Matches each anchor in each image. `highest` is null where neither low-quality matches nor best
// anchors are asked for, `best_anchors` [num_gt], zeros at first, where the latter are not.
template <class T>
__global__ void __launch_bounds__(kThreads)
    match_anchors_kernel(int64_t num_images, int64_t num_anchors, int64_t num_gt, bool own_anchors,
                         const T* anchors, const T* gt_boxes, const bool* gt_ignored,
                         const int64_t* offsets, acc_t<T> fg_iou_threshold,
                         acc_t<T> bg_iou_threshold, const bits_t<acc_t<T>>* highest, bool restore,
                         unsigned long long* best_anchors, int64_t* matched_idxs,
                         acc_t<T>* matched_ious) {
  using A = acc_t<T>;
  __shared__ Tile<A> tile;
  const int64_t blocks = ceil_div<int64_t>(num_anchors, kThreads);
  for (int64_t piece = blockIdx.x; piece < num_images * blocks; piece += gridDim.x) {
    const int64_t b = piece / blocks;
    const int64_t i = piece % blocks * kThreads + threadIdx.x;
    const Anchor<A> anchor = load_anchor(anchors, own_anchors ? b : 0, i, num_anchors);
    const Range range = range_of(offsets, b, num_gt);
    A best = A(0);
    int argmax = -1;
    bool restored = false, in_crowd = false;
    for (int64_t begin = range.begin; begin < range.end; begin += kTile) {
      const int count = static_cast<int>(min_of<int64_t>(kTile, range.end - begin));
      load_tile<T>(tile, gt_boxes, gt_ignored, highest, begin, count);
#pragma unroll 4
      for (int k = 0; k < count; ++k) {
        const Kind kind = tile.kind[k];
        if (kind == kUnused) continue;
        if (kind == kMatched) {
          // Until something overlaps, the best is the first ground truth, with 0. One that no
          // anchor overlaps ties with all of them.
          if (argmax < 0) argmax = static_cast<int>(begin - range.begin) + k;
          if (highest != nullptr && tile.highest[k] == 0) restored = true;
        }
        const A inter = intersection(anchor.box, tile.box[k]);
        if (!__any_sync(kAllLanes, inter > A(0))) continue;
        if (kind == kCrowd) {
          in_crowd = in_crowd || lies_in_ignored(inter, anchor.area);
          continue;
        }
        const A quality = match_quality(inter, anchor.area, tile.area[k]);
        if (quality > best) {
          best = quality;
          argmax = static_cast<int>(begin - range.begin) + k;
        }
        if (highest != nullptr && to_bits(quality) == tile.highest[k]) {
          restored = true;
          if (best_anchors != nullptr && quality > A(0))
            note_anchor(best_anchors + begin + k, i, num_anchors);
        }
      }
    }
    if (!anchor.exists) continue;
    int64_t idx = decide_match(best, argmax, fg_iou_threshold, bg_iou_threshold);
    if (idx < 0 && in_crowd) idx = kIgnored;
    if (idx < 0 && restored && restore) idx = argmax;
    matched_idxs[b * num_anchors + i] = anchor.valid ? idx : kBackground;
    matched_ious[b * num_anchors + i] = best;
  }
}

// The rule of SSD: each ground truth gets its best anchor, the last of those with the same one. A
// block an image.
__global__ void __launch_bounds__(kThreads)
    give_best_anchors_kernel(int64_t num_images, int64_t num_anchors, int64_t num_gt,
                             const int64_t* offsets, const unsigned long long* best_anchors,
                             int64_t* matched_idxs) {
  for (int64_t b = blockIdx.x; b < num_images; b += gridDim.x) {
    const Range range = range_of(offsets, b, num_gt);
    for (int pass = 0; pass < 2; ++pass) {
      for (int64_t g = range.begin + threadIdx.x; g < range.end; g += kThreads) {
        if (best_anchors[g] == 0) continue;
        const int64_t i = num_anchors - static_cast<int64_t>(best_anchors[g]);
        int64_t* idx = matched_idxs + b * num_anchors + i;
        if (pass == 0) {
          atomicExch(reinterpret_cast<unsigned long long*>(idx), 0ull);
        } else {
          atomicMax(reinterpret_cast<unsigned long long*>(idx),
                    static_cast<unsigned long long>(g - range.begin));
        }
      }
      __syncthreads();
    }
  }
}

}  // namespace

int64_t match_anchors_workspace_bytes(int64_t num_gt, MatchParams params) {
  const int64_t arrays = params.need_highest() + params.best_anchor_for_each_gt;
  return arrays * num_gt * static_cast<int64_t>(sizeof(double));
}

template <class T>
const char* match_anchors(int64_t num_images, int64_t num_anchors, int64_t num_gt, const T* anchors,
                          const T* gt_boxes, const bool* gt_ignored, const int64_t* offsets,
                          MatchParams params, void* workspace, int64_t* matched_idxs,
                          acc_t<T>* matched_ious, CUstream_st* stream) {
  using A = acc_t<T>;
  const int64_t pieces = num_images * ceil_div<int64_t>(num_anchors, kThreads);
  if (pieces == 0) return nullptr;
  const unsigned int grid = grid_size(pieces, 1);
  bits_t<A>* highest = nullptr;
  unsigned long long* best_anchors = nullptr;
  if (params.need_highest() && num_gt > 0) {
    highest = static_cast<bits_t<A>*>(workspace);
    if (params.best_anchor_for_each_gt)
      best_anchors = static_cast<unsigned long long*>(workspace) + num_gt;
    const cudaError_t error =
        cudaMemsetAsync(workspace, 0, match_anchors_workspace_bytes(num_gt, params), stream);
    if (error != cudaSuccess) return cudaGetErrorString(error);
    launch(highest_quality_kernel<T>, grid, kThreads, 0, stream, num_images, num_anchors, num_gt,
           params.own_anchors, anchors, gt_boxes, gt_ignored, offsets, highest);
  }
  launch(match_anchors_kernel<T>, grid, kThreads, 0, stream, num_images, num_anchors, num_gt,
         params.own_anchors, anchors, gt_boxes, gt_ignored, offsets,
         static_cast<A>(params.fg_iou_threshold), static_cast<A>(params.bg_iou_threshold), highest,
         params.allow_low_quality_matches, best_anchors, matched_idxs, matched_ious);
  if (best_anchors != nullptr) {
    launch(give_best_anchors_kernel, grid_size(num_images, 1), kThreads, 0, stream, num_images,
           num_anchors, num_gt, offsets, best_anchors, matched_idxs);
  }
  return launch_error();
}

template const char* match_anchors(int64_t, int64_t, int64_t, const float*, const float*,
                                   const bool*, const int64_t*, MatchParams, void*, int64_t*,
                                   float*, CUstream_st*);
template const char* match_anchors(int64_t, int64_t, int64_t, const double*, const double*,
                                   const bool*, const int64_t*, MatchParams, void*, int64_t*,
                                   double*, CUstream_st*);
template const char* match_anchors(int64_t, int64_t, int64_t, const Half*, const Half*, const bool*,
                                   const int64_t*, MatchParams, void*, int64_t*, float*,
                                   CUstream_st*);
template const char* match_anchors(int64_t, int64_t, int64_t, const BFloat16*, const BFloat16*,
                                   const bool*, const int64_t*, MatchParams, void*, int64_t*,
                                   float*, CUstream_st*);

}  // namespace cuda
}  // namespace pydet
