// SPDX-License-Identifier: Apache-2.0
#include "box_iou/box_iou.h"
#include "common/box.h"
#include "common/launch.cuh"

namespace pydet {
namespace cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kColumns = 4;  // columns a thread: one 128-bit store of floats
constexpr int kRows = 16;    // rows a block: each thread reads its boxes2 once for all of them

// Several values that are stored by one instruction.
template <class T>
struct alignas(sizeof(T) * kColumns) Pack {
  T values[kColumns];
};

// A block writes kRows x (kThreads * kColumns) of one image's matrix. Blocks stride over all such
// pieces, so no matrix is too large for the grid.
template <class T>
__global__ void __launch_bounds__(kThreads)
    box_iou_kernel(int64_t batch, int64_t num_boxes1, int64_t num_boxes2, const T* boxes1,
                   const T* boxes2, T* iou) {
  using A = acc_t<T>;
  const int64_t column_blocks = ceil_div<int64_t>(num_boxes2, kThreads * kColumns);
  const int64_t row_blocks = ceil_div<int64_t>(num_boxes1, kRows);
  const int64_t pieces = batch * row_blocks * column_blocks;
  const bool aligned = num_boxes2 % kColumns == 0;  // then each row starts at a multiple of a pack
  for (int64_t piece = blockIdx.x; piece < pieces; piece += gridDim.x) {
    const int64_t image = piece / (row_blocks * column_blocks);
    const int64_t row_begin = piece / column_blocks % row_blocks * kRows;
    const int64_t row_end = min_of(row_begin + kRows, num_boxes1);
    const int64_t column = (piece % column_blocks * kThreads + threadIdx.x) * kColumns;
    if (column >= num_boxes2) continue;
    const int count = static_cast<int>(min_of<int64_t>(kColumns, num_boxes2 - column));
    Box<A> b[kColumns];
    A area_b[kColumns];
#pragma unroll
    for (int k = 0; k < kColumns; ++k) {
      b[k] = load_box(boxes2, image * num_boxes2 + (k < count ? column + k : column));
      area_b[k] = area(b[k]);
    }
    for (int64_t i = row_begin; i < row_end; ++i) {
      // All threads of the block read the same box: one broadcast load.
      const Box<A> a = load_box(boxes1, image * num_boxes1 + i);
      const A area_a = area(a);
      Pack<T> pack;
#pragma unroll
      for (int k = 0; k < kColumns; ++k) {
        store(&pack.values[k], pydet::iou(intersection(a, b[k]), area_a, area_b[k]));
      }
      T* out = iou + (image * num_boxes1 + i) * num_boxes2 + column;
      if (aligned) {
        *reinterpret_cast<Pack<T>*>(out) = pack;
      } else {
#pragma unroll
        for (int k = 0; k < kColumns; ++k) {
          if (k < count) out[k] = pack.values[k];
        }
      }
    }
  }
}

constexpr int kLanes = 32;  // boxes of the gathering side a block (its x dimension)
constexpr int kGroups =
    8;  // parts of the other side that are added up in parallel (its y dimension)

// Gradient of each box of one side: a block takes kLanes boxes, its kGroups rows of threads take
// every kGroups-th box of the other side, and the parts are added in a fixed order. `stride` and
// `other_stride` are those of grad_iou along the two sides.
template <class T>
__global__ void __launch_bounds__(kLanes* kGroups)
    box_iou_backward_kernel(int64_t batch, int64_t count, int64_t others, int64_t stride,
                            int64_t other_stride, const T* grad_iou, const T* boxes,
                            const T* other_boxes, T* grad_boxes) {
  using A = acc_t<T>;
  __shared__ Box<A> parts[kGroups][kLanes];
  const int64_t blocks = ceil_div<int64_t>(count, kLanes);
  for (int64_t piece = blockIdx.x; piece < batch * blocks; piece += gridDim.x) {
    const int64_t image = piece / blocks;
    const int64_t i = piece % blocks * kLanes + threadIdx.x;
    Box<A> sum{};
    if (i < count) {
      const Box<A> box = load_box(boxes, image * count + i);
      const T* grad = grad_iou + image * count * others + i * stride;
      for (int64_t j = threadIdx.y; j < others; j += kGroups) {
        Box<A> ignored{};
        iou_backward(box, load_box(other_boxes, image * others + j), load(grad + j * other_stride),
                     &sum, &ignored);
      }
    }
    parts[threadIdx.y][threadIdx.x] = sum;
    __syncthreads();
    if (threadIdx.y == 0 && i < count) {
      for (int group = 1; group < kGroups; ++group) {
        const Box<A>& part = parts[group][threadIdx.x];
        sum = {sum.x1 + part.x1, sum.y1 + part.y1, sum.x2 + part.x2, sum.y2 + part.y2};
      }
      store_box(grad_boxes, image * count + i, sum);
    }
    __syncthreads();
  }
}

}  // namespace

