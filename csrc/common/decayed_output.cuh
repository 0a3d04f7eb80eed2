// SPDX-License-Identifier: Apache-2.0
// The last step of ops that lower scores, on the device: rows of boxes by falling score.
#pragma once

#include <cstdint>

#include "common/launch.cuh"
#include "common/rank.cuh"

namespace pydet {
namespace cuda {

constexpr int kOutputThreads = 256;

template <class T>
__global__ void __launch_bounds__(kOutputThreads)
    decayed_count_kernel(int64_t batch, int64_t num_boxes, int64_t max_output,
                         acc_t<T> score_threshold, const acc_t<T>* scores, const int64_t* order,
                         int64_t* counts) {
  const int64_t stride = int64_t{gridDim.x} * kOutputThreads;
  for (int64_t b = int64_t{blockIdx.x} * kOutputThreads + threadIdx.x; b < batch; b += stride) {
    counts[b] = min_of(
        max_output, count_ranked(num_boxes, true, score_threshold, scores, order + b * num_boxes));
  }
}

template <class T>
__global__ void __launch_bounds__(kOutputThreads)
    decayed_output_kernel(int64_t batch, int64_t num_boxes, int64_t max_output,
                          const acc_t<T>* scores, const int64_t* order, const int64_t* counts,
                          int64_t* keep, T* decayed) {
  const int64_t stride = int64_t{gridDim.x} * kOutputThreads;
  for (int64_t i = int64_t{blockIdx.x} * kOutputThreads + threadIdx.x; i < batch * max_output;
       i += stride) {
    const int64_t b = i / max_output, k = i % max_output;
    const bool is_kept = k < counts[b];
    const int64_t index = is_kept ? order[b * num_boxes + k] : 0;
    keep[i] = is_kept ? index - b * num_boxes : -1;
    store(decayed + i, is_kept ? scores[index] : acc_t<T>(0));
  }
}

// Writes, for each image, the indices and scores of the boxes whose score [batch, num_boxes] is
// greater than the threshold, best first, ties by index, and -1 and 0 behind them.
template <class T>
const char* write_by_score(int64_t batch, int64_t num_boxes, int64_t max_output,
                           acc_t<T> score_threshold, const acc_t<T>* scores,
                           const RankLayout& layout, char* workspace, int64_t* keep, T* decayed,
                           int64_t* counts, CUstream_st* stream) {
  const int64_t* order = nullptr;
  if (num_boxes > 0) {
    const char* error = rank_boxes(batch, num_boxes, true, score_threshold, scores, layout,
                                   workspace, &order, stream);
    if (error != nullptr) return error;
  }
  launch(decayed_count_kernel<T>, grid_size(batch, kOutputThreads), kOutputThreads, 0, stream,
         batch, num_boxes, max_output, score_threshold, scores, order, counts);
  if (const char* error = launch_error()) return error;
  launch(decayed_output_kernel<T>, grid_size(batch * max_output, kOutputThreads), kOutputThreads, 0,
         stream, batch, num_boxes, max_output, scores, order, counts, keep, decayed);
  return launch_error();
}

}  // namespace cuda
}  // namespace pydet
