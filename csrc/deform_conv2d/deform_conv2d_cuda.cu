// SPDX-License-Identifier: Apache-2.0
#include "common/launch.cuh"
#include "deform_conv2d/deform_conv2d.h"

namespace pydet {
namespace cuda {
namespace {

constexpr int kThreads = 256;
// Channels a thread: they share the place of its point.
constexpr int kChannels = 8;

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
  const int64_t total = num_shares(params), step = int64_t{gridDim.x} * kThreads;
  for (int64_t index = int64_t{blockIdx.x} * kThreads + threadIdx.x; index < total; index += step) {
    const Share share = share_of(params, index);
    const DeformPoint<A> point = deform_point(params, share.g, share.k, share.p);
    const Neighbours<A> near = neighbours<A>(point.y, point.x, params.width, 1);
    for (int64_t c = share.first; c < share.last; ++c) {
      const A value = deform_value(near, params.input + c * params.height * params.width);
      store(columns + (c * taps + share.k) * params.count + share.p,
            point.counts() ? point.mask * value : A(0));
    }
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    deform_col2im_kernel(DeformConvParams<T> params, const T* grad_columns, acc_t<T>* grad_input) {
  using A = acc_t<T>;
  const int64_t taps = params.kernel_height * params.kernel_width;
  const int64_t total = num_shares(params), step = int64_t{gridDim.x} * kThreads;
  for (int64_t index = int64_t{blockIdx.x} * kThreads + threadIdx.x; index < total; index += step) {
    const Share share = share_of(params, index);
    const DeformPoint<A> point = deform_point(params, share.g, share.k, share.p);
    const Neighbours<A> near = neighbours<A>(point.y, point.x, params.width, 1);
    for (int64_t c = share.first; c < share.last; ++c) {
      const A grad = load(grad_columns + (c * taps + share.k) * params.count + share.p);
      A* channel = grad_input + c * params.height * params.width;
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        if (near.weight[i] != A(0)) {
          atomicAdd(channel + near.offset[i], near.weight[i] * point.mask * grad);
        }
      }
    }
  }
}

// The same sums, one thread a channel: in a fixed order.
template <class T>
__global__ void __launch_bounds__(kThreads)
    deform_col2im_in_order_kernel(DeformConvParams<T> params, const T* grad_columns,
                                  acc_t<T>* grad_input) {
  using A = acc_t<T>;
  const int64_t taps = params.kernel_height * params.kernel_width;
  const int64_t channels_a_group = params.channels / params.offset_groups;
  const int64_t step = int64_t{gridDim.x} * blockDim.x;
  for (int64_t c = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; c < params.channels; c += step) {
    A* channel = grad_input + c * params.height * params.width;
    for (int64_t k = 0; k < taps; ++k) {
      for (int64_t p = 0; p < params.count; ++p) {
        const DeformPoint<A> point = deform_point(params, c / channels_a_group, k, p);
        const Neighbours<A> near = neighbours<A>(point.y, point.x, params.width, 1);
        const A grad = load(grad_columns + (c * taps + k) * params.count + p);
        for (int i = 0; i < 4; ++i) {
          if (near.weight[i] != A(0)) channel[near.offset[i]] += near.weight[i] * point.mask * grad;
        }
      }
    }
  }
}

// One thread a point, over the channels of its group.
template <class T>
__global__ void __launch_bounds__(kThreads)
    deform_col2points_kernel(DeformConvParams<T> params, const T* grad_columns, T* grad_offset,
                             T* grad_mask) {
  using A = acc_t<T>;
  const int64_t taps = params.kernel_height * params.kernel_width;
  const int64_t positions = params.out_height * params.out_width;
  const int64_t channels_a_group = params.channels / params.offset_groups;
  const int64_t cells = params.height * params.width;
  const int64_t total = params.offset_groups * taps * params.count;
  const int64_t step = int64_t{gridDim.x} * kThreads;
  for (int64_t index = int64_t{blockIdx.x} * kThreads + threadIdx.x; index < total; index += step) {
    const int64_t p = index % params.count, gk = index / params.count;
    const int64_t g = gk / taps, k = gk % taps;
    const DeformPoint<A> point = deform_point(params, g, k, p);
    const Neighbours<A> near = neighbours<A>(point.y, point.x, params.width, 1);
    BilinearValue<A> sum{A(0), A(0), A(0)};
    for (int64_t i = 0; i < channels_a_group && point.counts(); ++i) {
      const int64_t c = g * channels_a_group + i;
      const A grad = load(grad_columns + (c * taps + k) * params.count + p);
      const BilinearValue<A> slopes = deform_slopes(point, near, params.input + c * cells);
      sum.value += grad * slopes.value;
      sum.slope_y += grad * slopes.slope_y;
      sum.slope_x += grad * slopes.slope_x;
    }
    T* to = grad_offset + gk * 2 * positions + params.begin + p;
    store(to, point.counts() ? point.mask * sum.slope_y : A(0));
    store(to + positions, point.counts() ? point.mask * sum.slope_x : A(0));
    if (grad_mask != nullptr) store(grad_mask + gk * positions + params.begin + p, sum.value);
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
    constexpr int kFew = 32;  // threads a block, so that many processors take part
    launch(deform_col2im_in_order_kernel<T>, grid_size(params.channels, kFew), kFew, 0, stream,
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
  const int64_t total =
      params.offset_groups * params.kernel_height * params.kernel_width * params.count;
  if (total == 0) return nullptr;
  launch(deform_col2points_kernel<T>, grid_size(total, kThreads), kThreads, 0, stream, params,
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
