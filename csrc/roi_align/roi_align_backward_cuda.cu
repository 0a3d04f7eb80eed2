// SPDX-License-Identifier: Apache-2.0
#include "roi_align/roi_align.h"
#include "roi_align/roi_align_samples.cuh"

namespace pydet {
namespace cuda {
namespace {

// Channels of a bin that a thread scatters: they share its samples.
constexpr int kChannels = 4;
// Such items of a RoI that one block takes.
constexpr int64_t kItems = kRoiItems / kChannels;

// How the channels of a bin are shared out: thread t of a bin has kChannels of them, `step` apart
// from the first on; neighbouring threads have neighbours in memory.
struct ChannelShares {
  int64_t step, threads;  // threads a bin
  __device__ int64_t first(int64_t t) const { return t / step * step * kChannels + t % step; }
};

template <class A>
__host__ __device__ ChannelShares channel_shares(const RoiAlignParams<A>& params) {
  constexpr int64_t kWarp = 32;
  const int64_t fewest = ceil_div<int64_t>(params.channels, kChannels);
  const int64_t step = !params.channels_last ? 1 : (fewest < kWarp ? fewest : kWarp);
  return {step, ceil_div<int64_t>(params.channels, step * kChannels) * step};
}

// Scatters: a block takes kItems items of one RoI, and each adds to the cells that its outputs
// were made from. Consecutive threads have consecutive bins, or channels.
template <class T>
__global__ void __launch_bounds__(kRoiThreads, kRoiBlocks<T>)
    roi_align_scatter_kernel(const __grid_constant__ RoiAlignParams<acc_t<T>> params,
                             const T* grad_out,
                             const __grid_constant__ RoiLevelData<acc_t<T>> grad_features) {
  using A = acc_t<T>;
  __shared__ BlockRoi<A> roi;
  const int64_t bins = params.pooled_height * params.pooled_width;
  const ChannelShares shares = channel_shares(params);
  // From a channel to the next of the thread, in grad_out.
  const int64_t stride_grad = shares.step * (params.channels_last ? 1 : bins);
  const auto place = [&](int64_t r) { place_roi(params, r, roi); };
  for_each_roi_item(
      params, shares.threads, kItems, place, [&](int64_t r, int64_t, int64_t bin, int64_t share) {
        if (roi.place.image < 0) return;
        const int64_t c = shares.first(share);
        const int count = static_cast<int>(
            min_of<int64_t>(kChannels, ceil_div<int64_t>(params.channels - c, shares.step)));
        const int64_t ph = bin / params.pooled_width, pw = bin % params.pooled_width;
        A* map = grad_features.data[roi.place.level] + roi.image_start + c * roi.stride_c;
        const int64_t stride = shares.step * roi.stride_c;
        const T* grad = grad_out + r * bins * params.channels +
                        (params.channels_last ? bin * params.channels + c : c * bins + bin);
        A grads[kChannels];
#pragma unroll
        for (int k = 0; k < kChannels; ++k)
          grads[k] = k < count ? load(grad + k * stride_grad) / roi.place.count : A(0);
        const auto add = [&](A* cell, A weight_y, A weight_x) {
#pragma unroll
          for (int k = 0; k < kChannels; ++k) {
            if (k < count) atomicAdd(cell + k * stride, grads[k] * weight_y * weight_x);
          }
        };
        const RoiSamples rows = roi_samples(roi.place.y, ph, roi.height);
        const RoiSamples columns = roi_samples(roi.place.x, pw, roi.width);
        for (int64_t i = rows.begin; i < rows.end; ++i) {
          const KeptSample<A> y = sample_y(roi, ph, i);
          if (y.weight_low == A(0) && y.weight_high == A(0)) continue;
          A *low = map + y.low * roi.stride_y, *high = map + y.high * roi.stride_y;
          for (int64_t j = columns.begin; j < columns.end; ++j) {
            const KeptSample<A> x = sample_x(roi, pw, j);
            if (x.weight_low == A(0) && x.weight_high == A(0)) continue;
            add(low + x.low * roi.stride_x, y.weight_low, x.weight_low);
            if (x.weight_high != A(0))
              add(low + x.high * roi.stride_x, y.weight_low, x.weight_high);
            if (y.weight_high == A(0)) continue;
            add(high + x.low * roi.stride_x, y.weight_high, x.weight_low);
            if (x.weight_high != A(0))
              add(high + x.high * roi.stride_x, y.weight_high, x.weight_high);
          }
        }
      });
}

// --- the same bits every time ------------------------------------------------------------------

// Channels of a cell that a thread sums up.
constexpr int kSums = 8;

// The cells and channels of a block: a tile of rows and columns, one thread a cell and kSums
// channels, or, with channels_last, kLanes threads side by side on the channels of each cell.
template <bool kChannelsLast>
struct GatherTile {
  static constexpr int kRows = kChannelsLast ? 2 : 8, kColumns = kChannelsLast ? 4 : 32;
  static constexpr int kLanes = kChannelsLast ? 32 : 1;
};

// Samples of one axis that can touch the cells [first, last]; all of them lie in [begin, end).
template <class A>
__device__ RoiSamples samples_near(const RoiAxis<A>& axis, int64_t first, int64_t last) {
  const double count = static_cast<double>(axis.bins) * static_cast<double>(axis.grid);
  const double step = static_cast<double>(axis.bin_size) / static_cast<double>(axis.grid);
  const double start = axis.start, size = static_cast<double>(axis.bins) * axis.bin_size;
  const double largest = (start < 0 ? -start : start) + (size < 0 ? -size : size);
  const double slack = 1e-3 + 8 * (sizeof(A) == 4 ? 6e-8 : 1.2e-16) * largest;
  const double a = (static_cast<double>(first) - 1 - slack - start) / step - 0.5;
  const double b = (static_cast<double>(last) + 1 + slack - start) / step - 0.5;
  // A step of 0, or one so small that this overflows: all samples.
  if (!(a - a == 0) || !(b - b == 0)) return {0, axis.bins * axis.grid};
  const double begin = (a < b ? a : b) - 1, end = (a < b ? b : a) + 2;
  return {begin > 0 ? static_cast<int64_t>(begin < count ? begin : count) : 0,
          end < count ? static_cast<int64_t>(end > 0 ? end : 0) : axis.bins * axis.grid};
}

template <class A>
__device__ A weight_of_cell(const KeptSample<A>& s, int64_t cell) {
  return (s.low == cell ? s.weight_low : A(0)) + (s.high == cell ? s.weight_high : A(0));
}

// The RoIs [base, base + kRoiThreads) that can touch a tile, in their order, by all threads of the
// block; returns their number.
template <class A>
__device__ int rois_near(const RoiAlignParams<A>& params, int64_t base, int64_t image, int level,
                         int64_t y, int64_t last_y, int64_t x, int64_t last_x, int16_t* found) {
  __shared__ int counts[kRoiThreads / 32];
  const int64_t r = base + threadIdx.x;
  bool near = false;
  if (r < params.num_rois) {
    const RoiPlace<A> place = roi_place(params, r);
    if (place.image == image && place.level == level) {
      const RoiSamples rows = samples_near(place.y, y, last_y);
      const RoiSamples columns = samples_near(place.x, x, last_x);
      near = rows.begin < rows.end && columns.begin < columns.end;
    }
  }
  const unsigned int lanes = __ballot_sync(~0u, near);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  if (lane == 0) counts[warp] = __popc(lanes);
  __syncthreads();
  int before = 0, total = 0;
  for (int w = 0; w < kRoiThreads / 32; ++w) {
    if (w < warp) before += counts[w];
    total += counts[w];
  }
  if (near) found[before + __popc(lanes & ((1u << lane) - 1))] = static_cast<int16_t>(threadIdx.x);
  __syncthreads();
  return total;
}

// The part of one RoI in kSums channels of one cell.
template <class T>
__device__ void add_roi(const RoiAlignParams<acc_t<T>>& params, int64_t r, int64_t y, int64_t x,
                        int64_t c, int64_t step_c, const T* grad_out, acc_t<T>* sums) {
  using A = acc_t<T>;
  const RoiPlace<A> place = roi_place(params, r);
  const auto& level = params.levels[place.level];
  const RoiTangent<A> tangent_y = roi_tangent_y(params, r), tangent_x = roi_tangent_x(params, r);
  const RoiSamples rows = samples_near(place.y, y, y), columns = samples_near(place.x, x, x);
  const int64_t bins = params.pooled_height * params.pooled_width;
  const int64_t stride_bin = params.channels_last ? params.channels : 1;
  const int64_t stride_c = params.channels_last ? 1 : bins;
  const T* grads = grad_out + r * bins * params.channels;
  for (int64_t i = rows.begin; i < rows.end; ++i) {
    const int64_t ph = i / place.y.grid;
    const A weight_y =
        weight_of_cell(make_sample(place.y, ph, i - ph * place.y.grid, level.height, tangent_y), y);
    if (weight_y == A(0)) continue;
    for (int64_t j = columns.begin; j < columns.end; ++j) {
      const int64_t pw = j / place.x.grid;
      const A weight_x = weight_of_cell(
          make_sample(place.x, pw, j - pw * place.x.grid, level.width, tangent_x), x);
      if (weight_x == A(0)) continue;
      const T* bin = grads + (ph * params.pooled_width + pw) * stride_bin;
#pragma unroll
      for (int k = 0; k < kSums; ++k) {
        const int64_t channel = c + k * step_c;
        if (channel < params.channels)
          sums[k] += load(bin + channel * stride_c) / place.count * weight_y * weight_x;
      }
    }
  }
}

template <class T, bool kChannelsLast>
__global__ void __launch_bounds__(kRoiThreads, kRoiBlocks<T>)
    roi_align_gather_kernel(const __grid_constant__ RoiAlignParams<acc_t<T>> params,
                            const T* grad_out, int level, acc_t<T>* grad_features) {
  using A = acc_t<T>;
  using Tile = GatherTile<kChannelsLast>;
  __shared__ int16_t found[kRoiThreads];
  const int64_t height = params.levels[level].height, width = params.levels[level].width;
  const int64_t tiles_x = ceil_div<int64_t>(width, Tile::kColumns);
  const int64_t tiles = tiles_x * ceil_div<int64_t>(height, Tile::kRows);
  const int64_t groups = ceil_div<int64_t>(params.channels, kSums * Tile::kLanes);
  for (int64_t piece = blockIdx.x; piece < params.batch * groups * tiles; piece += gridDim.x) {
    const int64_t image = piece / (groups * tiles), tile = piece % tiles;
    const int64_t tile_y = tile / tiles_x * Tile::kRows, tile_x = tile % tiles_x * Tile::kColumns;
    const int cell = threadIdx.x / Tile::kLanes, lane = threadIdx.x % Tile::kLanes;
    const int64_t y = tile_y + cell / Tile::kColumns, x = tile_x + cell % Tile::kColumns;
    const int64_t c = piece / tiles % groups * kSums * Tile::kLanes + (kChannelsLast ? lane : 0);
    A sums[kSums] = {};
    for (int64_t base = 0; base < params.num_rois; base += kRoiThreads) {
      const int count = rois_near(params, base, image, level, tile_y,
                                  min_of<int64_t>(tile_y + Tile::kRows, height) - 1, tile_x,
                                  min_of<int64_t>(tile_x + Tile::kColumns, width) - 1, found);
      if (y < height && x < width) {
        for (int i = 0; i < count; ++i)
          add_roi(params, base + found[i], y, x, c, Tile::kLanes, grad_out, sums);
      }
      __syncthreads();
    }
    if (y >= height || x >= width) continue;
    const int64_t stride_cell = kChannelsLast ? params.channels : 1;
    const int64_t stride_c = kChannelsLast ? 1 : height * width;
    A* to =
        grad_features + image * params.channels * height * width + (y * width + x) * stride_cell;
#pragma unroll
    for (int k = 0; k < kSums; ++k) {
      const int64_t channel = c + k * Tile::kLanes;
      if (channel < params.channels) to[channel * stride_c] = sums[k];
    }
  }
}

template <class T, bool kChannelsLast>
void launch_gather(const RoiAlignParams<acc_t<T>>& params, const T* grad_out,
                   const RoiLevelData<acc_t<T>>& grad_features, CUstream_st* stream) {
  using Tile = GatherTile<kChannelsLast>;
  for (int level = 0; level < params.num_levels; ++level) {
    const int64_t tiles = ceil_div<int64_t>(params.levels[level].height, Tile::kRows) *
                          ceil_div<int64_t>(params.levels[level].width, Tile::kColumns);
    const int64_t groups = ceil_div<int64_t>(params.channels, kSums * Tile::kLanes);
    const int64_t pieces = params.batch * groups * tiles;
    if (pieces == 0) continue;
    launch(roi_align_gather_kernel<T, kChannelsLast>, grid_size(pieces, 1), kRoiThreads, 0, stream,
           params, grad_out, level, grad_features.data[level]);
  }
}

}  // namespace

template <class T>
const char* roi_align_backward(const RoiAlignParams<acc_t<T>>& params, const T* grad_out,
                               const RoiLevelData<acc_t<T>>& grad_features, bool deterministic,
                               CUstream_st* stream) {
  if (deterministic) {
    if (params.channels_last) {
      launch_gather<T, true>(params, grad_out, grad_features, stream);
    } else {
      launch_gather<T, false>(params, grad_out, grad_features, stream);
    }
    return launch_error();
  }
  for (int i = 0; i < params.num_levels; ++i) {
    const int64_t size = params.batch * params.channels * params.levels[i].height *
                         params.levels[i].width * static_cast<int64_t>(sizeof(acc_t<T>));
    if (size == 0) continue;
    const cudaError_t error = cudaMemsetAsync(grad_features.data[i], 0, size, stream);
    if (error != cudaSuccess) return cudaGetErrorString(error);
  }
  if (params.num_rois == 0 || params.channels == 0) return nullptr;
  const int64_t items = params.pooled_height * params.pooled_width * channel_shares(params).threads;
  launch(roi_align_scatter_kernel<T>, roi_grid_size(params.num_rois, items, kItems), kRoiThreads, 0,
         stream, params, grad_out, grad_features);
  return launch_error();
}

template const char* roi_align_backward(const RoiAlignParams<float>&, const float*,
                                        const RoiLevelData<float>&, bool, CUstream_st*);
template const char* roi_align_backward(const RoiAlignParams<double>&, const double*,
                                        const RoiLevelData<double>&, bool, CUstream_st*);
template const char* roi_align_backward(const RoiAlignParams<float>&, const Half*,
                                        const RoiLevelData<float>&, bool, CUstream_st*);
template const char* roi_align_backward(const RoiAlignParams<float>&, const BFloat16*,
                                        const RoiLevelData<float>&, bool, CUstream_st*);

}  // namespace cuda
}  // namespace pydet
