// SPDX-License-Identifier: Apache-2.0
#include "roi_align/roi_align.h"
#include "roi_align/roi_align_samples.cuh"

namespace pydet {
namespace cuda {
namespace {

// A block computes kRoiItems outputs of one RoI; an item is kCount channels of a bin (1 in
// [B, C, H, W]). Consecutive threads write consecutive memory: bins, or channels.
template <class T, int kCount>
__global__ void __launch_bounds__(kRoiThreads, kRoiBlocks<T>)
    roi_align_kernel(const __grid_constant__ RoiAlignParams<acc_t<T>> params,
                     const __grid_constant__ RoiLevelData<const T> features, T* out) {
  using A = acc_t<T>;
  using Pack = ChannelPack<T, kCount>;
  __shared__ BlockRoi<A> roi;
  const int64_t groups = params.channels / kCount;
  const int64_t items = params.pooled_height * params.pooled_width * groups;
  const auto place = [&](int64_t r) { place_roi(params, r, roi); };
  for_each_roi_item(
      params, groups, kRoiItems, place, [&](int64_t r, int64_t item, int64_t bin, int64_t group) {
        const int64_t c = group * kCount;
        A total[kCount] = {};
        if (roi.place.image >= 0) {
          const T* map = features.data[roi.place.level] + roi.image_start + c * roi.stride_c;
          const int64_t ph = bin / params.pooled_width, pw = bin % params.pooled_width;
          const RoiSamples rows = roi_samples(roi.place.y, ph, roi.height);
          const RoiSamples columns = roi_samples(roi.place.x, pw, roi.width);
          for (int64_t i = rows.begin; i < rows.end; ++i) {
            const KeptSample<A> y = sample_y(roi, ph, i);
            if (y.weight_low == A(0) && y.weight_high == A(0)) continue;
            const T *low = map + y.low * roi.stride_y, *high = map + y.high * roi.stride_y;
            for (int64_t j = columns.begin; j < columns.end; ++j) {
              const KeptSample<A> x = sample_x(roi, pw, j);
              if (x.weight_low == A(0) && x.weight_high == A(0)) continue;
              const Pack a = *reinterpret_cast<const Pack*>(low + x.low * roi.stride_x);
              const Pack b = *reinterpret_cast<const Pack*>(low + x.high * roi.stride_x);
              const Pack d = *reinterpret_cast<const Pack*>(high + x.low * roi.stride_x);
              const Pack e = *reinterpret_cast<const Pack*>(high + x.high * roi.stride_x);
#pragma unroll
              for (int k = 0; k < kCount; ++k) {
                const A upper =
                    x.weight_low * load(a.values + k) + x.weight_high * load(b.values + k);
                const A lower =
                    x.weight_low * load(d.values + k) + x.weight_high * load(e.values + k);
                total[k] += y.weight_low * upper + y.weight_high * lower;
              }
            }
          }
        }
        Pack result;
#pragma unroll
        for (int k = 0; k < kCount; ++k) store(result.values + k, total[k] / roi.place.count);
        *reinterpret_cast<Pack*>(out + (r * items + item) * kCount) = result;
      });
}

// A block computes the gradient of one RoI's corners. The items of a thread are the same in both
// layouts, and so are the bits.
template <class T>
__global__ void __launch_bounds__(kRoiThreads, kRoiBlocks<T>)
    roi_align_boxes_backward_kernel(const __grid_constant__ RoiAlignParams<acc_t<T>> params,
                                    const T* grad_out,
                                    const __grid_constant__ RoiLevelData<const T> features,
                                    acc_t<T>* grad_rois) {
  using A = acc_t<T>;
  __shared__ A parts[4][kRoiThreads];
  const int64_t bins = params.pooled_height * params.pooled_width;
  for (int64_t r = blockIdx.x; r < params.num_rois; r += gridDim.x) {
    const RoiPlace<A> place = roi_place(params, r);
    const RoiTangent<A> tangent_y = roi_tangent_y(params, r), tangent_x = roi_tangent_x(params, r);
    A sums[4] = {};
    if (place.image >= 0) {
      const auto& level = params.levels[place.level];
      const int64_t stride_x = params.channels_last ? params.channels : 1;
      const int64_t stride_y = level.width * stride_x;
      const int64_t stride_c = params.channels_last ? 1 : level.height * level.width;
      for (int64_t item = threadIdx.x; item < bins * params.channels; item += kRoiThreads) {
        const int64_t c = item / bins, bin = item % bins;
        const int64_t ph = bin / params.pooled_width, pw = bin % params.pooled_width;
        const T* map = features.data[place.level] +
                       place.image * params.channels * level.height * level.width + c * stride_c;
        const A grad = load(grad_out + r * bins * params.channels +
                            (params.channels_last ? bin * params.channels + c : item)) /
                       place.count;
        const RoiSamples rows = roi_samples(place.y, ph, level.height);
        const RoiSamples columns = roi_samples(place.x, pw, level.width);
        for (int64_t i = rows.begin; i < rows.end; ++i) {
          const AxisSample<A> y = roi_sample(place.y, ph, i, level.height, tangent_y);
          const RoiSlopes<A> along_y = roi_slopes(place.y, ph, i);
          for (int64_t j = columns.begin; j < columns.end; ++j) {
            const AxisSample<A> x = roi_sample(place.x, pw, j, level.width, tangent_x);
            const RoiSlopes<A> along_x = roi_slopes(place.x, pw, j);
            const Neighbours<A> near = neighbours(y, x, stride_y, stride_x);
            const A cells[4] = {load(map + near.offset[0]), load(map + near.offset[1]),
                                load(map + near.offset[2]), load(map + near.offset[3])};
            const BilinearValue<A> value = bilinear(y, x, cells);
            sums[0] += grad * value.slope_x * along_x.by_low;
            sums[1] += grad * value.slope_y * along_y.by_low;
            sums[2] += grad * value.slope_x * along_x.by_high;
            sums[3] += grad * value.slope_y * along_y.by_high;
          }
        }
      }
    }
    for (int k = 0; k < 4; ++k) parts[k][threadIdx.x] = sums[k];
    __syncthreads();
    for (int half = kRoiThreads / 2; half > 0; half /= 2) {
      if (threadIdx.x < static_cast<unsigned int>(half)) {
        for (int k = 0; k < 4; ++k) parts[k][threadIdx.x] += parts[k][threadIdx.x + half];
      }
      __syncthreads();
    }
    if (threadIdx.x < 5)
      grad_rois[5 * r + threadIdx.x] = threadIdx.x == 0 ? A(0) : parts[threadIdx.x - 1][0];
    __syncthreads();
  }
}

// Whether every vector of kCount channels starts at a multiple of its size.
template <class T, int kCount>
bool packs_fit(const RoiAlignParams<acc_t<T>>& params, const RoiLevelData<const T>& features,
               const T* out) {
  constexpr uintptr_t kSize = sizeof(T) * kCount;
  if (!params.channels_last || params.channels % kCount != 0) return false;
  bool fits = reinterpret_cast<uintptr_t>(out) % kSize == 0;
  for (int level = 0; level < params.num_levels; ++level)
    fits = fits && reinterpret_cast<uintptr_t>(features.data[level]) % kSize == 0;
  return fits;
}

}  // namespace

template <class T>
const char* roi_align(const RoiAlignParams<acc_t<T>>& params, const RoiLevelData<const T>& features,
                      T* out, CUstream_st* stream) {
  constexpr int kWide = 16 / sizeof(T);  // channels of a 128-bit load
  const int64_t outputs = params.pooled_height * params.pooled_width * params.channels;
  if (params.num_rois == 0 || outputs == 0) return nullptr;
  const bool wide = packs_fit<T, kWide>(params, features, out);
  launch(wide ? roi_align_kernel<T, kWide> : roi_align_kernel<T, 1>,
         roi_grid_size(params.num_rois, outputs / (wide ? kWide : 1), kRoiItems), kRoiThreads, 0,
         stream, params, features, out);
  return launch_error();
}

template <class T>
const char* roi_align_boxes_backward(const RoiAlignParams<acc_t<T>>& params, const T* grad_out,
                                     const RoiLevelData<const T>& features, acc_t<T>* grad_rois,
                                     CUstream_st* stream) {
  if (params.num_rois == 0) return nullptr;
  launch(roi_align_boxes_backward_kernel<T>, grid_size(params.num_rois, 1), kRoiThreads, 0, stream,
         params, grad_out, features, grad_rois);
  return launch_error();
}

template const char* roi_align(const RoiAlignParams<float>&, const RoiLevelData<const float>&,
                               float*, CUstream_st*);
template const char* roi_align(const RoiAlignParams<double>&, const RoiLevelData<const double>&,
                               double*, CUstream_st*);
template const char* roi_align(const RoiAlignParams<float>&, const RoiLevelData<const Half>&, Half*,
                               CUstream_st*);
template const char* roi_align(const RoiAlignParams<float>&, const RoiLevelData<const BFloat16>&,
                               BFloat16*, CUstream_st*);

template const char* roi_align_boxes_backward(const RoiAlignParams<float>&, const float*,
                                              const RoiLevelData<const float>&, float*,
                                              CUstream_st*);
template const char* roi_align_boxes_backward(const RoiAlignParams<double>&, const double*,
                                              const RoiLevelData<const double>&, double*,
                                              CUstream_st*);
template const char* roi_align_boxes_backward(const RoiAlignParams<float>&, const Half*,
                                              const RoiLevelData<const Half>&, float*,
                                              CUstream_st*);
template const char* roi_align_boxes_backward(const RoiAlignParams<float>&, const BFloat16*,
                                              const RoiLevelData<const BFloat16>&, float*,
                                              CUstream_st*);

}  // namespace cuda
}  // namespace pydet
