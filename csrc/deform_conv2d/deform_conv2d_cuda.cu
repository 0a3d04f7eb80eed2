// SPDX-License-Identifier: Apache-2.0
#include "common/launch.cuh"
#include "deform_conv2d/deform_conv2d.h"

namespace pydet {
namespace cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarp = 32;
// Channels a thread: they share the place of its point, which takes as many instructions as some
// ten channels.
constexpr int kChannels = 16;
// Of them, those whose loads are on their way at the same time.
constexpr int kAtOnce = 4;

// A thread's point and channels; neighbouring threads have neighbouring positions.
struct Share {
  int64_t p, k, g, first, last;
};

template <class T>
__device__ Share share_of(const DeformConvParams<T>& params, int64_t index) {
  const int64_t taps = params.kernel_height * params.kernel_width;
  const int64_t channels_a_group = params.channels / params.offset_groups;
  const int64_t blocks = ceil_div<int64_t>(channels_a_group, kChannels);
  const int64_t k = index / params.count % taps, block = index / params.count / taps;
  const int64_t g = block / blocks, first = g * channels_a_group + block % blocks * kChannels;
  return {index % params.count, k, g, first, min_of(first + kChannels, (g + 1) * channels_a_group)};
}

template <class T>
__host__ __device__ int64_t num_shares(const DeformConvParams<T>& params) {
  const int64_t channels_a_group = params.channels / params.offset_groups;
  return params.count * params.kernel_height * params.kernel_width * params.offset_groups *
         ceil_div<int64_t>(channels_a_group, kChannels);
}

template <class T>
__global__ void __launch_bounds__(kThreads, 2)
    deform_im2col_kernel(DeformConvParams<T> params, T* columns) {
  using A = acc_t<T>;
  const int64_t taps = params.kernel_height * params.kernel_width;
  const int64_t cells = params.height * params.width;
  const int64_t total = num_shares(params), step = int64_t{gridDim.x} * kThreads;
  for (int64_t index = int64_t{blockIdx.x} * kThreads + threadIdx.x; index < total; index += step) {
    const Share share = share_of(params, index);
    const DeformPoint<A> point = deform_point(params, share.g, share.k, share.p);
    const Neighbours<A> near = neighbours<A>(point.y, point.x, params.width, 1);
    const A mask = point.counts() ? point.mask : A(0);  // where it does not count values are 0, too
    const T* input = params.input + share.first * cells;
    T* to = columns + (share.first * taps + share.k) * params.count + share.p;
    const int channels = static_cast<int>(share.last - share.first);
    for (int c = 0; c < channels; c += kAtOnce) {
      A values[kAtOnce];
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i)  // the last channel again, rather than a branch
        values[i] = deform_value(near, input + min_of(c + i, channels - 1) * cells);
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        if (c + i < channels) store(to + (c + i) * taps * params.count, mask * values[i]);
      }
    }
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    deform_col2im_kernel(DeformConvParams<T> params, const T* grad_columns, acc_t<T>* grad_input) {
  using A = acc_t<T>;
  const int64_t taps = params.kernel_height * params.kernel_width;
  const int64_t cells = params.height * params.width;
  const int64_t total = num_shares(params), step = int64_t{gridDim.x} * kThreads;
  for (int64_t index = int64_t{blockIdx.x} * kThreads + threadIdx.x; index < total; index += step) {
    const Share share = share_of(params, index);
    const DeformPoint<A> point = deform_point(params, share.g, share.k, share.p);
    const Neighbours<A> near = neighbours<A>(point.y, point.x, params.width, 1);
    const T* from = grad_columns + (share.first * taps + share.k) * params.count + share.p;
    A* to = grad_input + share.first * cells;
    const int channels = static_cast<int>(share.last - share.first);
    for (int c = 0; c < channels; c += kAtOnce) {
      A grads[kAtOnce];
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i)
        grads[i] = load(from + min_of(c + i, channels - 1) * taps * params.count);
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        if (c + i >= channels) break;
#pragma unroll
        for (int n = 0; n < 4; ++n) {
          if (near.weight[n] != A(0)) {
            atomicAdd(to + (c + i) * cells + near.offset[n],
                      near.weight[n] * point.mask * grads[i]);
          }
        }
      }
    }
  }
}

// The same sums in a fixed order: a warp has a channel and takes 32 of its points at a time. Of
// those that add to the same cell the lower lane comes first.
template <class T>
__global__ void __launch_bounds__(kWarp)
    deform_col2im_in_order_kernel(DeformConvParams<T> params, const T* grad_columns,
                                  acc_t<T>* grad_input) {
  using A = acc_t<T>;
  const int64_t taps = params.kernel_height * params.kernel_width;
  const int64_t channels_a_group = params.channels / params.offset_groups;
  const int lane = threadIdx.x;
  for (int64_t c = blockIdx.x; c < params.channels; c += gridDim.x) {
    A* channel = grad_input + c * params.height * params.width;
    for (int64_t k = 0; k < taps; ++k) {
      for (int64_t first = 0; first < params.count; first += kWarp) {
        const int64_t p = min_of(first + lane, params.count - 1);
        const DeformPoint<A> point = deform_point(params, c / channels_a_group, k, p);
        const Neighbours<A> near = neighbours<A>(point.y, point.x, params.width, 1);
        const A grad = load(grad_columns + (c * taps + k) * params.count + p);
        for (int i = 0; i < 4; ++i) {
          const bool adds = first + lane < params.count && near.weight[i] != A(0);
          // A map has less than 2^31 cells; what no other lane has stands for those that add
          // nothing.
          const int cell = adds ? static_cast<int>(near.offset[i]) : -1 - lane;
          const unsigned int same = __match_any_sync(~0u, cell);
          const int turn = __popc(same & ((1u << lane) - 1));
          for (int t = 0; __any_sync(~0u, adds && turn >= t); ++t) {
            if (adds && turn == t) channel[cell] += near.weight[i] * point.mask * grad;
            __syncwarp();
          }
        }
      }
    }
  }
}

