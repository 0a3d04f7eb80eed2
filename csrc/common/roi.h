// SPDX-License-Identifier: Apache-2.0
// Where the samples of a region of interest lie, for host and device.
//
// Along each axis a RoI is cut into bins and each bin into `grid` equal parts, with a sample in the
// middle of each. Here two bins of two samples:
//
//   low                    high      corners of the box, times spatial_scale, minus the offset
//    |  *     *  |  *     *  |
//
//   position = start + bin * bin_size + (i + 1/2) * bin_size / grid
//
// Positions are in cells, with the cell's value at its integer index; RoI align's `aligned` takes
// half a cell off, because the centre of pixel 0 is at 0.5.
#pragma once

#include <cmath>
#include <cstdint>

#include "common/bilinear.h"
#include "common/host_device.h"
#include "common/scalar.h"

namespace pydet {

// Adaptive sampling of boxes that reach farther than this many cells takes no samples: the work
// must have a bound, and a float cannot tell neighbouring cells there.
constexpr double kRoiReach = 1 << 24;

template <class A>
struct RoiAxis {
  A start, bin_size;
  int64_t bins, grid;  // no samples where grid is 0
  A scale;             // d start / d low corner
  bool held;           // the size is held at one cell, whatever the corners are
};

// The axis of a box from `low` to `high`. A grid of `sampling_ratio` samples a bin, or of one a
// cell where that is not positive. A side that is not finite gets no samples.
template <class A>
PYDET_HOST_DEVICE RoiAxis<A> roi_axis(A low, A high, A scale, bool aligned, int64_t bins,
                                      int64_t sampling_ratio) {
  const A offset = aligned ? A(0.5) : A(0);
  const A start = low * scale - offset;
  A size = (high * scale - offset) - start;
  const bool finite = start - start == A(0) && size - size == A(0);
  const bool held = !aligned && !(size >= A(1));
  if (held) size = A(1);
  RoiAxis<A> axis{start, size / static_cast<A>(bins), bins, 0, scale, held};
  if (!finite) return axis;
  if (sampling_ratio > 0) {
    axis.grid = sampling_ratio;
  } else if (start >= A(-kRoiReach) && start <= A(kRoiReach) && size > A(0) &&
             size <= A(kRoiReach)) {
    axis.grid = static_cast<int64_t>(std::ceil(axis.bin_size));
  }
  return axis;
}

template <class A>
PYDET_HOST_DEVICE A roi_position(const RoiAxis<A>& axis, int64_t bin, int64_t i) {
  return axis.start + static_cast<A>(bin) * axis.bin_size +
         (static_cast<A>(i) + A(0.5)) * axis.bin_size / static_cast<A>(axis.grid);
}

// Derivatives of a position by the two corners of the box.
template <class A>
struct RoiSlopes {
  A by_low, by_high;
};

template <class A>
PYDET_HOST_DEVICE RoiSlopes<A> roi_slopes(const RoiAxis<A>& axis, int64_t bin, int64_t i) {
  if (axis.held) return {axis.scale, A(0)};
  const A part = (static_cast<A>(bin) + (static_cast<A>(i) + A(0.5)) / static_cast<A>(axis.grid)) /
                 static_cast<A>(axis.bins);
  return {axis.scale * (A(1) - part), axis.scale * part};
}

// Samples [begin, end) of a bin: all that can fall on a map of `cells` cells, and few others. It is
// what bounds the work of a box that is far larger than the map.
struct RoiSamples {
  int64_t begin, end;
};

template <class A>
PYDET_HOST_DEVICE RoiSamples roi_samples(const RoiAxis<A>& axis, int64_t bin, int64_t cells) {
  constexpr int64_t kFew = 16;
  if (axis.grid <= kFew || !(axis.bin_size > A(0))) return {0, axis.grid};
  const double grid = static_cast<double>(axis.grid), step = axis.bin_size / grid;
  const double first = axis.start + static_cast<double>(bin) * axis.bin_size;
  // How far the rounding of a position can be off, in samples.
  const double largest = (first < 0 ? -first : first) + static_cast<double>(axis.bin_size);
  const double margin = 2 + 8 * (sizeof(A) == 4 ? 6e-8 : 1.2e-16) * largest / step;
  const double begin = (-1 - first) / step - margin;
  const double end = (static_cast<double>(cells) - first) / step + margin;
  return {begin > 0 ? static_cast<int64_t>(begin < grid ? begin : grid) : 0,
          end < grid ? static_cast<int64_t>(end > 0 ? end : 0) : axis.grid};
}

// The image of a RoI [R, 5], or -1 where column 0 holds no index of one of `batch` images.
template <class A>
PYDET_HOST_DEVICE int64_t roi_image(const A* roi, int64_t batch) {
  // Written so that NaN gives -1. Fractions are cut off.
  return roi[0] >= A(0) && roi[0] < static_cast<A>(batch) ? static_cast<int64_t>(roi[0]) : -1;
}

}  // namespace pydet
