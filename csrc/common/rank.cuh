// SPDX-License-Identifier: Apache-2.0
// Ranks the boxes of a batch of images on the device: stable by image and falling score, those that
// take no part last.
#pragma once

#include <cub/device/device_radix_sort.cuh>

#include "common/launch.cuh"
#include "common/suppression.h"

namespace pydet {
namespace cuda {

constexpr int kRankThreads = 256;
constexpr int kRankByImage = -1;

// Key of a score; the largest of all where the box takes no part. NaN has the same key, but it is
// never greater than a score threshold either; without one (`filter` false) all take part.
template <class T>
__device__ auto rank_key(const T* scores, int64_t index, bool filter, acc_t<T> score_threshold) {
  const acc_t<T> score = load(scores + index);
  const auto key = score_key(score);
  return filter && !(score > score_threshold) ? static_cast<decltype(key)>(~decltype(key){0}) : key;
}

// 32 bits of the keys: word number `word` of the score's (0: the lowest), or the image. In the
// first of the sorts the boxes are still in their own order.
template <class T>
__global__ void __launch_bounds__(kRankThreads)
    rank_key_kernel(int64_t count, int64_t num_boxes, bool filter, acc_t<T> score_threshold,
                    int word, bool first, const T* scores, int64_t* values, uint32_t* keys) {
  const int64_t stride = int64_t{gridDim.x} * kRankThreads;
  for (int64_t i = int64_t{blockIdx.x} * kRankThreads + threadIdx.x; i < count; i += stride) {
    const int64_t index = first ? i : values[i];
    if (first) values[i] = index;
    if (word == kRankByImage) {
      keys[i] = static_cast<uint32_t>(index / num_boxes);
    } else {
      const uint64_t key = rank_key(scores, index, filter, score_threshold);
      keys[i] = static_cast<uint32_t>(key >> (32 * word));
    }
  }
}

// How many boxes of an image take part, from its part of the order: the rest stand behind them.
template <class T>
__device__ int64_t count_ranked(int64_t num_boxes, bool filter, acc_t<T> score_threshold,
                                const T* scores, const int64_t* order) {
  int64_t low = filter ? 0 : num_boxes, high = num_boxes;
  while (low < high) {
    const int64_t middle = low + (high - low) / 2;
    const auto key = rank_key(scores, order[middle], filter, score_threshold);
    if (key == static_cast<decltype(key)>(~decltype(key){0})) {
      high = middle;
    } else {
      low = middle + 1;
    }
  }
  return low;
}

// Where the parts of the workspace start, in bytes.
struct RankLayout {
  size_t keys[2], values[2], storage, storage_bytes;
};

// Lays out the workspace for `count` boxes of all images; take(bytes) gives the start of a part.
template <class Take>
const char* make_rank_layout(int64_t count, const Take& take, RankLayout* layout) {
  cub::DoubleBuffer<uint32_t> keys;
  cub::DoubleBuffer<int64_t> values;
  layout->storage_bytes = 0;
  const cudaError_t error =
      cub::DeviceRadixSort::SortPairs(nullptr, layout->storage_bytes, keys, values, count);
  if (error != cudaSuccess) return cudaGetErrorString(error);
  for (int i = 0; i < 2; ++i) {
    layout->keys[i] = take(count * sizeof(uint32_t));
    layout->values[i] = take(count * sizeof(int64_t));
  }
  layout->storage = take(layout->storage_bytes);
  return nullptr;
}

// Gives *order [batch, num_boxes], which lies in the workspace: numbers of boxes over all images.
// All sorts are by 32 bits: by the words of the score from the lowest on, then by image.
template <class T>
const char* rank_boxes(int64_t batch, int64_t num_boxes, bool filter, acc_t<T> score_threshold,
                       const T* scores, const RankLayout& layout, char* workspace,
                       const int64_t** order, CUstream_st* stream) {
  if (batch > int64_t{1} << 32) return "more than 2^32 images";
  const int64_t count = batch * num_boxes;
  cub::DoubleBuffer<uint32_t> keys(reinterpret_cast<uint32_t*>(workspace + layout.keys[0]),
                                   reinterpret_cast<uint32_t*>(workspace + layout.keys[1]));
  cub::DoubleBuffer<int64_t> values(reinterpret_cast<int64_t*>(workspace + layout.values[0]),
                                    reinterpret_cast<int64_t*>(workspace + layout.values[1]));
  int image_bits = 0;
  while (int64_t{1} << image_bits < batch) ++image_bits;
  constexpr int kScoreWords = sizeof(acc_t<T>) / sizeof(uint32_t);
  for (int step = 0; step < kScoreWords + (image_bits > 0 ? 1 : 0); ++step) {
    const bool by_image = step == kScoreWords;
    launch(rank_key_kernel<T>, grid_size(count, kRankThreads), kRankThreads, 0, stream, count,
           num_boxes, filter, score_threshold, by_image ? kRankByImage : step, step == 0, scores,
           values.Current(), keys.Current());
    if (const char* error = launch_error()) return error;
    size_t bytes = layout.storage_bytes;
    const cudaError_t error =
        cub::DeviceRadixSort::SortPairs(workspace + layout.storage, bytes, keys, values, count, 0,
                                        by_image ? image_bits : 32, stream);
    if (error != cudaSuccess) return cudaGetErrorString(error);
  }
  *order = values.Current();
  return nullptr;
}

}  // namespace cuda
}  // namespace pydet
