// SPDX-License-Identifier: Apache-2.0
#include <algorithm>

#include "box_coding/box_coding.h"
#include "common/box_deltas.h"
#include "common/parallel_for.h"
#include "common/scalar.h"

namespace pydet {
namespace cpu {
namespace {

// Anchors a thread takes at a time.
constexpr int64_t kGrain = 2048;
// Anchors whose gradients are summed over the rows at a time, in the first-level cache.
constexpr int64_t kBlock = 256;

}  // namespace

template <class T>
void encode_boxes(int64_t rows, int64_t num_anchors, const T* boxes, const T* anchors,
                  BoxCodingWeights weights, T* deltas) {
  using A = acc_t<T>;
  const Deltas<A> w = to_deltas<A>(weights);
  parallel_for(rows * num_anchors, kGrain, [=](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i)
      store_deltas(deltas, i,
                   encode_box(load_box(boxes, i), load_box(anchors, i % num_anchors), w));
  });
}

template <class T>
void encode_boxes_backward(int64_t rows, int64_t num_anchors, const T* grad_deltas, const T* boxes,
                           const T* anchors, BoxCodingWeights weights, T* grad_boxes,
                           T* grad_anchors) {
  using A = acc_t<T>;
  const Deltas<A> w = to_deltas<A>(weights);
  parallel_for(num_anchors, kBlock, [=](int64_t begin, int64_t end) {
    Box<A> sums[kBlock] = {};
    for (int64_t row = 0; row < rows; ++row) {
      for (int64_t j = begin; j < end; ++j) {
        const int64_t i = row * num_anchors + j;
        Box<A> grad_box, grad_anchor;
        encode_box_backward(load_box(boxes, i), load_box(anchors, j), w,
                            load_deltas(grad_deltas, i), &grad_box, &grad_anchor);
        store_box(grad_boxes, i, grad_box);
        add_to(&sums[j - begin], grad_anchor);
      }
    }
    for (int64_t j = begin; j < end; ++j) store_box(grad_anchors, j, sums[j - begin]);
  });
}

template <class T>
void decode_boxes(int64_t rows, int64_t num_anchors, const T* deltas, const T* anchors,
                  const acc_t<T>* image_sizes, DecodeParams params, T* boxes) {
  using A = acc_t<T>;
  const Deltas<A> w = to_deltas<A>(params.weights);
  const A scale_clamp = static_cast<A>(params.scale_clamp);
  parallel_for(rows * num_anchors, kGrain, [=](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      store_box(boxes, i,
                decode_box(load_deltas(deltas, i), load_box(anchors, i % num_anchors), w,
                           scale_clamp, limits_of(params, image_sizes, i)));
    }
  });
}

template <class T>
void decode_boxes_backward(int64_t rows, int64_t num_anchors, const T* grad_boxes, const T* deltas,
                           const T* anchors, const acc_t<T>* image_sizes, DecodeParams params,
                           T* grad_deltas, T* grad_anchors) {
  using A = acc_t<T>;
  const Deltas<A> w = to_deltas<A>(params.weights);
  const A scale_clamp = static_cast<A>(params.scale_clamp);
  parallel_for(num_anchors, kBlock, [=](int64_t begin, int64_t end) {
    Box<A> sums[kBlock] = {};
    for (int64_t row = 0; row < rows; ++row) {
      for (int64_t j = begin; j < end; ++j) {
        const int64_t i = row * num_anchors + j;
        Deltas<A> grad;
        Box<A> grad_anchor;
        decode_box_backward(load_deltas(deltas, i), load_box(anchors, j), w, scale_clamp,
                            limits_of(params, image_sizes, i), load_box(grad_boxes, i), &grad,
                            &grad_anchor);
        store_deltas(grad_deltas, i, grad);
        add_to(&sums[j - begin], grad_anchor);
      }
    }
    for (int64_t j = begin; j < end; ++j) store_box(grad_anchors, j, sums[j - begin]);
  });
}

template <class T>
void encode_boxes_double_backward(int64_t rows, int64_t num_anchors,
                                  const CodingSecondOrder<T>& second, const T* grad_deltas,
                                  const T* boxes, const T* anchors, BoxCodingWeights weights,
                                  T* grad_boxes, T* grad_anchors) {
  using A = acc_t<T>;
  parallel_for(num_anchors, kBlock, [=](int64_t begin, int64_t end) {
    Box<A> sums[kBlock] = {};
    for (int64_t row = 0; row < rows; ++row) {
      for (int64_t j = begin; j < end; ++j) {
        const int64_t i = row * num_anchors + j;
        Deltas<A> grad_grad;
        Box<A> grad_box, grad_anchor;
        encode_box_double_backward(dual_of(load_box(boxes, i), load_box(second.v, i)),
                                   dual_of(load_box(anchors, j), load_box(second.v_anchors, j)),
                                   weights, load_deltas(grad_deltas, i), &grad_grad, &grad_box,
                                   &grad_anchor);
        store_deltas(second.grad_grad, i, grad_grad);
        store_box(grad_boxes, i, grad_box);
        add_to(&sums[j - begin], grad_anchor);
      }
    }
    for (int64_t j = begin; j < end; ++j) store_box(grad_anchors, j, sums[j - begin]);
  });
}

template <class T>
void decode_boxes_double_backward(int64_t rows, int64_t num_anchors,
                                  const CodingSecondOrder<T>& second, const T* grad_boxes,
                                  const T* deltas, const T* anchors, const acc_t<T>* image_sizes,
                                  DecodeParams params, T* grad_deltas, T* grad_anchors) {
  using A = acc_t<T>;
  parallel_for(num_anchors, kBlock, [=](int64_t begin, int64_t end) {
    Box<A> sums[kBlock] = {};
    for (int64_t row = 0; row < rows; ++row) {
      for (int64_t j = begin; j < end; ++j) {
        const int64_t i = row * num_anchors + j;
        Deltas<A> grad;
        Box<A> grad_grad, grad_anchor;
        decode_box_double_backward(dual_of(load_deltas(deltas, i), load_deltas(second.v, i)),
                                   dual_of(load_box(anchors, j), load_box(second.v_anchors, j)),
                                   params, limits_of(params, image_sizes, i),
                                   load_box(grad_boxes, i), &grad_grad, &grad, &grad_anchor);
        store_box(second.grad_grad, i, grad_grad);
        store_deltas(grad_deltas, i, grad);
        add_to(&sums[j - begin], grad_anchor);
      }
    }
    for (int64_t j = begin; j < end; ++j) store_box(grad_anchors, j, sums[j - begin]);
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
