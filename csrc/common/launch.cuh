// SPDX-License-Identifier: Apache-2.0
// What every CUDA launcher needs. A launcher takes sizes, inputs, outputs, workspace and the
// stream; it allocates nothing, waits for nothing and returns nullptr or the text of the launch
// error.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace pydet {
namespace cuda {

template <class Integer>
__host__ __device__ constexpr Integer ceil_div(Integer a, Integer b) {
  return (a + b - 1) / b;
}

// Blocks for a grid-stride loop: enough to fill any GPU, few enough for the limit of the grid's x
// dimension.
inline unsigned int grid_size(int64_t count, int64_t per_block) {
  constexpr int64_t kMaxBlocks = 1 << 20;
  const int64_t blocks = ceil_div(count, per_block);
  return static_cast<unsigned int>(blocks < 1 ? 1 : (blocks < kMaxBlocks ? blocks : kMaxBlocks));
}

// The error of the launch just made, as a text, or nullptr.
inline const char* launch_error() {
  const cudaError_t error = cudaGetLastError();
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

#if defined(__CUDACC__)
// Starts a kernel. The only place with CUDA's own launch syntax, so that a host compiler can build
// all else of a .cu file; the emulation of the tests has a function of the same name.
template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared_bytes,
            CUstream_st* stream, Arguments... arguments) {
  kernel<<<grid, block, shared_bytes, stream>>>(static_cast<Parameters>(arguments)...);
}
#endif

}  // namespace cuda
}  // namespace pydet
