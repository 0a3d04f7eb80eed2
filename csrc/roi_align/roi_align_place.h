// SPDX-License-Identifier: Apache-2.0
// What a RoI samples: its image, its level and its two axes, for host and device.
#pragma once

#include <cmath>
#include <cstdint>

#include "common/roi.h"
#include "roi_align/roi_align.h"

namespace pydet {

// The level that a box belongs to; -1 for a box whose area is negative or NaN.
template <class A>
PYDET_HOST_DEVICE int roi_level(const RoiAlignParams<A>& params, const A* roi) {
  if (params.num_levels == 1) return 0;
  const A area = (roi[3] - roi[1]) * (roi[4] - roi[2]);
  const A side = std::sqrt(area) / params.canonical_scale;
  if (!(side >= A(0))) return -1;
  int level = 0;
  while (level + 1 < params.num_levels && side >= params.levels[level + 1].least) ++level;
  return level;
}

template <class A>
struct RoiPlace {
  int64_t image;  // -1: the RoI samples nothing
  int level;
  RoiAxis<A> y, x;
  A count;  // samples a bin, at least 1
};

template <class A>
PYDET_HOST_DEVICE RoiPlace<A> roi_place(const RoiAlignParams<A>& params, int64_t r) {
  const A* roi = params.rois + 5 * r;
  RoiPlace<A> place{roi_image(roi, params.batch), roi_level(params, roi), {}, {}, A(1)};
  if (place.level < 0) place.image = -1;
  if (place.image < 0) return place;
  const auto& level = params.levels[place.level];
  place.y = roi_axis(roi[2], roi[4], level.scale, params.aligned, params.pooled_height,
                     params.sampling_ratio);
  place.x = roi_axis(roi[1], roi[3], level.scale, params.aligned, params.pooled_width,
                     params.sampling_ratio);
  if (place.y.grid < 1 || place.x.grid < 1 || level.height < 1 || level.width < 1) place.image = -1;
  const A count = static_cast<A>(place.y.grid) * static_cast<A>(place.x.grid);
  place.count = count > A(1) ? count : A(1);
  return place;
}

// Sample i of a bin, with its weights replaced by their derivative along a tangent of the two
// corners where there is one.
template <class A>
struct RoiTangent {
  bool used;
  A low, high;
};

template <class A>
PYDET_HOST_DEVICE RoiTangent<A> roi_tangent_y(const RoiAlignParams<A>& params, int64_t r) {
  if (!params.tangent_y) return {false, A(0), A(0)};
  return {true, params.tangents[4 * r + 1], params.tangents[4 * r + 3]};
}
template <class A>
PYDET_HOST_DEVICE RoiTangent<A> roi_tangent_x(const RoiAlignParams<A>& params, int64_t r) {
  if (!params.tangent_x) return {false, A(0), A(0)};
  return {true, params.tangents[4 * r], params.tangents[4 * r + 2]};
}

template <class A>
PYDET_HOST_DEVICE AxisSample<A> roi_sample(const RoiAxis<A>& axis, int64_t bin, int64_t i,
                                           int64_t cells, const RoiTangent<A>& tangent) {
  AxisSample<A> sample = sample_clamped(roi_position(axis, bin, i), cells);
  if (tangent.used) {
    const RoiSlopes<A> slopes = roi_slopes(axis, bin, i);
    const A along = slopes.by_low * tangent.low + slopes.by_high * tangent.high;
    sample.weight_low = sample.slope_low * along;
    sample.weight_high = sample.slope_high * along;
  }
  return sample;
}

}  // namespace pydet
