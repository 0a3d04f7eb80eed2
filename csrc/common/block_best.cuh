// SPDX-License-Identifier: Apache-2.0
// The best of what the threads of a block found.
#pragma once

#include <cstdint>

#include "common/launch.cuh"

namespace pydet {
namespace cuda {

// Something with a value; of equal values the smaller number is better.
template <class A>
struct Best {
  A value;
  uint32_t number;
};

template <class A>
__device__ Best<A> better(const Best<A>& a, const Best<A>& b) {
  const bool second = b.value > a.value || (b.value == a.value && b.number < a.number);
  return second ? b : a;
}

// The best of `lanes` lanes, a power of 2, the same in all of them.
template <class A>
__device__ Best<A> best_of_lanes(Best<A> best, int lanes) {
  for (int step = lanes / 2; step > 0; step /= 2) {
    best = better(best, Best<A>{__shfl_xor_sync(0xffffffffu, best.value, step),
                                __shfl_xor_sync(0xffffffffu, best.number, step)});
  }
  return best;
}

// The best of a block of 32 * kWarps threads, the same in all of them. One barrier: the next call
// must bring another array, the one after that may bring this again.
template <int kWarps, class A>
__device__ Best<A> best_of_block(Best<A> best, Best<A> (&warps)[kWarps]) {
  best = best_of_lanes(best, 32);
  if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = best;
  __syncthreads();
  return best_of_lanes(warps[threadIdx.x % kWarps], kWarps);
}

}  // namespace cuda
}  // namespace pydet
