// SPDX-License-Identifier: Apache-2.0
#include "boxes/boxes.h"
#include "common/box_words.cuh"
#include "common/launch.cuh"
#include "common/pack.cuh"

namespace pydet {
namespace cuda {
namespace {

constexpr int kThreads = 256;

// Boxes moved by words of 128 bits.
struct BoxMover {
  template <class T>
  __device__ Sides<box_number_t<T>> load(const T* boxes, int64_t index) const {
    return load_sides(load_words(boxes, index).values, 0);
  }
  template <class T>
  __device__ void store(T* boxes, int64_t index, const Sides<box_number_t<T>>& sides) const {
    BoxWords<T> words;
    store_sides(words.values, 0, sides);
    store_words(boxes, index, words);
  }
};

template <class Operation>
__global__ void __launch_bounds__(kThreads)
    for_each_box_kernel(int64_t count, Operation operation) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < count; i += step)
    operation(i, BoxMover{});
}

constexpr int kWarp = 32;
constexpr int kMaskThreads = 1024;  // of the block that reads one mask
constexpr int kAtOnce = 2;          // packs of a thread that are on their way at the same time

// The least column and row and the greatest seen so far.
struct Extent {
  int left, top, right, bottom;

  __device__ void add(int x, int y) { *this = joined({x, y, x, y}); }
  __device__ Extent joined(const Extent& other) const {
    return {min_of(left, other.left), min_of(top, other.top), max_of(right, other.right),
            max_of(bottom, other.bottom)};
  }
};

__device__ Extent from_below(const Extent& e, int delta) {
  return {__shfl_down_sync(~0u, e.left, delta), __shfl_down_sync(~0u, e.top, delta),
          __shfl_down_sync(~0u, e.right, delta), __shfl_down_sync(~0u, e.bottom, delta)};
}

// The elements [0, count) that are set, which stand from `index` on in a mask.
template <class T>
__device__ void add_elements(const T* elements, int count, int64_t index, int width,
                             Extent& extent) {
  bool any = false;
#pragma unroll
  for (int k = 0; k < count; ++k) any |= is_set(elements[k]);
  if (!any) return;
  int x = static_cast<int>(index % width), y = static_cast<int>(index / width);
#pragma unroll
  for (int k = 0; k < count; ++k) {
    if (is_set(elements[k])) extent.add(x, y);
    if (++x == width) x = 0, ++y;
  }
}

// A block a mask: elements before the first multiple of 16 bytes, then packs, then the rest.
template <class T>
__global__ void __launch_bounds__(kMaskThreads)
    masks_to_boxes_kernel(int64_t count, int64_t height, int64_t width, const T* masks,
                          float* boxes) {
  __shared__ Extent parts[kMaskThreads / kWarp];
  constexpr int kSize = Pack<T>::kSize;
  const int thread = threadIdx.x, columns = static_cast<int>(width);
  for (int64_t i = blockIdx.x; i < count; i += gridDim.x) {
    const T* mask = masks + i * height * width;
    const int64_t size = height * width;
    const int64_t beyond = reinterpret_cast<uintptr_t>(mask) % 16 / sizeof(T);
    const int64_t head = min_of<int64_t>((kSize - beyond) % kSize, size);
    const int64_t packs = (size - head) / kSize, tail = head + packs * kSize;
    Extent extent{0x7fffffff, 0x7fffffff, -1, -1};
    if (thread < head) add_elements(mask + thread, 1, thread, columns, extent);
    if (thread < size - tail) add_elements(mask + tail + thread, 1, tail + thread, columns, extent);
    for (int64_t j = thread; j < packs; j += kAtOnce * kMaskThreads) {
      int64_t first[kAtOnce];
      Pack<T> pack[kAtOnce];
#pragma unroll
      for (int k = 0; k < kAtOnce; ++k) {  // the last again, which changes nothing: no branch
        first[k] = head + min_of(j + k * kMaskThreads, packs - 1) * kSize;
        pack[k] = *reinterpret_cast<const Pack<T>*>(mask + first[k]);
      }
#pragma unroll
      for (int k = 0; k < kAtOnce; ++k)
        add_elements(pack[k].values, kSize, first[k], columns, extent);
    }
    for (int delta = kWarp / 2; delta > 0; delta /= 2)
      extent = extent.joined(from_below(extent, delta));
    if (thread % kWarp == 0) parts[thread / kWarp] = extent;
    __syncthreads();
    if (thread == 0) {
      for (int warp = 1; warp < kMaskThreads / kWarp; ++warp) extent = extent.joined(parts[warp]);
      const bool empty = extent.right < 0;
      boxes[4 * i] = empty ? 0.0f : static_cast<float>(extent.left);
      boxes[4 * i + 1] = empty ? 0.0f : static_cast<float>(extent.top);
      boxes[4 * i + 2] = empty ? 0.0f : static_cast<float>(extent.right);
      boxes[4 * i + 3] = empty ? 0.0f : static_cast<float>(extent.bottom);
    }
    __syncthreads();
  }
}

}  // namespace

template <class Operation>
const char* for_each_box(int64_t count, const Operation& operation, CUstream_st* stream) {
  if (count == 0) return nullptr;
  launch(for_each_box_kernel<Operation>, grid_size(count, kThreads), kThreads, 0, stream, count,
         operation);
  return launch_error();
}

template <class T>
const char* masks_to_boxes(int64_t count, int64_t height, int64_t width, const T* masks,
                           float* boxes, CUstream_st* stream) {
  if (count == 0) return nullptr;
  launch(masks_to_boxes_kernel<T>, grid_size(count, 1), kMaskThreads, 0, stream, count, height,
         width, masks, boxes);
  return launch_error();
}

template const char* masks_to_boxes(int64_t, int64_t, int64_t, const uint8_t*, float*,
                                    CUstream_st*);
template const char* masks_to_boxes(int64_t, int64_t, int64_t, const int16_t*, float*,
                                    CUstream_st*);
template const char* masks_to_boxes(int64_t, int64_t, int64_t, const int32_t*, float*,
                                    CUstream_st*);
template const char* masks_to_boxes(int64_t, int64_t, int64_t, const int64_t*, float*,
                                    CUstream_st*);
template const char* masks_to_boxes(int64_t, int64_t, int64_t, const float*, float*, CUstream_st*);
template const char* masks_to_boxes(int64_t, int64_t, int64_t, const double*, float*, CUstream_st*);
template const char* masks_to_boxes(int64_t, int64_t, int64_t, const Half*, float*, CUstream_st*);
template const char* masks_to_boxes(int64_t, int64_t, int64_t, const BFloat16*, float*,
                                    CUstream_st*);

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
