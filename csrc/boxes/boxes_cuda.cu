// SPDX-License-Identifier: Apache-2.0
#include "boxes/boxes.h"
#include "common/launch.cuh"

namespace pydet {
namespace cuda {
namespace {

constexpr int kThreads = 256;

template <class Operation>
__global__ void __launch_bounds__(kThreads)
    for_each_box_kernel(int64_t count, Operation operation) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < count; i += step)
    operation(i);
}

}  // namespace

template <class Operation>
const char* for_each_box(int64_t count, const Operation& operation, CUstream_st* stream) {
  if (count == 0) return nullptr;
  launch(for_each_box_kernel<Operation>, grid_size(count, kThreads), kThreads, 0, stream, count,
         operation);
  return launch_error();
}

template const char* for_each_box(int64_t, const BoxArea<float>&, CUstream_st*);
template const char* for_each_box(int64_t, const BoxArea<double>&, CUstream_st*);
template const char* for_each_box(int64_t, const BoxArea<Half>&, CUstream_st*);
template const char* for_each_box(int64_t, const BoxArea<BFloat16>&, CUstream_st*);
template const char* for_each_box(int64_t, const BoxArea<uint64_t>&, CUstream_st*);
template const char* for_each_box(int64_t, const BoxAreaBackward<float>&, CUstream_st*);
template const char* for_each_box(int64_t, const BoxAreaBackward<double>&, CUstream_st*);
template const char* for_each_box(int64_t, const BoxAreaBackward<Half>&, CUstream_st*);
template const char* for_each_box(int64_t, const BoxAreaBackward<BFloat16>&, CUstream_st*);
template const char* for_each_box(int64_t, const BoxConvert<float>&, CUstream_st*);
template const char* for_each_box(int64_t, const BoxConvert<double>&, CUstream_st*);
template const char* for_each_box(int64_t, const BoxConvert<Half>&, CUstream_st*);
template const char* for_each_box(int64_t, const BoxConvert<BFloat16>&, CUstream_st*);
template const char* for_each_box(int64_t, const BoxConvert<uint64_t>&, CUstream_st*);
template const char* for_each_box(int64_t, const BoxConvertBackward<float>&, CUstream_st*);
template const char* for_each_box(int64_t, const BoxConvertBackward<double>&, CUstream_st*);
template const char* for_each_box(int64_t, const BoxConvertBackward<Half>&, CUstream_st*);
template const char* for_each_box(int64_t, const BoxConvertBackward<BFloat16>&, CUstream_st*);
template const char* for_each_box(int64_t, const ClipBoxes<float>&, CUstream_st*);
template const char* for_each_box(int64_t, const ClipBoxes<double>&, CUstream_st*);
template const char* for_each_box(int64_t, const ClipBoxes<Half>&, CUstream_st*);
template const char* for_each_box(int64_t, const ClipBoxes<BFloat16>&, CUstream_st*);
template const char* for_each_box(int64_t, const ClipBoxes<int64_t>&, CUstream_st*);
template const char* for_each_box(int64_t, const ClipBoxesBackward<float>&, CUstream_st*);
template const char* for_each_box(int64_t, const ClipBoxesBackward<double>&, CUstream_st*);
template const char* for_each_box(int64_t, const ClipBoxesBackward<Half>&, CUstream_st*);
template const char* for_each_box(int64_t, const ClipBoxesBackward<BFloat16>&, CUstream_st*);
template const char* for_each_box(int64_t, const LargeBoxes<float>&, CUstream_st*);
template const char* for_each_box(int64_t, const LargeBoxes<double>&, CUstream_st*);
template const char* for_each_box(int64_t, const LargeBoxes<Half>&, CUstream_st*);
template const char* for_each_box(int64_t, const LargeBoxes<BFloat16>&, CUstream_st*);
template const char* for_each_box(int64_t, const LargeBoxes<int64_t>&, CUstream_st*);

}  // namespace cuda
}  // namespace pydet
