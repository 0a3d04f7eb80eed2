// SPDX-License-Identifier: Apache-2.0
// RoI align over one or several levels of a feature pyramid.
//
// out[r, c, ph, pw] is the mean over the samples of a bin (common/roi.h) of channel c of the RoI's
// image, on the RoI's level. Along each axis a bin is a sum over cells with weights, so
//
//   out = 1 / count * sum over x of weight_x * (sum over y of weight_y * cell[y, x])
//
// and this order of the sums holds on every path: both layouts give the same bits. All kernels are
// linear maps of this form. With `tangents` [R, 4] the weights of an axis are replaced by their
// derivative along the tangent where tangent_y, tangent_x say so: second derivatives are made so.
//
// Feature maps are [B, C, H, W] or, with channels_last, [B, H, W, C], and so are out and the
// gradients; with planar_out, too, out and its gradient are [R, C, h, w]. rois are [R, 5] (image,
// x1, y1, x2, y2). A RoI without an image, without a level or with a corner that is not finite
// gives zeros. Gradients are made in float (double for double). T is float, double, Half or
// BFloat16.
#pragma once

#include <cstdint>

#include "common/scalar.h"

struct CUstream_st;

namespace pydet {

constexpr int kMaxRoiLevels = 8;

template <class A>
struct RoiAlignParams {
  int64_t batch, channels, num_rois, pooled_height, pooled_width;
  int64_t sampling_ratio;  // samples a bin along each axis; not positive: one a cell
  bool aligned, channels_last;
  bool planar_out;  // with channels_last; the CPU's kernels alone know it
  bool tangent_y, tangent_x;
  const A* rois;      // [R, 5]
  const A* tangents;  // [R, 4] or nullptr

  // A RoI of side s = sqrt(width * height) / canonical_scale is on the last level with s >= least;
  // levels[0].least is 0.
  struct Level {
    int64_t height, width;
    A scale, least;
  };
  int num_levels;
  A canonical_scale;
  Level levels[kMaxRoiLevels];
};

// One array a level.
template <class T>
struct RoiLevelData {
  T* data[kMaxRoiLevels];
};

namespace cpu {

template <class T>
void roi_align(const RoiAlignParams<acc_t<T>>& params, const RoiLevelData<const T>& features,
               T* out);

// The gradient of the feature maps, which it overwrites. Each feature map's channel is one
// thread's: the same bits whatever the number of threads.
template <class T>
void roi_align_backward(const RoiAlignParams<acc_t<T>>& params, const T* grad_out,
                        const RoiLevelData<acc_t<T>>& grad_features);

// The gradient of the boxes: grad_rois [R, 5], with 0 for the image.
template <class T>
void roi_align_boxes_backward(const RoiAlignParams<acc_t<T>>& params, const T* grad_out,
                              const RoiLevelData<const T>& features, acc_t<T>* grad_rois);

}  // namespace cpu

namespace cuda {

template <class T>
const char* roi_align(const RoiAlignParams<acc_t<T>>& params, const RoiLevelData<const T>& features,
                      T* out, CUstream_st* stream);

// By atomic additions, whose order is that of the moment, or, where `deterministic`, each cell by
// one thread in a fixed order.
template <class T>
const char* roi_align_backward(const RoiAlignParams<acc_t<T>>& params, const T* grad_out,
                               const RoiLevelData<acc_t<T>>& grad_features, bool deterministic,
                               CUstream_st* stream);

template <class T>
const char* roi_align_boxes_backward(const RoiAlignParams<acc_t<T>>& params, const T* grad_out,
                                     const RoiLevelData<const T>& features, acc_t<T>* grad_rois,
                                     CUstream_st* stream);

}  // namespace cuda
}  // namespace pydet
