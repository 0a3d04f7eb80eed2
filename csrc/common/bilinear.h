// SPDX-License-Identifier: Apache-2.0
// Bilinear sampling: a point between cells -> its neighbours, their weights, and the derivatives of
// the weights by the coordinates. For host and device.
//
// A cell's value stands at its integer index. The rules of the border work on each axis alone, so a
// point is a pair of AxisSamples, and the weight of a neighbour is the product of two:
//
//          x.low   x.high
//   y.low    +-------+        value = sum over the four of weight_y * weight_x * cell
//            |  *    |        d value / dy = sum of slope_y * weight_x * cell
//   y.high   +-------+        d value / dx = sum of weight_y * slope_x * cell
//
// `low` and `high` can always be read, whatever the position (NaN and infinities too), as long as
// the axis has a cell; a neighbour that does not count has weight 0. Axes have at most 2^30 cells.
#pragma once

#include <cmath>
#include <cstdint>

#include "common/host_device.h"

namespace pydet {

template <class A>
struct AxisSample {
  int32_t low = 0, high = 0;          // the two neighbours
  A weight_low = 0, weight_high = 0;  // both 0 for a position that does not count at all
  A slope_low = 0, slope_high = 0;    // derivatives of the weights by the position
};

// RoI align's border: a position in [-1, size] counts, and one beyond the centre of the first or
// the last cell takes that cell's value (its slope is 0).
template <class A>
PYDET_HOST_DEVICE AxisSample<A> sample_clamped(A position, int64_t size) {
  AxisSample<A> sample;
  // Written so that NaN does not count.
  if (!(position >= A(-1) && position <= static_cast<A>(size)) || size < 1) return sample;
  const A inside = position > A(0) ? position : A(0);
  sample.low = static_cast<int32_t>(inside);
  if (sample.low >= size - 1) {
    sample.low = sample.high = static_cast<int32_t>(size - 1);
    sample.weight_low = A(1);
    return sample;
  }
  sample.high = sample.low + 1;
  sample.weight_high = inside - static_cast<A>(sample.low);
  sample.weight_low = A(1) - sample.weight_high;
  sample.slope_high = position > A(0) ? A(1) : A(0);
  sample.slope_low = -sample.slope_high;
  return sample;
}

// Deformable convolution's border: cells outside are 0, so a position in [-1, size) counts, with
// those of its two neighbours that exist. At -1 the value is 0 and its slope that to the right, as
// at all integers.
template <class A>
PYDET_HOST_DEVICE AxisSample<A> sample_zero_padded(A position, int64_t size) {
  AxisSample<A> sample;
  if (!(position >= A(-1) && position < static_cast<A>(size)) || size < 1) return sample;
  const A floor_of = std::floor(position);
  const int64_t low = static_cast<int64_t>(floor_of);
  if (low >= 0) {
    sample.low = static_cast<int32_t>(low);
    sample.weight_low = A(1) - (position - floor_of);
    sample.slope_low = A(-1);
  }
  if (low + 1 < size) {
    sample.high = static_cast<int32_t>(low + 1);
    sample.weight_high = position - floor_of;
    sample.slope_high = A(1);
  } else {
    sample.high = sample.low;
  }
  return sample;
}

// The four neighbours of a point as offsets into a map with the given strides, in the order
// (low, low), (low, high), (high, low), (high, high) of (y, x), with their weights.
template <class A>
struct Neighbours {
  int64_t offset[4];
  A weight[4];
};

template <class A>
PYDET_HOST_DEVICE Neighbours<A> neighbours(const AxisSample<A>& y, const AxisSample<A>& x,
                                           int64_t stride_y, int64_t stride_x) {
  return {{y.low * stride_y + x.low * stride_x, y.low * stride_y + x.high * stride_x,
           y.high * stride_y + x.low * stride_x, y.high * stride_y + x.high * stride_x},
          {y.weight_low * x.weight_low, y.weight_low * x.weight_high, y.weight_high * x.weight_low,
           y.weight_high * x.weight_high}};
}

// The value at a point and its derivatives by y and x, from the values of the four neighbours in
// the order of Neighbours.
template <class A>
struct BilinearValue {
  A value, slope_y, slope_x;

  PYDET_HOST_DEVICE void add(A factor, const BilinearValue& other) {
    value += factor * other.value;
    slope_y += factor * other.slope_y;
    slope_x += factor * other.slope_x;
  }
};

template <class A>
PYDET_HOST_DEVICE BilinearValue<A> bilinear(const AxisSample<A>& y, const AxisSample<A>& x,
                                            const A cells[4]) {
  const A low = x.weight_low * cells[0] + x.weight_high * cells[1];
  const A high = x.weight_low * cells[2] + x.weight_high * cells[3];
  const A slope_of_low = x.slope_low * cells[0] + x.slope_high * cells[1];
  const A slope_of_high = x.slope_low * cells[2] + x.slope_high * cells[3];
  return {y.weight_low * low + y.weight_high * high, y.slope_low * low + y.slope_high * high,
          y.weight_low * slope_of_low + y.weight_high * slope_of_high};
}

}  // namespace pydet