// Points a block, and threads that share the channels of each: a small map has few points, and each
// has all channels of its group to add up.
constexpr int kPoints = 32, kSlices = kThreads / kPoints;

template <class T>
__global__ void __launch_bounds__(kThreads)
    deform_col2points_kernel(DeformConvParams<T> params, const T* grad_columns, T* grad_offset,
                             T* grad_mask) {
  using A = acc_t<T>;
  __shared__ BilinearValue<A> parts[kSlices][kPoints];
  const int64_t taps = params.kernel_height * params.kernel_width;
  const int64_t positions = params.out_height * params.out_width;
  const int64_t channels_a_group = params.channels / params.offset_groups;
  const int64_t cells = params.height * params.width;
  const int64_t runs = ceil_div<int64_t>(params.count, kPoints);
  const int lane = threadIdx.x % kPoints, slice = threadIdx.x / kPoints;
  for (int64_t piece = blockIdx.x; piece < params.offset_groups * taps * runs; piece += gridDim.x) {
    const int64_t gk = piece / runs, p = piece % runs * kPoints + lane;
    const int64_t g = gk / taps, k = gk % taps;
    DeformPoint<A> point{};
    BilinearValue<A> sum{A(0), A(0), A(0)};
    if (p < params.count) point = deform_point(params, g, k, p);
    if (p < params.count && point.counts()) {
      const Neighbours<A> near = neighbours<A>(point.y, point.x, params.width, 1);
      for (int64_t i = slice; i < channels_a_group; i += kSlices) {
        const int64_t c = g * channels_a_group + i;
        const A grad = load(grad_columns + (c * taps + k) * params.count + p);
        sum.add(grad, deform_slopes(point, near, params.input + c * cells));
      }
    }
    parts[slice][lane] = sum;
    __syncthreads();
    if (slice == 0 && p < params.count) {
      for (int s = 1; s < kSlices; ++s) sum.add(A(1), parts[s][lane]);
      T* to = grad_offset + gk * 2 * positions + params.begin + p;
      store(to, point.counts() ? point.mask * sum.slope_y : A(0));
      store(to + positions, point.counts() ? point.mask * sum.slope_x : A(0));
      if (grad_mask != nullptr) store(grad_mask + gk * positions + params.begin + p, sum.value);
    }
    __syncthreads();
  }
}

}  // namespace

template <class T>
const char* deform_im2col(const DeformConvParams<T>& params, T* columns, CUstream_st* stream) {
  const int64_t total = num_shares(params);
  if (total == 0) return nullptr;
  launch(deform_im2col_kernel<T>, grid_size(total, kThreads), kThreads, 0, stream, params, columns);
  return launch_error();
}

template <class T>
const char* deform_col2im(const DeformConvParams<T>& params, const T* grad_columns,
                          bool deterministic, acc_t<T>* grad_input, CUstream_st* stream) {
  const int64_t total = num_shares(params);
  if (total == 0 || params.height * params.width == 0) return nullptr;
  if (deterministic) {
    launch(deform_col2im_in_order_kernel<T>, grid_size(params.channels, 1), kWarp, 0, stream,
           params, grad_columns, grad_input);
  } else {
    launch(deform_col2im_kernel<T>, grid_size(total, kThreads), kThreads, 0, stream, params,
           grad_columns, grad_input);
  }
  return launch_error();
}

template <class T>
const char* deform_col2points(const DeformConvParams<T>& params, const T* grad_columns,
                              T* grad_offset, T* grad_mask, CUstream_st* stream) {
  const int64_t pieces = params.offset_groups * params.kernel_height * params.kernel_width *
                         ceil_div<int64_t>(params.count, kPoints);
  if (pieces == 0) return nullptr;
  launch(deform_col2points_kernel<T>, grid_size(pieces, 1), kThreads, 0, stream, params,
         grad_columns, grad_offset, grad_mask);
  return launch_error();
}

template const char* deform_im2col(const DeformConvParams<float>&, float*, CUstream_st*);
template const char* deform_im2col(const DeformConvParams<double>&, double*, CUstream_st*);
template const char* deform_im2col(const DeformConvParams<Half>&, Half*, CUstream_st*);
template const char* deform_im2col(const DeformConvParams<BFloat16>&, BFloat16*, CUstream_st*);

template const char* deform_col2im(const DeformConvParams<float>&, const float*, bool, float*,
                                   CUstream_st*);
template const char* deform_col2im(const DeformConvParams<double>&, const double*, bool, double*,
                                   CUstream_st*);
template const char* deform_col2im(const DeformConvParams<Half>&, const Half*, bool, float*,
                                   CUstream_st*);
template const char* deform_col2im(const DeformConvParams<BFloat16>&, const BFloat16*, bool, float*,
                                   CUstream_st*);

template const char* deform_col2points(const DeformConvParams<float>&, const float*, float*, float*,
                                       CUstream_st*);
template const char* deform_col2points(const DeformConvParams<double>&, const double*, double*,
                                       double*, CUstream_st*);
template const char* deform_col2points(const DeformConvParams<Half>&, const Half*, Half*, Half*,
                                       CUstream_st*);
template const char* deform_col2points(const DeformConvParams<BFloat16>&, const BFloat16*,
                                       BFloat16*, BFloat16*, CUstream_st*);

}  // namespace cuda
}  // namespace pydet