template <class T>
const char* box_iou(int64_t batch, int64_t num_boxes1, int64_t num_boxes2, const T* boxes1,
                    const T* boxes2, T* iou, CUstream_st* stream) {
  const int64_t pieces = batch * ceil_div<int64_t>(num_boxes1, kRows) *
                         ceil_div<int64_t>(num_boxes2, kThreads * kColumns);
  if (pieces == 0) return nullptr;
  launch(box_iou_kernel<T>, grid_size(pieces, 1), kThreads, 0, stream, batch, num_boxes1,
         num_boxes2, boxes1, boxes2, iou);
  return launch_error();
}

template <class T>
const char* box_iou_backward(int64_t batch, int64_t num_boxes1, int64_t num_boxes2,
                             const T* grad_iou, const T* boxes1, const T* boxes2, T* grad_boxes1,
                             T* grad_boxes2, CUstream_st* stream) {
  const dim3 threads(kLanes, kGroups);
  if (grad_boxes1 != nullptr && batch * num_boxes1 != 0) {
    launch(box_iou_backward_kernel<T>, grid_size(batch * ceil_div<int64_t>(num_boxes1, kLanes), 1),
           threads, 0, stream, batch, num_boxes1, num_boxes2, num_boxes2, 1, grad_iou, boxes1,
           boxes2, grad_boxes1);
  }
  if (grad_boxes2 != nullptr && batch * num_boxes2 != 0) {
    launch(box_iou_backward_kernel<T>, grid_size(batch * ceil_div<int64_t>(num_boxes2, kLanes), 1),
           threads, 0, stream, batch, num_boxes2, num_boxes1, 1, num_boxes2, grad_iou, boxes2,
           boxes1, grad_boxes2);
  }
  return launch_error();
}

template const char* box_iou(int64_t, int64_t, int64_t, const float*, const float*, float*,
                             CUstream_st*);
template const char* box_iou(int64_t, int64_t, int64_t, const double*, const double*, double*,
                             CUstream_st*);
template const char* box_iou(int64_t, int64_t, int64_t, const Half*, const Half*, Half*,
                             CUstream_st*);
template const char* box_iou(int64_t, int64_t, int64_t, const BFloat16*, const BFloat16*, BFloat16*,
                             CUstream_st*);

template const char* box_iou_backward(int64_t, int64_t, int64_t, const float*, const float*,
                                      const float*, float*, float*, CUstream_st*);
template const char* box_iou_backward(int64_t, int64_t, int64_t, const double*, const double*,
                                      const double*, double*, double*, CUstream_st*);
template const char* box_iou_backward(int64_t, int64_t, int64_t, const Half*, const Half*,
                                      const Half*, Half*, Half*, CUstream_st*);
template const char* box_iou_backward(int64_t, int64_t, int64_t, const BFloat16*, const BFloat16*,
                                      const BFloat16*, BFloat16*, BFloat16*, CUstream_st*);

}  // namespace cuda
}  // namespace pydet
