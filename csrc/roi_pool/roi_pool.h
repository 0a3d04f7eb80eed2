// SPDX-License-Identifier: Apache-2.0
// RoI max pooling.
//
// out[r, c, ph, pw] is the largest of the cells of a bin (common/pool_bins.h) of channel c of the
// RoI's image; cells with NaN are passed over. A bin without a cell on the map is 0, one whose
// cells are all NaN or -infinity is -infinity. A RoI whose image index is not in the batch or that
// has a NaN coordinate gives zeros. Nothing but the inputs is kept for the backward: it looks for
// the largest cell again (of equal ones the first in row-major order, none where the bin is empty
// or -infinity).
//
// Maps are [B, C, H, W] or, with channels_last, [B, H, W, C]; out, grad_out and values likewise
// [R, C, PH, PW] or [R, PH, PW, C]. A map has less than 2^31 cells. T is float, double, Half or
// BFloat16; gradients are added up in float (double for double).
#pragma once

#include <cstdint>

#include "common/pool_bins.h"
#include "common/roi.h"
#include "common/scalar.h"

struct CUstream_st;

namespace pydet {

template <class A>
struct RoiPoolParams {
  int64_t batch, channels, height, width, num_rois, pooled_height, pooled_width;
  bool channels_last;
  A spatial_scale;
  const A* rois;  // [R, 5] (image, x1, y1, x2, y2)
};

template <class A>
struct RoiPoolPlace {
  int64_t image;  // -1: the RoI pools nothing
  PoolAxis<A> y, x;
};

template <class A>
PYDET_HOST_DEVICE RoiPoolPlace<A> roi_pool_place(const RoiPoolParams<A>& params, int64_t r) {
  const A* roi = params.rois + 5 * r;
  int64_t image = roi_image(roi, params.batch);
  for (int i = 1; i < 5; ++i) {
    if (!(roi[i] - roi[i] == A(0))) image = -1;
  }
  if (image < 0) return {-1, {0, A(1)}, {0, A(1)}};
  const A scale = params.spatial_scale;
  return {image, pool_axis(roi[2], roi[4], scale, true, params.pooled_height),
          pool_axis(roi[1], roi[3], scale, true, params.pooled_width)};
}

namespace cpu {

template <class T>
void roi_pool(const RoiPoolParams<acc_t<T>>& params, const T* input, T* out);

// Overwrites grad_input. Each channel of an image is one thread's, its RoIs in their order: the
// same bits whatever the number of threads.
template <class T>
void roi_pool_backward(const RoiPoolParams<acc_t<T>>& params, const T* input, const T* grad_out,
                       acc_t<T>* grad_input);

// out[r, c, ph, pw] is the cell of `values` where that of `input` is the largest: the derivative of
// roi_pool along values. 0 where there is none.
template <class T>
void roi_pool_gather(const RoiPoolParams<acc_t<T>>& params, const T* input, const T* values,
                     T* out);

}  // namespace cpu

namespace cuda {

template <class T>
const char* roi_pool(const RoiPoolParams<acc_t<T>>& params, const T* input, T* out,
                     CUstream_st* stream);

// Without a workspace by atomic additions, whose order is that of the moment. With one, an int32
// for each element of grad_out, every cell is one thread's, with the RoIs in their order: the same
// bits every time.
template <class T>
const char* roi_pool_backward(const RoiPoolParams<acc_t<T>>& params, const T* input,
                              const T* grad_out, int32_t* workspace, acc_t<T>* grad_input,
                              CUstream_st* stream);

template <class T>
const char* roi_pool_gather(const RoiPoolParams<acc_t<T>>& params, const T* input, const T* values,
                            T* out, CUstream_st* stream);

}  // namespace cuda
}  // namespace pydet
