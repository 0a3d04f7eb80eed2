// SPDX-License-Identifier: Apache-2.0
// Boxes as deltas to an anchor and back, for host and device, each function beside its gradient.
// With centre (cx, cy) and size (w, h) of the box, and those of the anchor with an a:
//   dx = wx (cx - cxa) / wa    dw = ww log(w / wa)      and likewise dy, dh,
// weights (wx, wy, ww, wh): R-CNN (Girshick et al. 2014), appendix C, equations 6 to 9.
#pragma once

#include <cmath>

#include "common/box.h"
#include "common/dual.h"
#include "common/host_device.h"
#include "common/math.h"

namespace pydet {

// Numbers of x, y, width, height.
struct BoxCodingWeights {
  double x, y, width, height;
};

// Decoded boxes are clipped to images where `clip` says so: all to height x width, or, where the
// array image_sizes [B, 2] (height, width) is not null, each to its own; image b then has the
// boxes b * boxes_an_image and following.
struct DecodeParams {
  BoxCodingWeights weights;
  double scale_clamp;
  bool clip;
  double height, width;
  int64_t boxes_an_image;
};

template <class A>
struct Deltas {
  A dx, dy, dw, dh;
};

template <class A>
PYDET_HOST_DEVICE Deltas<A> to_deltas(const BoxCodingWeights& weights) {
  return {static_cast<A>(weights.x), static_cast<A>(weights.y), static_cast<A>(weights.width),
          static_cast<A>(weights.height)};
}

template <class T>
PYDET_HOST_DEVICE Deltas<acc_t<T>> load_deltas(const T* deltas, int64_t index) {
  const T* p = deltas + 4 * index;
  return {load(p), load(p + 1), load(p + 2), load(p + 3)};
}

template <class T>
PYDET_HOST_DEVICE void store_deltas(T* deltas, int64_t index, const Deltas<acc_t<T>>& value) {
  T* p = deltas + 4 * index;
  store(p, value.dx);
  store(p + 1, value.dy);
  store(p + 2, value.dw);
  store(p + 3, value.dh);
}

template <class A>
PYDET_HOST_DEVICE void add_to(Box<A>* sum, const Box<A>& box) {
  *sum = {sum->x1 + box.x1, sum->y1 + box.y1, sum->x2 + box.x2, sum->y2 + box.y2};
}

// False for infinities and NaN.
template <class A>
PYDET_HOST_DEVICE bool is_finite(A value) {
  return value - value == A(0);
}

// Conditions below are joined without branches, so that the compiler can vectorise a loop over
// boxes.

// Whether a box has a positive, finite width and height; then its corners are finite too.
template <class A>
PYDET_HOST_DEVICE bool is_proper(const Box<A>& box) {
  const A width = box.x2 - box.x1, height = box.y2 - box.y1;
  return (width > A(0)) & (height > A(0)) & is_finite(width) & is_finite(height);
}

// One axis of a box: [low, high] against the anchor's [low_a, high_a].
template <class A>
PYDET_HOST_DEVICE void encode_axis(A low, A high, A low_a, A high_a, A weight_centre, A weight_size,
                                   A* centre, A* size) {
  const A length = high - low, length_a = high_a - low_a;
  const A middle = low + A(0.5) * length, middle_a = low_a + A(0.5) * length_a;
  *centre = weight_centre * (middle - middle_a) / length_a;
  *size = weight_size * log_of_positive(length / length_a);
}

// Gradients of the four ends from those of the two deltas.
template <class A>
PYDET_HOST_DEVICE void encode_axis_backward(A low, A high, A low_a, A high_a, A weight_centre,
                                            A weight_size, A grad_centre, A grad_size, A* grad_low,
                                            A* grad_high, A* grad_low_a, A* grad_high_a) {
  const A length = high - low, length_a = high_a - low_a;
  const A middle = low + A(0.5) * length, middle_a = low_a + A(0.5) * length_a;
  const A grad_middle = grad_centre * weight_centre / length_a;
  const A grad_length = grad_size * weight_size / length;
  const A grad_length_a = -(grad_middle * (middle - middle_a) + grad_size * weight_size) / length_a;
  *grad_low = A(0.5) * grad_middle - grad_length;
  *grad_high = A(0.5) * grad_middle + grad_length;
  *grad_low_a = A(-0.5) * grad_middle - grad_length_a;
  *grad_high_a = A(-0.5) * grad_middle + grad_length_a;
}

// Whether a pair has deltas: both boxes are proper, and the deltas are finite (the sizes of two
// boxes can be so far apart that their quotient is not).
template <class A>
PYDET_HOST_DEVICE bool are_usable(const Box<A>& box, const Box<A>& anchor,
                                  const Deltas<A>& deltas) {
  return is_proper(box) & is_proper(anchor) & is_finite(deltas.dx) & is_finite(deltas.dy) &
         is_finite(deltas.dw) & is_finite(deltas.dh);
}

// All 0 for a pair that has no deltas.
template <class A>
PYDET_HOST_DEVICE Deltas<A> encode_box(const Box<A>& box, const Box<A>& anchor,
                                       const Deltas<A>& weights) {
  Deltas<A> deltas;
  encode_axis(box.x1, box.x2, anchor.x1, anchor.x2, weights.dx, weights.dw, &deltas.dx, &deltas.dw);
  encode_axis(box.y1, box.y2, anchor.y1, anchor.y2, weights.dy, weights.dh, &deltas.dy, &deltas.dh);
  const bool usable = are_usable(box, anchor, deltas);
  return {usable ? deltas.dx : A(0), usable ? deltas.dy : A(0), usable ? deltas.dw : A(0),
          usable ? deltas.dh : A(0)};
}

template <class A>
PYDET_HOST_DEVICE void encode_box_backward(const Box<A>& box, const Box<A>& anchor,
                                           const Deltas<A>& weights, const Deltas<A>& grad,
                                           Box<A>* grad_box, Box<A>* grad_anchor) {
  *grad_box = *grad_anchor = Box<A>{A(0), A(0), A(0), A(0)};
  Deltas<A> deltas;
  encode_axis(box.x1, box.x2, anchor.x1, anchor.x2, weights.dx, weights.dw, &deltas.dx, &deltas.dw);
  encode_axis(box.y1, box.y2, anchor.y1, anchor.y2, weights.dy, weights.dh, &deltas.dy, &deltas.dh);
  if (!are_usable(box, anchor, deltas)) return;
  encode_axis_backward(box.x1, box.x2, anchor.x1, anchor.x2, weights.dx, weights.dw, grad.dx,
                       grad.dw, &grad_box->x1, &grad_box->x2, &grad_anchor->x1, &grad_anchor->x2);
  encode_axis_backward(box.y1, box.y2, anchor.y1, anchor.y2, weights.dy, weights.dh, grad.dy,
                       grad.dh, &grad_box->y1, &grad_box->y2, &grad_anchor->y1, &grad_anchor->y2);
}

// How far decoded boxes may go: x into [low, width], y into [low, height]. Infinite limits change
// nothing.
template <class A>
struct ImageLimits {
  A low, height, width;
};

// The limits of box number `index`; `image_sizes` may be null.
template <class A>
PYDET_HOST_DEVICE ImageLimits<A> limits_of(const DecodeParams& params, const A* image_sizes,
                                           int64_t index) {
  if (!params.clip) return {-A(HUGE_VAL), A(HUGE_VAL), A(HUGE_VAL)};
  if (image_sizes == nullptr)
    return {A(0), static_cast<A>(params.height), static_cast<A>(params.width)};
  const A* size = image_sizes + 2 * (index / params.boxes_an_image);
  return {A(0), size[0], size[1]};
}

// A NaN stays one.
template <class A>
PYDET_HOST_DEVICE A clamp_to(A value, A low, A high) {
  return value < low ? low : (value > high ? high : value);
}

// One axis: the deltas `centre` and `size` move and stretch the anchor's [low_a, high_a].
template <class A>
PYDET_HOST_DEVICE void decode_axis(A centre, A size, A low_a, A high_a, A weight_centre,
                                   A weight_size, A scale_clamp, A* low, A* high) {
  const A length_a = high_a - low_a, middle_a = low_a + A(0.5) * length_a;
  const A scale = size / weight_size;
  const A middle = centre / weight_centre * length_a + middle_a;
  const A half = A(0.5) * (exp_of(scale > scale_clamp ? scale_clamp : scale) * length_a);
  *low = middle - half;
  *high = middle + half;
}

template <class A>
PYDET_HOST_DEVICE void decode_axis_backward(A centre, A size, A low_a, A high_a, A weight_centre,
                                            A weight_size, A scale_clamp, A limit_low, A limit_high,
                                            A grad_low, A grad_high, A* grad_centre, A* grad_size,
                                            A* grad_low_a, A* grad_high_a) {
  A low, high;
  decode_axis(centre, size, low_a, high_a, weight_centre, weight_size, scale_clamp, &low, &high);
  // A corner beyond a limit does not move; one on it does, as with torch.clamp.
  grad_low = low >= limit_low && low <= limit_high ? grad_low : A(0);
  grad_high = high >= limit_low && high <= limit_high ? grad_high : A(0);
  const A length_a = high_a - low_a;
  const A scale = size / weight_size;
  const bool clamped = scale > scale_clamp;
  const A stretch = exp_of(clamped ? scale_clamp : scale);
  const A grad_middle = grad_low + grad_high, grad_length = A(0.5) * (grad_high - grad_low);
  *grad_centre = grad_middle * length_a / weight_centre;
  *grad_size = clamped ? A(0) : grad_length * stretch * length_a / weight_size;
  const A grad_length_a = grad_middle * (centre / weight_centre) + grad_length * stretch;
  *grad_low_a = A(0.5) * grad_middle - grad_length_a;
  *grad_high_a = A(0.5) * grad_middle + grad_length_a;
}

template <class A>
PYDET_HOST_DEVICE Box<A> decode_box(const Deltas<A>& deltas, const Box<A>& anchor,
                                    const Deltas<A>& weights, A scale_clamp,
                                    const ImageLimits<A>& limits) {
  Box<A> box;
  decode_axis(deltas.dx, deltas.dw, anchor.x1, anchor.x2, weights.dx, weights.dw, scale_clamp,
              &box.x1, &box.x2);
  decode_axis(deltas.dy, deltas.dh, anchor.y1, anchor.y2, weights.dy, weights.dh, scale_clamp,
              &box.y1, &box.y2);
  return {clamp_to(box.x1, limits.low, limits.width), clamp_to(box.y1, limits.low, limits.height),
          clamp_to(box.x2, limits.low, limits.width), clamp_to(box.y2, limits.low, limits.height)};
}

template <class A>
PYDET_HOST_DEVICE void decode_box_backward(const Deltas<A>& deltas, const Box<A>& anchor,
                                           const Deltas<A>& weights, A scale_clamp,
                                           const ImageLimits<A>& limits, const Box<A>& grad,
                                           Deltas<A>* grad_deltas, Box<A>* grad_anchor) {
  decode_axis_backward(deltas.dx, deltas.dw, anchor.x1, anchor.x2, weights.dx, weights.dw,
                       scale_clamp, limits.low, limits.width, grad.x1, grad.x2, &grad_deltas->dx,
                       &grad_deltas->dw, &grad_anchor->x1, &grad_anchor->x2);
  decode_axis_backward(deltas.dy, deltas.dh, anchor.y1, anchor.y2, weights.dy, weights.dh,
                       scale_clamp, limits.low, limits.height, grad.y1, grad.y2, &grad_deltas->dy,
                       &grad_deltas->dh, &grad_anchor->y1, &grad_anchor->y2);
}

// For the second derivative: numbers with their tangents, constants, and the tangents of results.

template <class A>
PYDET_HOST_DEVICE Box<Dual<A>> dual_of(const Box<A>& box, const Box<A>& v) {
  return {{box.x1, v.x1}, {box.y1, v.y1}, {box.x2, v.x2}, {box.y2, v.y2}};
}
template <class A>
PYDET_HOST_DEVICE Deltas<Dual<A>> dual_of(const Deltas<A>& deltas, const Deltas<A>& v) {
  return {{deltas.dx, v.dx}, {deltas.dy, v.dy}, {deltas.dw, v.dw}, {deltas.dh, v.dh}};
}
template <class A>
PYDET_HOST_DEVICE ImageLimits<Dual<A>> dual_of(const ImageLimits<A>& limits) {
  return {limits.low, limits.height, limits.width};
}
template <class A>
PYDET_HOST_DEVICE Box<A> tangent_of(const Box<Dual<A>>& box) {
  return {box.x1.tangent, box.y1.tangent, box.x2.tangent, box.y2.tangent};
}
template <class A>
PYDET_HOST_DEVICE Deltas<A> tangent_of(const Deltas<Dual<A>>& deltas) {
  return {deltas.dx.tangent, deltas.dy.tangent, deltas.dw.tangent, deltas.dh.tangent};
}

// A pair's part of the second derivative: when box and anchor move along their tangents, how the
// deltas change, and how the gradients do.
template <class A>
PYDET_HOST_DEVICE void encode_box_double_backward(const Box<Dual<A>>& box,
                                                  const Box<Dual<A>>& anchor,
                                                  const BoxCodingWeights& weights,
                                                  const Deltas<A>& grad, Deltas<A>* grad_grad,
                                                  Box<A>* grad_box, Box<A>* grad_anchor) {
  const Deltas<Dual<A>> w = to_deltas<Dual<A>>(weights);
  *grad_grad = tangent_of(encode_box(box, anchor, w));
  Box<Dual<A>> of_box, of_anchor;
  encode_box_backward(box, anchor, w, dual_of(grad, Deltas<A>{}), &of_box, &of_anchor);
  *grad_box = tangent_of(of_box);
  *grad_anchor = tangent_of(of_anchor);
}

template <class A>
PYDET_HOST_DEVICE void decode_box_double_backward(const Deltas<Dual<A>>& deltas,
                                                  const Box<Dual<A>>& anchor,
                                                  const DecodeParams& params,
                                                  const ImageLimits<A>& limits, const Box<A>& grad,
                                                  Box<A>* grad_grad, Deltas<A>* grad_deltas,
                                                  Box<A>* grad_anchor) {
  const Deltas<Dual<A>> w = to_deltas<Dual<A>>(params.weights);
  const Dual<A> scale_clamp(static_cast<A>(params.scale_clamp));
  *grad_grad = tangent_of(decode_box(deltas, anchor, w, scale_clamp, dual_of(limits)));
  Deltas<Dual<A>> of_deltas;
  Box<Dual<A>> of_anchor;
  decode_box_backward(deltas, anchor, w, scale_clamp, dual_of(limits), dual_of(grad, Box<A>{}),
                      &of_deltas, &of_anchor);
  *grad_deltas = tangent_of(of_deltas);
  *grad_anchor = tangent_of(of_anchor);
}

}  // namespace pydet
