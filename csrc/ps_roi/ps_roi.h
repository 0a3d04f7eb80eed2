// SPDX-License-Identifier: Apache-2.0
// Position-sensitive RoI pooling and RoI align.
//
// out[r, c, ph, pw] is a mean over bin (ph, pw) of the RoI, taken from channel
// (c * PH + ph) * PW + pw of its image: each bin has channels of its own. The mean is over the
// cells of the bin (common/pool_bins.h; the last row and column of a map belong to no bin), or with
// `align` over bilinear samples (common/roi.h, aligned). A bin without cells or samples is 0, and
// so is all of a RoI whose image index is not in the batch or that has a coordinate that is not
// finite. A cell of weight 0 is not looked at.
//
// Maps are [B, C, H, W] or, with channels_last, [B, H, W, C]; out and grad_out likewise
// [R, C / (PH * PW), PH, PW] or [R, PH, PW, C / (PH * PW)]. T is float, double, Half or BFloat16;
// sums and gradients are float (double for double).
#pragma once

#include <cstdint>

#include "common/bilinear.h"
#include "common/pool_bins.h"
#include "common/roi.h"
#include "common/scalar.h"

struct CUstream_st;

namespace pydet {

template <class A>
struct PsRoiParams {
  int64_t batch, channels, height, width, num_rois, pooled_height, pooled_width;
  int64_t sampling_ratio;  // samples a bin along each axis; not positive: one a cell
  bool align, channels_last;
  A spatial_scale;
  const A* rois;  // [R, 5] (image, x1, y1, x2, y2)
};

// One axis of a RoI: `pool` or, with align, `samples`.
template <class A>
struct PsRoiAxis {
  PoolAxis<A> pool;
  RoiAxis<A> samples;
};

template <class A>
struct PsRoiPlace {
  int64_t image;  // -1: the RoI pools nothing
  PsRoiAxis<A> y, x;
};

template <class A>
PYDET_HOST_DEVICE PsRoiPlace<A> ps_roi_place(const PsRoiParams<A>& params, int64_t r) {
  const A* roi = params.rois + 5 * r;
  PsRoiPlace<A> place{roi_image(roi, params.batch), {}, {}};
  for (int i = 1; i < 5; ++i) {
    if (!(roi[i] - roi[i] == A(0))) place.image = -1;
  }
  if (place.image < 0) return place;
  const A scale = params.spatial_scale;
  if (params.align) {
    place.y.samples =
        roi_axis(roi[2], roi[4], scale, true, params.pooled_height, params.sampling_ratio);
    place.x.samples =
        roi_axis(roi[1], roi[3], scale, true, params.pooled_width, params.sampling_ratio);
    if (place.y.samples.grid < 1 || place.x.samples.grid < 1) place.image = -1;
  } else {
    place.y.pool = pool_axis(roi[2], roi[4], scale, false, params.pooled_height);
    place.x.pool = pool_axis(roi[1], roi[3], scale, false, params.pooled_width);
  }
  return place;
}

// Steps of a bin, begin up to, not with, end: cells, or samples with align. `count` is what the sum
// of the weights is divided by.
template <class A>
struct PsRoiSteps {
  int64_t begin, end;
  A count;
};

template <class A>
PYDET_HOST_DEVICE PsRoiSteps<A> ps_roi_steps(const PsRoiAxis<A>& axis, bool align, int64_t bin,
                                             int64_t cells) {
  if (!align) {
    const CellRange range = bin_cells(axis.pool, bin, cells > 0 ? cells - 1 : 0);
    return {range.begin, range.end, static_cast<A>(range.end - range.begin)};
  }
  const RoiSamples range = roi_samples(axis.samples, bin, cells);
  return {range.begin, range.end, static_cast<A>(axis.samples.grid)};
}

// The one or two cells of a step, with their weights.
template <class A>
PYDET_HOST_DEVICE AxisSample<A> ps_roi_step(const PsRoiAxis<A>& axis, bool align, int64_t bin,
                                            int64_t step, int64_t cells) {
  if (align) return sample_clamped(roi_position(axis.samples, bin, step), cells);
  AxisSample<A> cell;
  cell.low = cell.high = static_cast<int32_t>(step);
  cell.weight_low = A(1);
  return cell;
}

namespace cpu {

template <class T>
void ps_roi(const PsRoiParams<acc_t<T>>& params, const T* input, T* out);

// Overwrites grad_input. Each channel of an image is one thread's, the RoIs in their order: the
// same bits whatever the number of threads.
template <class T>
void ps_roi_backward(const PsRoiParams<acc_t<T>>& params, const T* grad_out, acc_t<T>* grad_input);

}  // namespace cpu

namespace cuda {

template <class T>
const char* ps_roi(const PsRoiParams<acc_t<T>>& params, const T* input, T* out,
                   CUstream_st* stream);

// By atomic additions, whose order is that of the moment, or, where `deterministic`, each cell by
// one thread, the RoIs in their order: the same bits every time, which is far slower.
template <class T>
const char* ps_roi_backward(const PsRoiParams<acc_t<T>>& params, const T* grad_out,
                            bool deterministic, acc_t<T>* grad_input, CUstream_st* stream);

}  // namespace cuda
}  // namespace pydet
