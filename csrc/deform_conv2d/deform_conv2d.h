// SPDX-License-Identifier: Apache-2.0
// The sampling of deformable convolution; the matrix products around it are torch's.
//
// columns[c * K + k, p] = mask[g, k, p] * input[c](y, x), with K = kernel_height * kernel_width, g
// the offset group of channel c, p counting the `count` output positions from `begin` on, and
//
//   y = out_y * stride_y - pad_y + i * dilation_y + offset[g, k, 0, position]
//   x = out_x * stride_x - pad_x + j * dilation_x + offset[g, k, 1, position]
//
// where k = i * kernel_width + j,
// sampled bilinearly, cells outside of the map being 0 (common/bilinear.h). A cell of weight 0 is
// not looked at, so a position that is far outside or NaN gives 0. All arrays belong to one image.
// T is float, double, Half or BFloat16; positions and weights are float (double for double).
#pragma once

#include <cstdint>

#include "common/bilinear.h"
#include "common/scalar.h"

struct CUstream_st;

namespace pydet {

template <class T>
struct DeformConvParams {
  int64_t channels, height, width, kernel_height, kernel_width;
  int64_t stride_y, stride_x, pad_y, pad_x, dilation_y, dilation_x;
  int64_t offset_groups, out_height, out_width;
  int64_t begin, count;  // output positions, row-major
  const T* input;        // [C, H, W]
  const T* offset;       // [G, K, 2, OH * OW]
  const T* mask;         // [G, K, OH * OW], or null: all 1
};

// Where tap k of output position `begin` + p samples, for offset group g.
template <class A>
struct DeformPoint {
  AxisSample<A> y, x;
  A mask;

  PYDET_HOST_DEVICE bool counts() const {
    return y.slope_low - y.slope_high != A(0) && x.slope_low - x.slope_high != A(0);
  }
};

template <class T>
PYDET_HOST_DEVICE DeformPoint<acc_t<T>> deform_point(const DeformConvParams<T>& params, int64_t g,
                                                     int64_t k, int64_t p) {
  using A = acc_t<T>;
  const int64_t taps = params.kernel_height * params.kernel_width;
  const int64_t positions = params.out_height * params.out_width, position = params.begin + p;
  const T* offset = params.offset + (g * taps + k) * 2 * positions + position;
  const int64_t y = position / params.out_width * params.stride_y - params.pad_y +
                    k / params.kernel_width * params.dilation_y;
  const int64_t x = position % params.out_width * params.stride_x - params.pad_x +
                    k % params.kernel_width * params.dilation_x;
  return {
      sample_zero_padded(static_cast<A>(y) + load(offset), params.height),
      sample_zero_padded(static_cast<A>(x) + load(offset + positions), params.width),
      params.mask == nullptr ? A(1) : load(params.mask + (g * taps + k) * positions + position)};
}

// The bilinear value of a channel at a point, without the mask.
template <class T, class A>
PYDET_HOST_DEVICE A deform_value(const Neighbours<A>& near, const T* channel) {
  A value = A(0);
  for (int i = 0; i < 4; ++i) {
    if (near.weight[i] != A(0)) value += near.weight[i] * load(channel + near.offset[i]);
  }
  return value;
}

// What one channel adds to the gradients of the mask and of the offsets of a point.
template <class T, class A>
PYDET_HOST_DEVICE BilinearValue<A> deform_slopes(const DeformPoint<A>& point,
                                                 const Neighbours<A>& near, const T* channel) {
  A cells[4] = {A(0), A(0), A(0), A(0)};
  if (point.counts()) {
    for (int i = 0; i < 4; ++i) cells[i] = load(channel + near.offset[i]);
  }
  return bilinear(point.y, point.x, cells);
}

namespace cpu {

// columns [C * K, count]
template <class T>
void deform_im2col(const DeformConvParams<T>& params, T* columns);

// Adds the gradient of the columns [C * K, count] to that of the image, grad_input [C, H, W]. Each
// channel is one thread's, in a fixed order.
template <class T>
void deform_col2im(const DeformConvParams<T>& params, const T* grad_columns, acc_t<T>* grad_input);

// The gradients of offset and mask (null without a mask) at the positions of the columns.
template <class T>
void deform_col2points(const DeformConvParams<T>& params, const T* grad_columns, T* grad_offset,
                       T* grad_mask);

}  // namespace cpu

namespace cuda {

template <class T>
const char* deform_im2col(const DeformConvParams<T>& params, T* columns, CUstream_st* stream);

// By atomic additions or, where `deterministic`, each channel by one warp in a fixed order, which
// is slow.
template <class T>
const char* deform_col2im(const DeformConvParams<T>& params, const T* grad_columns,
                          bool deterministic, acc_t<T>* grad_input, CUstream_st* stream);

template <class T>
const char* deform_col2points(const DeformConvParams<T>& params, const T* grad_columns,
                              T* grad_offset, T* grad_mask, CUstream_st* stream);

}  // namespace cuda
}  // namespace pydet
