// SPDX-License-Identifier: Apache-2.0
// Ranks the boxes of a batch of images on the device: stable by image and falling score, those that
// take no part last.
#pragma once

#include "common/launch.cuh"
#include "common/pair_sort.cuh"
#include "common/suppression.h"

namespace pydet {
namespace cuda {

constexpr int kRankThreads = 256;

// Key of a score; the largest of all where the box takes no part. NaN has the same key, but it is
// never greater than a score threshold either; without one (`filter` false) all take part.
template <class T>
__device__ auto rank_key(const T* scores, int64_t index, bool filter, acc_t<T> score_threshold) {
  const acc_t<T> score = load(scores + index);
  const auto key = score_key(score);
  return filter && !(score > score_threshold) ? static_cast<decltype(key)>(~decltype(key){0}) : key;
}

// The keys of a sort: the image above the 32 bits of the score. A score of 64 bits fills its key:
// it is sorted first, and what comes of that then by the images alone.
template <class T>
__global__ void __launch_bounds__(kRankThreads)
    rank_key_kernel(int64_t count, int64_t num_boxes, bool filter, acc_t<T> score_threshold,
                    bool only_images, const T* scores, int64_t* values, uint64_t* keys) {
  const int64_t stride = int64_t{gridDim.x} * kRankThreads;
  for (int64_t i = int64_t{blockIdx.x} * kRankThreads + threadIdx.x; i < count; i += stride) {
    if (only_images) {
      keys[i] = static_cast<uint64_t>(values[i] / num_boxes);
      continue;
    }
    values[i] = i;
    keys[i] = rank_key(scores, i, filter, score_threshold);
    if (sizeof(acc_t<T>) == 4) keys[i] |= static_cast<uint64_t>(i / num_boxes) << 32;
  }
}

// Whether the box of rank k takes part; `order` and ranks are those of its image.
template <class T>
__device__ bool takes_part(int64_t k, int64_t num_boxes, bool filter, acc_t<T> score_threshold,
                           const T* scores, const int64_t* order) {
  return k < num_boxes && (!filter || load(scores + order[k]) > score_threshold);
}

// How many of the first `num_boxes` ranks of an image take part, for the thread of one rank: they
// stand before the rest, so the last of them tells, or rank 0 where there is none. Others get -1.
template <class T>
__device__ int64_t count_ranked(int64_t k, int64_t num_boxes, bool filter, acc_t<T> score_threshold,
                                const T* scores, const int64_t* order) {
  if (!takes_part(k, num_boxes, filter, score_threshold, scores, order)) return k == 0 ? 0 : -1;
  return takes_part(k + 1, num_boxes, filter, score_threshold, scores, order) ? -1 : k + 1;
}

// Gives *order [batch, num_boxes], which lies in the workspace: numbers of boxes over all images.
// One sort by image and score; scores of 64 bits are sorted first, then the images.
template <class T>
const char* rank_boxes(int64_t batch, int64_t num_boxes, bool filter, acc_t<T> score_threshold,
                       const T* scores, const PairSortLayout& layout, char* workspace,
                       const int64_t** order, CUstream_st* stream) {
  if (batch > int64_t{1} << 32) return "more than 2^32 images";
  const int64_t count = batch * num_boxes;
  PairSort pairs(layout, workspace);
  int image_bits = 0;
  while (int64_t{1} << image_bits < batch) ++image_bits;
  constexpr int kScoreBits = 8 * sizeof(acc_t<T>);
  const bool apart = kScoreBits + image_bits > 64;
  for (int step = 0; step < (apart ? 2 : 1); ++step) {
    launch(rank_key_kernel<T>, grid_size(count, kRankThreads), kRankThreads, 0, stream, count,
           num_boxes, filter, score_threshold, step == 1, scores, pairs.values(), pairs.keys());
    if (const char* error = launch_error()) return error;
    const int bits = step == 1 ? image_bits : (apart ? kScoreBits : kScoreBits + image_bits);
    if (const char* error = pairs.sort(count, bits, stream)) return error;
  }
  *order = pairs.values();
  return nullptr;
}

}  // namespace cuda
}  // namespace pydet
