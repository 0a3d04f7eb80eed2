// SPDX-License-Identifier: Apache-2.0
#include <algorithm>

#include "box_coding/box_coding.h"
#include "common/box_deltas.h"
#include "common/isa.h"
#include "common/parallel_for.h"
#include "common/scalar.h"

namespace pydet {
namespace cpu {
namespace {

// Boxes a thread takes at a time.
constexpr int64_t kGrain = 1 << 14;
// Anchors whose gradients are summed over the rows at a time, in the first-level cache.
constexpr int64_t kBlock = 256;

// Calls body(begin, end, anchor) on runs of boxes that are neighbours, have anchors that are
// neighbours, from number `anchor` on, and are all of one image of `boxes_an_image`.
template <class Body>
void for_each_run(int64_t begin, int64_t end, int64_t num_anchors, int64_t boxes_an_image,
                  const Body& body) {
  while (begin < end) {
    const int64_t anchor = begin % num_anchors;
    const int64_t run = std::min(num_anchors - anchor, boxes_an_image - begin % boxes_an_image);
    const int64_t stop = std::min(end, begin + run);
    body(begin, stop, anchor);
    begin = stop;
  }
}

// Below: a run of `count` boxes, compiled for each instruction set.

template <class T>
struct Encode {
  using A = acc_t<T>;
  static void run(int64_t count, const T* __restrict boxes, const T* __restrict anchors,
                  Deltas<A> weights, T* __restrict deltas) {
    for (int64_t i = 0; i < count; ++i)
      store_deltas(deltas, i, encode_box(load_box(boxes, i), load_box(anchors, i), weights));
  }
};

template <class T>
struct EncodeBackward {
  using A = acc_t<T>;
  static void run(int64_t count, const T* __restrict grad_deltas, const T* __restrict boxes,
                  const T* __restrict anchors, Deltas<A> weights, T* __restrict grad_boxes,
                  Box<A>* __restrict sums) {
    for (int64_t i = 0; i < count; ++i) {
      Box<A> grad_box, grad_anchor;
      encode_box_backward(load_box(boxes, i), load_box(anchors, i), weights,
                          load_deltas(grad_deltas, i), &grad_box, &grad_anchor);
      store_box(grad_boxes, i, grad_box);
      add_to(&sums[i], grad_anchor);
    }
  }
};

template <class T>
struct Decode {
  using A = acc_t<T>;
  static void run(int64_t count, const T* __restrict deltas, const T* __restrict anchors,
                  Deltas<A> weights, A scale_clamp, ImageLimits<A> limits, T* __restrict boxes) {
    for (int64_t i = 0; i < count; ++i) {
      store_box(
          boxes, i,
          decode_box(load_deltas(deltas, i), load_box(anchors, i), weights, scale_clamp, limits));
    }
  }
};

template <class T>
struct DecodeBackward {
  using A = acc_t<T>;
  static void run(int64_t count, const T* __restrict grad_boxes, const T* __restrict deltas,
                  const T* __restrict anchors, Deltas<A> weights, A scale_clamp,
                  ImageLimits<A> limits, T* __restrict grad_deltas, Box<A>* __restrict sums) {
    for (int64_t i = 0; i < count; ++i) {
      Deltas<A> grad;
      Box<A> grad_anchor;
      decode_box_backward(load_deltas(deltas, i), load_box(anchors, i), weights, scale_clamp,
                          limits, load_box(grad_boxes, i), &grad, &grad_anchor);
      store_deltas(grad_deltas, i, grad);
      add_to(&sums[i], grad_anchor);
    }
  }
};

// Calls body(first, count, anchor, sums) for a run of each row and each block of anchors; `sums`
// [count] are the gradients of the anchors from `anchor` on, for body to add to.
template <class T, class Body>
void sum_over_rows(int64_t rows, int64_t num_anchors, T* grad_anchors, const Body& body) {
  parallel_for(num_anchors, kBlock, [=](int64_t begin, int64_t end) {
    Box<acc_t<T>> sums[kBlock] = {};
    for (int64_t row = 0; row < rows; ++row)
      body(row * num_anchors + begin, end - begin, begin, sums);
    for (int64_t j = begin; j < end; ++j) store_box(grad_anchors, j, sums[j - begin]);
  });
}

}  // namespace

template <class T>
void encode_boxes(int64_t rows, int64_t num_anchors, const T* boxes, const T* anchors,
                  BoxCodingWeights weights, T* deltas) {
  const auto w = to_deltas<acc_t<T>>(weights);
  parallel_for(rows * num_anchors, kGrain, [=](int64_t begin, int64_t end) {
    for_each_run(begin, end, num_anchors, end, [=](int64_t i, int64_t stop, int64_t j) {
      run_on_best_isa<Encode<T>>(stop - i, boxes + 4 * i, anchors + 4 * j, w, deltas + 4 * i);
    });
  });
}

template <class T>
void encode_boxes_backward(int64_t rows, int64_t num_anchors, const T* grad_deltas, const T* boxes,
                           const T* anchors, BoxCodingWeights weights, T* grad_boxes,
                           T* grad_anchors) {
  const auto w = to_deltas<acc_t<T>>(weights);
  sum_over_rows(rows, num_anchors, grad_anchors,
                [=](int64_t i, int64_t count, int64_t j, Box<acc_t<T>>* sums) {
                  run_on_best_isa<EncodeBackward<T>>(count, grad_deltas + 4 * i, boxes + 4 * i,
                                                     anchors + 4 * j, w, grad_boxes + 4 * i, sums);
                });
}

template <class T>
void decode_boxes(int64_t rows, int64_t num_anchors, const T* deltas, const T* anchors,
                  const acc_t<T>* image_sizes, DecodeParams params, T* boxes) {
  const auto w = to_deltas<acc_t<T>>(params.weights);
  const auto scale_clamp = static_cast<acc_t<T>>(params.scale_clamp);
  const int64_t count = rows * num_anchors;
  parallel_for(count, kGrain, [=](int64_t begin, int64_t end) {
    for_each_run(begin, end, num_anchors, image_sizes == nullptr ? count : params.boxes_an_image,
                 [=](int64_t i, int64_t stop, int64_t j) {
                   run_on_best_isa<Decode<T>>(stop - i, deltas + 4 * i, anchors + 4 * j, w,
                                              scale_clamp, limits_of(params, image_sizes, i),
                                              boxes + 4 * i);
                 });
  });
}

template <class T>
void decode_boxes_backward(int64_t rows, int64_t num_anchors, const T* grad_boxes, const T* deltas,
                           const T* anchors, const acc_t<T>* image_sizes, DecodeParams params,
                           T* grad_deltas, T* grad_anchors) {
  const auto w = to_deltas<acc_t<T>>(params.weights);
  const auto scale_clamp = static_cast<acc_t<T>>(params.scale_clamp);
  const int64_t boxes_a_run = image_sizes == nullptr ? rows * num_anchors : params.boxes_an_image;
  sum_over_rows(rows, num_anchors, grad_anchors,
                [=](int64_t first, int64_t count, int64_t anchor, Box<acc_t<T>>* sums) {
                  for_each_run(first, first + count, num_anchors, boxes_a_run,
                               [=](int64_t i, int64_t stop, int64_t j) {
                                 run_on_best_isa<DecodeBackward<T>>(
                                     stop - i, grad_boxes + 4 * i, deltas + 4 * i, anchors + 4 * j,
                                     w, scale_clamp, limits_of(params, image_sizes, i),
                                     grad_deltas + 4 * i, sums + (j - anchor));
                               });
                });
}

template <class T>
void encode_boxes_double_backward(int64_t rows, int64_t num_anchors,
                                  const CodingSecondOrder<T>& second, const T* grad_deltas,
                                  const T* boxes, const T* anchors, BoxCodingWeights weights,
                                  T* grad_boxes, T* grad_anchors) {
  using A = acc_t<T>;
  sum_over_rows(rows, num_anchors, grad_anchors,
                [=](int64_t first, int64_t count, int64_t anchor, Box<A>* sums) {
                  for (int64_t k = 0; k < count; ++k) {
                    const int64_t i = first + k, j = anchor + k;
                    Deltas<A> grad_grad;
                    Box<A> grad_box, grad_anchor;
                    encode_box_double_backward(
                        dual_of(load_box(boxes, i), load_box(second.v, i)),
                        dual_of(load_box(anchors, j), load_box(second.v_anchors, j)), weights,
                        load_deltas(grad_deltas, i), &grad_grad, &grad_box, &grad_anchor);
                    store_deltas(second.grad_grad, i, grad_grad);
                    store_box(grad_boxes, i, grad_box);
                    add_to(&sums[k], grad_anchor);
                  }
                });
}

template <class T>
void decode_boxes_double_backward(int64_t rows, int64_t num_anchors,
                                  const CodingSecondOrder<T>& second, const T* grad_boxes,
                                  const T* deltas, const T* anchors, const acc_t<T>* image_sizes,
                                  DecodeParams params, T* grad_deltas, T* grad_anchors) {
  using A = acc_t<T>;
  sum_over_rows(rows, num_anchors, grad_anchors,
                [=](int64_t first, int64_t count, int64_t anchor, Box<A>* sums) {
                  for (int64_t k = 0; k < count; ++k) {
                    const int64_t i = first + k, j = anchor + k;
                    Deltas<A> grad;
                    Box<A> grad_grad, grad_anchor;
                    decode_box_double_backward(
                        dual_of(load_deltas(deltas, i), load_deltas(second.v, i)),
                        dual_of(load_box(anchors, j), load_box(second.v_anchors, j)), params,
                        limits_of(params, image_sizes, i), load_box(grad_boxes, i), &grad_grad,
                        &grad, &grad_anchor);
                    store_box(second.grad_grad, i, grad_grad);
                    store_deltas(grad_deltas, i, grad);
                    add_to(&sums[k], grad_anchor);
                  }
                });
}

template void encode_boxes(int64_t, int64_t, const float*, const float*, BoxCodingWeights, float*);
template void encode_boxes(int64_t, int64_t, const double*, const double*, BoxCodingWeights,
                           double*);
template void encode_boxes(int64_t, int64_t, const Half*, const Half*, BoxCodingWeights, Half*);
template void encode_boxes(int64_t, int64_t, const BFloat16*, const BFloat16*, BoxCodingWeights,
                           BFloat16*);

template void encode_boxes_backward(int64_t, int64_t, const float*, const float*, const float*,
                                    BoxCodingWeights, float*, float*);
template void encode_boxes_backward(int64_t, int64_t, const double*, const double*, const double*,
                                    BoxCodingWeights, double*, double*);
template void encode_boxes_backward(int64_t, int64_t, const Half*, const Half*, const Half*,
                                    BoxCodingWeights, Half*, Half*);
template void encode_boxes_backward(int64_t, int64_t, const BFloat16*, const BFloat16*,
                                    const BFloat16*, BoxCodingWeights, BFloat16*, BFloat16*);

template void decode_boxes(int64_t, int64_t, const float*, const float*, const float*, DecodeParams,
                           float*);
template void decode_boxes(int64_t, int64_t, const double*, const double*, const double*,
                           DecodeParams, double*);
template void decode_boxes(int64_t, int64_t, const Half*, const Half*, const float*, DecodeParams,
                           Half*);
template void decode_boxes(int64_t, int64_t, const BFloat16*, const BFloat16*, const float*,
                           DecodeParams, BFloat16*);

template void decode_boxes_backward(int64_t, int64_t, const float*, const float*, const float*,
                                    const float*, DecodeParams, float*, float*);
template void decode_boxes_backward(int64_t, int64_t, const double*, const double*, const double*,
                                    const double*, DecodeParams, double*, double*);
template void decode_boxes_backward(int64_t, int64_t, const Half*, const Half*, const Half*,
                                    const float*, DecodeParams, Half*, Half*);
template void decode_boxes_backward(int64_t, int64_t, const BFloat16*, const BFloat16*,
                                    const BFloat16*, const float*, DecodeParams, BFloat16*,
                                    BFloat16*);

template void encode_boxes_double_backward(int64_t, int64_t, const CodingSecondOrder<float>&,
                                           const float*, const float*, const float*,
                                           BoxCodingWeights, float*, float*);
template void encode_boxes_double_backward(int64_t, int64_t, const CodingSecondOrder<double>&,
                                           const double*, const double*, const double*,
                                           BoxCodingWeights, double*, double*);
template void encode_boxes_double_backward(int64_t, int64_t, const CodingSecondOrder<Half>&,
                                           const Half*, const Half*, const Half*, BoxCodingWeights,
                                           Half*, Half*);
template void encode_boxes_double_backward(int64_t, int64_t, const CodingSecondOrder<BFloat16>&,
                                           const BFloat16*, const BFloat16*, const BFloat16*,
                                           BoxCodingWeights, BFloat16*, BFloat16*);

template void decode_boxes_double_backward(int64_t, int64_t, const CodingSecondOrder<float>&,
                                           const float*, const float*, const float*, const float*,
                                           DecodeParams, float*, float*);
template void decode_boxes_double_backward(int64_t, int64_t, const CodingSecondOrder<double>&,
                                           const double*, const double*, const double*,
                                           const double*, DecodeParams, double*, double*);
template void decode_boxes_double_backward(int64_t, int64_t, const CodingSecondOrder<Half>&,
                                           const Half*, const Half*, const Half*, const float*,
                                           DecodeParams, Half*, Half*);
template void decode_boxes_double_backward(int64_t, int64_t, const CodingSecondOrder<BFloat16>&,
                                           const BFloat16*, const BFloat16*, const BFloat16*,
                                           const float*, DecodeParams, BFloat16*, BFloat16*);

}  // namespace cpu
}  // namespace pydet
