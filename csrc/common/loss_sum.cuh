// SPDX-License-Identifier: Apache-2.0
// Sums of a loss in a fixed order: over a block, and over the partial sums of the blocks.
#pragma once

#include "common/launch.cuh"

namespace pydet {
namespace cuda {

constexpr int kLossThreads = 256;

// The sum of `value` over the block, in a fixed order; every thread must call it, thread 0 has it.
template <class A>
__device__ A block_sum(A value) {
  __shared__ A parts[kLossThreads / 32];
  for (int distance = 16; distance > 0; distance /= 2)
    value += __shfl_down_sync(0xffffffffu, value, distance);
  if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = value;
  __syncthreads();
  A sum = A(0);
  if (threadIdx.x == 0) {
    for (int warp = 0; warp < kLossThreads / 32; ++warp) sum += parts[warp];
  }
  __syncthreads();  // before the next call writes `parts`
  return sum;
}

// sums[segment] = scale * the sum of its partials: a block a segment.
template <class A>
__global__ void __launch_bounds__(kLossThreads)
    add_partials_kernel(int64_t segments, int64_t pieces, double scale, const double* partials,
                        A* sums) {
  for (int64_t segment = blockIdx.x; segment < segments; segment += gridDim.x) {
    double sum = 0;
    for (int64_t piece = threadIdx.x; piece < pieces; piece += kLossThreads)
      sum += partials[segment * pieces + piece];
    sum = block_sum(sum);
    if (threadIdx.x == 0) sums[segment] = static_cast<A>(sum * scale);
  }
}

template <class A>
const char* add_partials(int64_t segments, int64_t pieces, double scale, const double* partials,
                         A* sums, CUstream_st* stream) {
  if (segments == 0) return nullptr;
  launch(add_partials_kernel<A>, grid_size(segments, 1), kLossThreads, 0, stream, segments, pieces,
         scale, partials, sums);
  return launch_error();
}

}  // namespace cuda
}  // namespace pydet
