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
    decayed_output_kernel(int64_t batch, int64_t num_boxes, int64_t max_output,
                          acc_t<T> score_threshold, const acc_t<T>* scores, const int64_t* order,
                          int64_t* keep, T* decayed, int64_t* counts) {
  const int64_t stride = int64_t{gridDim.x} * kOutputThreads;
  const int64_t row = max_of<int64_t>(1, max_output), most = min_of(num_boxes, max_output);
  for (int64_t i = int64_t{blockIdx.x} * kOutputThreads + threadIdx.x; i < batch * row;
       i += stride) {
    const int64_t b = i / row, k = i % row;
    const int64_t* ranks = order + b * num_boxes;
    const int64_t count = count_ranked(k, most, true, score_threshold, scores, ranks);
    if (count >= 0) counts[b] = count;
    if (k >= max_output) continue;
    const bool is_kept = takes_part(k, most, true, score_threshold, scores, ranks);
    keep[i] = is_kept ? ranks[k] - b * num_boxes : -1;
    store(decayed + i, is_kept ? scores[ranks[k]] : acc_t<T>(0));
  }
}

// Writes, for each image, the indices and scores of the boxes whose score [batch, num_boxes] is
// greater than the threshold, best first, ties by index, and -1 and 0 behind them.
template <class T>
const char* write_by_score(int64_t batch, int64_t num_boxes, int64_t max_output,
                           acc_t<T> score_threshold, const acc_t<T>* scores,
                           const PairSortLayout& layout, char* workspace, int64_t* keep, T* decayed,
                           int64_t* counts, CUstream_st* stream) {
  const int64_t* order = nullptr;
  if (num_boxes > 0) {
    const char* error = rank_boxes(batch, num_boxes, true, score_threshold, scores, layout,
                                   workspace, &order, stream);
    if (error != nullptr) return error;
  }
  launch(decayed_output_kernel<T>,
         grid_size(batch * max_of<int64_t>(1, max_output), kOutputThreads), kOutputThreads, 0,
         stream, batch, num_boxes, max_output, score_threshold, scores, order, keep, decayed,
         counts);
  return launch_error();
}

}  // namespace cuda
}  // namespace pydet
