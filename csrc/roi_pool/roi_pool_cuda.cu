// SPDX-License-Identifier: Apache-2.0
#include "common/launch.cuh"
#include "common/roi_list.cuh"
#include "roi_pool/roi_pool.h"

namespace pydet {
namespace cuda {
namespace {

constexpr int kThreads = 256;

// One element of out, which neighbouring threads have next to each other in memory.
struct Element {
  int64_t r, channel, ph, pw;
};

template <class A>
__device__ Element element_of(const RoiPoolParams<A>& params, int64_t index) {
  const int64_t bins = params.pooled_height * params.pooled_width;
  const int64_t inner = params.channels_last ? params.channels : bins;
  const int64_t low = index % inner, high = index / inner;
  const int64_t outer = params.channels_last ? bins : params.channels;
  const int64_t channel = params.channels_last ? low : high % outer;
  const int64_t bin = params.channels_last ? high % outer : low;
  return {high / outer, channel, bin / params.pooled_width, bin % params.pooled_width};
}

// Where cell 0 of a channel is in a map, and how far apart the cells are.
struct Channel {
  int64_t start, stride;
};

template <class A>
__device__ Channel channel_of(const RoiPoolParams<A>& params, int64_t image, int64_t channel) {
  const int64_t cells = params.height * params.width;
  const int64_t start = image * params.channels * cells;
  return params.channels_last ? Channel{start + channel, params.channels}
                              : Channel{start + channel * cells, 1};
}

template <class A>
struct Largest {
  A value;
  int32_t cell;  // -1 where there is none
  int64_t image;
};

template <class T>
__device__ Largest<acc_t<T>> largest(const RoiPoolParams<acc_t<T>>& params, const Element& element,
                                     const T* input) {
  using A = acc_t<T>;
  Largest<A> result{A(0), -1, -1};
  const RoiPoolPlace<A> place = roi_pool_place(params, element.r);
  if (place.image < 0) return result;
  const CellRange y = bin_cells(place.y, element.ph, params.height);
  const CellRange x = bin_cells(place.x, element.pw, params.width);
  if (y.end <= y.begin || x.end <= x.begin) return result;
  result.image = place.image;
  result.value = -static_cast<A>(INFINITY);
  const Channel channel = channel_of(params, place.image, element.channel);
  for (int64_t i = y.begin; i < y.end; ++i) {
    for (int64_t j = x.begin; j < x.end; ++j) {
      const int64_t cell = i * params.width + j;
      const A value = load(input + channel.start + cell * channel.stride);
      if (value > result.value) {
        result.value = value;
        result.cell = static_cast<int32_t>(cell);
      }
    }
  }
  return result;
}

template <class A>
__device__ int64_t num_elements(const RoiPoolParams<A>& params) {
  return params.num_rois * params.channels * params.pooled_height * params.pooled_width;
}

// out is the largest cell or, where there are `values`, theirs at its place.
template <class T>
__global__ void __launch_bounds__(kThreads)
    roi_pool_kernel(RoiPoolParams<acc_t<T>> params, const T* input, const T* values, T* out) {
  using A = acc_t<T>;
  const int64_t count = num_elements(params), step = int64_t{gridDim.x} * kThreads;
  for (int64_t k = int64_t{blockIdx.x} * kThreads + threadIdx.x; k < count; k += step) {
    const Element element = element_of(params, k);
    Largest<A> found = largest(params, element, input);
    if (values != nullptr) {
      found.value = A(0);
      if (found.cell >= 0) {
        const Channel channel = channel_of(params, found.image, element.channel);
        found.value = load(values + channel.start + found.cell * channel.stride);
      }
    }
    store(out + k, found.value);
  }
}

// Adds each element of grad_out to its cell; grad_input is zero.
template <class T>
__global__ void __launch_bounds__(kThreads)
    roi_pool_scatter_kernel(RoiPoolParams<acc_t<T>> params, const T* input, const T* grad_out,
                            acc_t<T>* grad_input) {
  const int64_t count = num_elements(params), step = int64_t{gridDim.x} * kThreads;
  for (int64_t k = int64_t{blockIdx.x} * kThreads + threadIdx.x; k < count; k += step) {
    const Element element = element_of(params, k);
    const Largest<acc_t<T>> found = largest(params, element, input);
    if (found.cell < 0) continue;
    const Channel channel = channel_of(params, found.image, element.channel);
    atomicAdd(grad_input + channel.start + found.cell * channel.stride, load(grad_out + k));
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    roi_pool_argmax_kernel(RoiPoolParams<acc_t<T>> params, const T* input, int32_t* argmax) {
  const int64_t count = num_elements(params), step = int64_t{gridDim.x} * kThreads;
  for (int64_t k = int64_t{blockIdx.x} * kThreads + threadIdx.x; k < count; k += step) {
    argmax[k] = largest(params, element_of(params, k), input).cell;
  }
}

// What a cell takes from one RoI: the bins whose largest cell it is, in their order.
template <class T>
__device__ acc_t<T> taken_from(const RoiPoolParams<acc_t<T>>& params, int64_t r,
                               const MapElement& cell, const T* grad_out, const int32_t* argmax) {
  using A = acc_t<T>;
  const RoiPoolPlace<A> place = roi_pool_place(params, r);
  const CellRange rows = bins_near(place.y, cell.y, params.pooled_height);
  const CellRange columns = bins_near(place.x, cell.x, params.pooled_width);
  const int64_t bins = params.pooled_height * params.pooled_width;
  const int64_t start = r * params.channels * bins;
  const int32_t wanted = static_cast<int32_t>(cell.y * params.width + cell.x);
  A sum = A(0);
  for (int64_t ph = rows.begin; ph < rows.end; ++ph) {
    for (int64_t pw = columns.begin; pw < columns.end; ++pw) {
      const int64_t bin = ph * params.pooled_width + pw;
      const int64_t k = start + (params.channels_last ? bin * params.channels + cell.channel
                                                      : cell.channel * bins + bin);
      if (argmax[k] == wanted) sum += load(grad_out + k);
    }
  }
  return sum;
}

// The same gradient, one thread a cell: each block lists the RoIs that reach one of its cells.
template <class T>
__global__ void __launch_bounds__(kListThreads, 2)
    roi_pool_collect_kernel(RoiPoolParams<acc_t<T>> params, const T* grad_out,
                            const int32_t* argmax, acc_t<T>* grad_input) {
  using A = acc_t<T>;
  const MapSize size{params.channels, params.height, params.width, params.channels_last};
  for_each_map_element<A>(
      size, params.batch, params.num_rois,
      [&](int64_t r) {
        const RoiPoolPlace<A> place = roi_pool_place(params, r);
        return RoiReach{place.image,
                        {bin_cells(place.y, 0, params.height).begin,
                         bin_cells(place.y, params.pooled_height - 1, params.height).end},
                        {bin_cells(place.x, 0, params.width).begin,
                         bin_cells(place.x, params.pooled_width - 1, params.width).end}};
      },
      [&](int64_t r, const MapElement& cell) {
        return taken_from(params, r, cell, grad_out, argmax);
      },
      [&](int64_t index, A sum) { grad_input[index] = sum; });
}

}  // namespace

template <class T>
const char* roi_pool_gather(const RoiPoolParams<acc_t<T>>& params, const T* input, const T* values,
                            T* out, CUstream_st* stream) {
  const int64_t count =
      params.num_rois * params.channels * params.pooled_height * params.pooled_width;
  if (count == 0) return nullptr;
  launch(roi_pool_kernel<T>, grid_size(count, kThreads), kThreads, 0, stream, params, input, values,
         out);
  return launch_error();
}

template <class T>
const char* roi_pool(const RoiPoolParams<acc_t<T>>& params, const T* input, T* out,
                     CUstream_st* stream) {
  return roi_pool_gather<T>(params, input, nullptr, out, stream);
}

template <class T>
const char* roi_pool_backward(const RoiPoolParams<acc_t<T>>& params, const T* input,
                              const T* grad_out, int32_t* workspace, acc_t<T>* grad_input,
                              CUstream_st* stream) {
  const int64_t count =
      params.num_rois * params.channels * params.pooled_height * params.pooled_width;
  const int64_t elements = params.batch * params.channels * params.height * params.width;
  if (elements == 0) return nullptr;
  if (workspace == nullptr || count == 0) {
    cudaMemsetAsync(grad_input, 0, elements * sizeof(acc_t<T>), stream);
    if (count == 0) return launch_error();
    launch(roi_pool_scatter_kernel<T>, grid_size(count, kThreads), kThreads, 0, stream, params,
           input, grad_out, grad_input);
    return launch_error();
  }
  launch(roi_pool_argmax_kernel<T>, grid_size(count, kThreads), kThreads, 0, stream, params, input,
         workspace);
  launch(roi_pool_collect_kernel<T>, grid_size(elements, kListThreads), kListThreads, 0, stream,
         params, grad_out, workspace, grad_input);
  return launch_error();
}

template const char* roi_pool(const RoiPoolParams<float>&, const float*, float*, CUstream_st*);
template const char* roi_pool(const RoiPoolParams<double>&, const double*, double*, CUstream_st*);
template const char* roi_pool(const RoiPoolParams<float>&, const Half*, Half*, CUstream_st*);
template const char* roi_pool(const RoiPoolParams<float>&, const BFloat16*, BFloat16*,
                              CUstream_st*);

template const char* roi_pool_gather(const RoiPoolParams<float>&, const float*, const float*,
                                     float*, CUstream_st*);
template const char* roi_pool_gather(const RoiPoolParams<double>&, const double*, const double*,
                                     double*, CUstream_st*);
template const char* roi_pool_gather(const RoiPoolParams<float>&, const Half*, const Half*, Half*,
                                     CUstream_st*);
template const char* roi_pool_gather(const RoiPoolParams<float>&, const BFloat16*, const BFloat16*,
                                     BFloat16*, CUstream_st*);

template const char* roi_pool_backward(const RoiPoolParams<float>&, const float*, const float*,
                                       int32_t*, float*, CUstream_st*);
template const char* roi_pool_backward(const RoiPoolParams<double>&, const double*, const double*,
                                       int32_t*, double*, CUstream_st*);
template const char* roi_pool_backward(const RoiPoolParams<float>&, const Half*, const Half*,
                                       int32_t*, float*, CUstream_st*);
template const char* roi_pool_backward(const RoiPoolParams<float>&, const BFloat16*,
                                       const BFloat16*, int32_t*, float*, CUstream_st*);

}  // namespace cuda
}  // namespace pydet
