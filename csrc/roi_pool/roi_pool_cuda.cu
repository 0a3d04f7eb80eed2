// SPDX-License-Identifier: Apache-2.0
#include "common/launch.cuh"
#include "common/pack.cuh"
#include "common/roi_items.cuh"
#include "common/roi_list.cuh"
#include "roi_pool/roi_pool.h"

namespace pydet {
namespace cuda {
namespace {

// Blocks that an SM has to hold at least: these kernels wait for loads, which other warps fill.
template <class T>
constexpr int kBlocks = sizeof(T) == 8 ? 2 : 4;
// Items of a RoI that one block takes: an item is a bin of one channel or of several.
constexpr int64_t kItems = 8 * kRoiThreads;
// Cells of a row whose loads are on their way at the same time.
constexpr int kAtOnce = 4;
// Bins an axis whose cells shared memory holds; those of more bins are computed where they are
// used.
constexpr int kKeptBins = 32;

// The RoI that a block works on: what all of its items share is made once.
template <class A>
struct BlockRoi {
  RoiPoolPlace<A> place;
  CellRange rows[kKeptBins], columns[kKeptBins];
};

// Makes `roi` RoI r, by all threads of the block; what they read of the RoI before must be done.
template <class A>
__device__ void place_roi(const RoiPoolParams<A>& params, int64_t r, BlockRoi<A>& roi) {
  if (threadIdx.x == 0) roi.place = roi_pool_place(params, r);
  __syncthreads();
  const int bin = threadIdx.x;
  if (bin < min_of<int64_t>(params.pooled_height, kKeptBins))
    roi.rows[bin] = bin_cells(roi.place.y, bin, params.height);
  if (bin < min_of<int64_t>(params.pooled_width, kKeptBins))
    roi.columns[bin] = bin_cells(roi.place.x, bin, params.width);
  __syncthreads();
}

// The largest cell of a bin in kCount neighbouring channels.
template <class A, int kCount>
struct Largest {
  A value[kCount];
  int32_t cell[kCount];  // -1 where there is none
};

template <class T, int kCount>
__device__ Largest<acc_t<T>, kCount> largest(const CellRange& y, const CellRange& x, const T* map,
                                             int64_t width, int64_t stride) {
  using A = acc_t<T>;
  using Pack = ChannelPack<T, kCount>;
  Largest<A, kCount> found;
  const bool empty = y.end <= y.begin || x.end <= x.begin;
#pragma unroll
  for (int k = 0; k < kCount; ++k) {
    found.value[k] = empty ? A(0) : -static_cast<A>(INFINITY);
    found.cell[k] = -1;
  }
  // A map has less than 2^31 cells.
  const uint32_t columns = static_cast<uint32_t>(width), last_x = static_cast<uint32_t>(x.end - 1);
#pragma unroll 1
  for (uint32_t i = static_cast<uint32_t>(y.begin); i < y.end; ++i) {
#pragma unroll 1
    for (uint32_t j = static_cast<uint32_t>(x.begin); j < x.end; j += kAtOnce) {
      uint32_t cells[kAtOnce];
      Pack packs[kAtOnce];
#pragma unroll
      for (int n = 0; n < kAtOnce; ++n) {  // the last again, which changes nothing: no branch
        cells[n] = i * columns + min_of(j + n, last_x);
        packs[n] = *reinterpret_cast<const Pack*>(map + cells[n] * stride);
      }
#pragma unroll
      for (int n = 0; n < kAtOnce; ++n) {
#pragma unroll
        for (int k = 0; k < kCount; ++k) {
          const A value = load(packs[n].values + k);
          if (value > found.value[k]) {
            found.value[k] = value;
            found.cell[k] = static_cast<int32_t>(cells[n]);
          }
        }
      }
    }
  }
  return found;
}

// Calls put(index, start, stride, found) for each item: `index` is that of its first element in
// out, start + k + cell * stride that of a cell of its channel k in the maps. Consecutive threads
// have consecutive elements of out. To be called by whole blocks.
template <class T, int kCount, class Put>
__device__ void for_each_largest(const RoiPoolParams<acc_t<T>>& params, const T* input,
                                 const Put& put) {
  using A = acc_t<T>;
  __shared__ BlockRoi<A> roi;
  const int64_t cells = params.height * params.width, groups = params.channels / kCount;
  const int64_t items = params.pooled_height * params.pooled_width * groups;
  const int64_t stride = params.channels_last ? params.channels : 1;
  const auto place = [&](int64_t r) { place_roi(params, r, roi); };
  for_each_roi_item(
      params, groups, kItems, place, [&](int64_t r, int64_t item, int64_t bin, int64_t group) {
        const int64_t ph = bin / params.pooled_width, pw = bin % params.pooled_width;
        CellRange y{0, 0}, x{0, 0};
        int64_t start = group * kCount * (params.channels_last ? 1 : cells);
        if (roi.place.image >= 0) {
          y = ph < kKeptBins ? roi.rows[ph] : bin_cells(roi.place.y, ph, params.height);
          x = pw < kKeptBins ? roi.columns[pw] : bin_cells(roi.place.x, pw, params.width);
          start += roi.place.image * params.channels * cells;
        }
        put((r * items + item) * kCount, start, stride,
            largest<T, kCount>(y, x, input + start, params.width, stride));
      });
}

// out is the largest cell or, where there are `values`, theirs at its place.
template <class T, int kCount>
__global__ void __launch_bounds__(kRoiThreads, kBlocks<T>)
    roi_pool_kernel(RoiPoolParams<acc_t<T>> params, const T* input, const T* values, T* out) {
  using A = acc_t<T>;
  using Pack = ChannelPack<T, kCount>;
  for_each_largest<T, kCount>(
      params, input,
      [&](int64_t index, int64_t start, int64_t stride, const Largest<A, kCount>& found) {
        Pack result;
#pragma unroll
        for (int k = 0; k < kCount; ++k) {
          A value = found.value[k];
          if (values != nullptr)
            value = found.cell[k] < 0 ? A(0) : load(values + start + k + found.cell[k] * stride);
          store(result.values + k, value);
        }
        *reinterpret_cast<Pack*>(out + index) = result;
      });
}

// Adds each element of grad_out to its cell; grad_input is zero.
template <class T>
__global__ void __launch_bounds__(kRoiThreads, kBlocks<T>)
    roi_pool_scatter_kernel(RoiPoolParams<acc_t<T>> params, const T* input, const T* grad_out,
                            acc_t<T>* grad_input) {
  for_each_largest<T, 1>(
      params, input,
      [&](int64_t index, int64_t start, int64_t stride, const Largest<acc_t<T>, 1>& found) {
        if (found.cell[0] < 0) return;
        atomicAdd(grad_input + start + found.cell[0] * stride, load(grad_out + index));
      });
}

template <class T>
__global__ void __launch_bounds__(kRoiThreads, kBlocks<T>)
    roi_pool_argmax_kernel(RoiPoolParams<acc_t<T>> params, const T* input, int32_t* argmax) {
  for_each_largest<T, 1>(params, input,
                         [&](int64_t index, int64_t, int64_t, const Largest<acc_t<T>, 1>& found) {
                           argmax[index] = found.cell[0];
                         });
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

// Blocks for items of kCount channels.
template <class A>
unsigned int num_blocks(const RoiPoolParams<A>& params, int count) {
  const int64_t items = params.pooled_height * params.pooled_width * (params.channels / count);
  return roi_grid_size(params.num_rois, items, kItems);
}

template <class A>
int64_t num_outputs(const RoiPoolParams<A>& params) {
  return params.num_rois * params.channels * params.pooled_height * params.pooled_width;
}

}  // namespace

template <class T>
const char* roi_pool_gather(const RoiPoolParams<acc_t<T>>& params, const T* input, const T* values,
                            T* out, CUstream_st* stream) {
  constexpr int kWide = Pack<T>::kSize;  // channels of a 128-bit load
  if (num_outputs(params) == 0) return nullptr;
  const bool wide =
      params.channels_last && params.channels % kWide == 0 && is_aligned(input) && is_aligned(out);
  launch(wide ? roi_pool_kernel<T, kWide> : roi_pool_kernel<T, 1>,
         num_blocks(params, wide ? kWide : 1), kRoiThreads, 0, stream, params, input, values, out);
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
  const bool none = num_outputs(params) == 0;
  const int64_t elements = params.batch * params.channels * params.height * params.width;
  if (elements == 0) return nullptr;
  if (workspace == nullptr || none) {
    cudaMemsetAsync(grad_input, 0, elements * sizeof(acc_t<T>), stream);
    if (none) return launch_error();
    launch(roi_pool_scatter_kernel<T>, num_blocks(params, 1), kRoiThreads, 0, stream, params, input,
           grad_out, grad_input);
    return launch_error();
  }
  launch(roi_pool_argmax_kernel<T>, num_blocks(params, 1), kRoiThreads, 0, stream, params, input,
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
