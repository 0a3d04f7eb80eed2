// SPDX-License-Identifier: Apache-2.0
#include "common/launch.cuh"
#include "common/roi_list.cuh"
#include "ps_roi/ps_roi.h"

namespace pydet {
namespace cuda {
namespace {

constexpr int kThreads = 256;

// The bin that one element of out is the mean of; neighbouring elements are neighbours in memory.
template <class A>
struct Bin {
  PsRoiAxis<A> y, x;
  PsRoiSteps<A> rows, columns;
  int64_t ph, pw;
  int64_t start, stride;  // of its channel in the maps: cell 0, and from a cell to the next
  A divisor;              // 0: nothing is pooled
};

template <class A>
__device__ Bin<A> bin_of(const PsRoiParams<A>& params, int64_t index) {
  const int64_t bins = params.pooled_height * params.pooled_width;
  const int64_t cells = params.height * params.width, out_channels = params.channels / bins;
  const int64_t r = index / params.channels, k = index % params.channels;
  // In [B, C, H, W] the elements of a RoI have the order of the channels.
  const int64_t channel = params.channels_last ? k % out_channels * bins + k / out_channels : k;
  const PsRoiPlace<A> place = ps_roi_place(params, r);
  Bin<A> bin{place.y, place.x, {}, {}, 0, 0, 0, 0, A(0)};
  if (place.image < 0) return bin;
  bin.ph = channel % bins / params.pooled_width;
  bin.pw = channel % bins % params.pooled_width;
  bin.rows = ps_roi_steps(place.y, params.align, bin.ph, params.height);
  bin.columns = ps_roi_steps(place.x, params.align, bin.pw, params.width);
  bin.start = place.image * params.channels * cells + channel * (params.channels_last ? 1 : cells);
  bin.stride = params.channels_last ? params.channels : 1;
  bin.divisor = bin.rows.count * bin.columns.count;
  return bin;
}

// Sum of the cells of row `y` that a bin has along x.
template <class T>
__device__ acc_t<T> row_sum(const PsRoiParams<acc_t<T>>& params, const Bin<acc_t<T>>& bin,
                            const T* row) {
  using A = acc_t<T>;
  A sum = A(0);
  for (int64_t j = bin.columns.begin; j < bin.columns.end; ++j) {
    const AxisSample<A> x = ps_roi_step(bin.x, params.align, bin.pw, j, params.width);
    if (x.weight_low != A(0)) sum += x.weight_low * load(row + x.low * bin.stride);
    if (x.weight_high != A(0)) sum += x.weight_high * load(row + x.high * bin.stride);
  }
  return sum;
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    ps_roi_kernel(PsRoiParams<acc_t<T>> params, const T* input, T* out) {
  using A = acc_t<T>;
  const int64_t count = params.num_rois * params.channels, step = int64_t{gridDim.x} * kThreads;
  for (int64_t k = int64_t{blockIdx.x} * kThreads + threadIdx.x; k < count; k += step) {
    const Bin<A> bin = bin_of(params, k);
    const int64_t stride_y = params.width * bin.stride;
    const T* map = input + bin.start;
    A sum = A(0);
    for (int64_t i = bin.rows.begin; i < bin.rows.end; ++i) {
      const AxisSample<A> y = ps_roi_step(bin.y, params.align, bin.ph, i, params.height);
      if (y.weight_low != A(0)) sum += y.weight_low * row_sum(params, bin, map + y.low * stride_y);
      if (y.weight_high != A(0))
        sum += y.weight_high * row_sum(params, bin, map + y.high * stride_y);
    }
    store(out + k, bin.divisor > A(0) ? sum / bin.divisor : A(0));
  }
}

// Gives `grad` to the cells of row `y` that a bin has along x.
template <class A>
__device__ void add_to_row(const PsRoiParams<A>& params, const Bin<A>& bin, A grad, A* row) {
  for (int64_t j = bin.columns.begin; j < bin.columns.end; ++j) {
    const AxisSample<A> x = ps_roi_step(bin.x, params.align, bin.pw, j, params.width);
    if (x.weight_low != A(0)) atomicAdd(row + x.low * bin.stride, grad * x.weight_low);
    if (x.weight_high != A(0)) atomicAdd(row + x.high * bin.stride, grad * x.weight_high);
  }
}

// Adds each element of grad_out to the cells that it is the mean of; grad_input is zero.
template <class T>
__global__ void __launch_bounds__(kThreads, 2)
    ps_roi_scatter_kernel(PsRoiParams<acc_t<T>> params, const T* grad_out, acc_t<T>* grad_input) {
  using A = acc_t<T>;
  const int64_t count = params.num_rois * params.channels, step = int64_t{gridDim.x} * kThreads;
  for (int64_t k = int64_t{blockIdx.x} * kThreads + threadIdx.x; k < count; k += step) {
    const Bin<A> bin = bin_of(params, k);
    if (!(bin.divisor > A(0))) continue;
    const int64_t stride_y = params.width * bin.stride;
    const A grad = load(grad_out + k) / bin.divisor;
    A* map = grad_input + bin.start;
    for (int64_t i = bin.rows.begin; i < bin.rows.end; ++i) {
      const AxisSample<A> y = ps_roi_step(bin.y, params.align, bin.ph, i, params.height);
      if (y.weight_low != A(0))
        add_to_row(params, bin, grad * y.weight_low, map + y.low * stride_y);
      if (y.weight_high != A(0))
        add_to_row(params, bin, grad * y.weight_high, map + y.high * stride_y);
    }
  }
}

// --- the same bits every time ------------------------------------------------------------------

// The weight that a bin gives to a cell along one axis.
template <class A>
__device__ A weight_of(const PsRoiAxis<A>& axis, const PsRoiSteps<A>& steps, bool align,
                       int64_t bin, int64_t cell, int64_t cells) {
  if (!align) return cell >= steps.begin && cell < steps.end ? A(1) : A(0);
  A weight = A(0);
  for (int64_t i = steps.begin; i < steps.end; ++i) {
    const AxisSample<A> sample = ps_roi_step(axis, align, bin, i, cells);
    if (sample.low == cell) weight += sample.weight_low;
    if (sample.high == cell) weight += sample.weight_high;
  }
  return weight;
}

// What a cell takes from one RoI: only one bin has its channel.
template <class T>
__device__ acc_t<T> taken_from(const PsRoiParams<acc_t<T>>& params, int64_t r,
                               const MapElement& cell, const T* grad_out) {
  using A = acc_t<T>;
  const PsRoiPlace<A> place = ps_roi_place(params, r);
  const int64_t bins = params.pooled_height * params.pooled_width, bin = cell.channel % bins;
  const int64_t ph = bin / params.pooled_width, pw = bin % params.pooled_width;
  const PsRoiSteps<A> rows = ps_roi_steps(place.y, params.align, ph, params.height);
  const A y = weight_of(place.y, rows, params.align, ph, cell.y, params.height);
  if (y == A(0)) return A(0);
  const PsRoiSteps<A> columns = ps_roi_steps(place.x, params.align, pw, params.width);
  const A x = weight_of(place.x, columns, params.align, pw, cell.x, params.width);
  if (x == A(0)) return A(0);
  const int64_t out_channels = params.channels / bins, channel = cell.channel / bins;
  const int64_t k = params.channels_last ? bin * out_channels + channel : channel * bins + bin;
  return y * x * (load(grad_out + r * params.channels + k) / (rows.count * columns.count));
}

// The cells that the samples of an axis can reach.
template <class A>
__device__ CellRange reach_of(const PsRoiAxis<A>& axis, bool align, int64_t bins, int64_t cells) {
  if (!align)
    return {bin_cells(axis.pool, 0, cells).begin, bin_cells(axis.pool, bins - 1, cells).end};
  const A start = axis.samples.start, end = start + static_cast<A>(bins) * axis.samples.bin_size;
  const A most = static_cast<A>(cells);
  const A low = min_of(max_of(min_of(start, end) - A(2), A(0)), most);
  const A high = min_of(max_of(max_of(start, end) + A(3), A(0)), most);
  return {static_cast<int64_t>(low), static_cast<int64_t>(high)};
}

template <class T>
__global__ void __launch_bounds__(kListThreads, 2)
    ps_roi_collect_kernel(PsRoiParams<acc_t<T>> params, const T* grad_out, acc_t<T>* grad_input) {
  using A = acc_t<T>;
  const MapSize size{params.channels, params.height, params.width, params.channels_last};
  for_each_map_element<A>(
      size, params.batch, params.num_rois,
      [&](int64_t r) {
        const PsRoiPlace<A> place = ps_roi_place(params, r);
        if (place.image < 0) return RoiReach{-1, {0, 0}, {0, 0}};
        return RoiReach{place.image,
                        reach_of(place.y, params.align, params.pooled_height, params.height),
                        reach_of(place.x, params.align, params.pooled_width, params.width)};
      },
      [&](int64_t r, const MapElement& cell) { return taken_from(params, r, cell, grad_out); },
      [&](int64_t index, A sum) { grad_input[index] = sum; });
}

}  // namespace

template <class T>
const char* ps_roi(const PsRoiParams<acc_t<T>>& params, const T* input, T* out,
                   CUstream_st* stream) {
  const int64_t count = params.num_rois * params.channels;
  if (count == 0) return nullptr;
  launch(ps_roi_kernel<T>, grid_size(count, kThreads), kThreads, 0, stream, params, input, out);
  return launch_error();
}

template <class T>
const char* ps_roi_backward(const PsRoiParams<acc_t<T>>& params, const T* grad_out,
                            bool deterministic, acc_t<T>* grad_input, CUstream_st* stream) {
  const int64_t elements = params.batch * params.channels * params.height * params.width;
  const int64_t count = params.num_rois * params.channels;
  if (elements == 0) return nullptr;
  if (deterministic) {
    launch(ps_roi_collect_kernel<T>, grid_size(elements, kListThreads), kListThreads, 0, stream,
           params, grad_out, grad_input);
    return launch_error();
  }
  cudaMemsetAsync(grad_input, 0, elements * sizeof(acc_t<T>), stream);
  if (count > 0) {
    launch(ps_roi_scatter_kernel<T>, grid_size(count, kThreads), kThreads, 0, stream, params,
           grad_out, grad_input);
  }
  return launch_error();
}

template const char* ps_roi(const PsRoiParams<float>&, const float*, float*, CUstream_st*);
template const char* ps_roi(const PsRoiParams<double>&, const double*, double*, CUstream_st*);
template const char* ps_roi(const PsRoiParams<float>&, const Half*, Half*, CUstream_st*);
template const char* ps_roi(const PsRoiParams<float>&, const BFloat16*, BFloat16*, CUstream_st*);

template const char* ps_roi_backward(const PsRoiParams<float>&, const float*, bool, float*,
                                     CUstream_st*);
template const char* ps_roi_backward(const PsRoiParams<double>&, const double*, bool, double*,
                                     CUstream_st*);
template const char* ps_roi_backward(const PsRoiParams<float>&, const Half*, bool, float*,
                                     CUstream_st*);
template const char* ps_roi_backward(const PsRoiParams<float>&, const BFloat16*, bool, float*,
                                     CUstream_st*);

}  // namespace cuda
}  // namespace pydet
