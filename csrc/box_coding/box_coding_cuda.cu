// SPDX-License-Identifier: Apache-2.0
#include "box_coding/box_coding.h"
#include "common/box_deltas.h"
#include "common/box_words.cuh"
#include "common/launch.cuh"

namespace pydet {
namespace cuda {
namespace {

constexpr int kThreads = 256;  // boxes a block, one a thread

// Deltas, moved as boxes are.
template <class T>
__device__ Deltas<acc_t<T>> read_deltas(const T* deltas, int64_t index) {
  return load_deltas(load_words(deltas, index).values, 0);
}
template <class T>
__device__ void write_deltas(T* deltas, int64_t index, const Deltas<acc_t<T>>& value) {
  BoxWords<T> words;
  store_deltas(words.values, 0, value);
  store_words(deltas, index, words);
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    encode_boxes_kernel(int64_t count, int64_t num_anchors, const T* boxes, const T* anchors,
                        Deltas<acc_t<T>> weights, T* deltas) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t i = blockIdx.x * static_cast<int64_t>(kThreads) + threadIdx.x; i < count;
       i += step) {
    write_deltas(deltas, i,
                 encode_box(read_box(boxes, i), read_box(anchors, i % num_anchors), weights));
  }
}

// A thread takes one anchor through all rows.
template <class T>
__global__ void __launch_bounds__(kThreads)
    encode_boxes_backward_kernel(int64_t rows, int64_t num_anchors, const T* grad_deltas,
                                 const T* boxes, const T* anchors, Deltas<acc_t<T>> weights,
                                 T* grad_boxes, T* grad_anchors) {
  using A = acc_t<T>;
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t j = blockIdx.x * static_cast<int64_t>(kThreads) + threadIdx.x; j < num_anchors;
       j += step) {
    const Box<A> anchor = read_box(anchors, j);
    Box<A> sum{};
    for (int64_t row = 0; row < rows; ++row) {
      const int64_t i = row * num_anchors + j;
      Box<A> grad_box, grad_anchor;
      encode_box_backward(read_box(boxes, i), anchor, weights, read_deltas(grad_deltas, i),
                          &grad_box, &grad_anchor);
      write_box(grad_boxes, i, grad_box);
      add_to(&sum, grad_anchor);
    }
    write_box(grad_anchors, j, sum);
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    decode_boxes_kernel(int64_t count, int64_t num_anchors, const T* deltas, const T* anchors,
                        const acc_t<T>* image_sizes, DecodeParams params, T* boxes) {
  using A = acc_t<T>;
  const Deltas<A> weights = to_deltas<A>(params.weights);
  const A scale_clamp = static_cast<A>(params.scale_clamp);
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t i = blockIdx.x * static_cast<int64_t>(kThreads) + threadIdx.x; i < count;
       i += step) {
    write_box(boxes, i,
              decode_box(read_deltas(deltas, i), read_box(anchors, i % num_anchors), weights,
                         scale_clamp, limits_of(params, image_sizes, i)));
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    decode_boxes_backward_kernel(int64_t rows, int64_t num_anchors, const T* grad_boxes,
                                 const T* deltas, const T* anchors, const acc_t<T>* image_sizes,
                                 DecodeParams params, T* grad_deltas, T* grad_anchors) {
  using A = acc_t<T>;
  const Deltas<A> weights = to_deltas<A>(params.weights);
  const A scale_clamp = static_cast<A>(params.scale_clamp);
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t j = blockIdx.x * static_cast<int64_t>(kThreads) + threadIdx.x; j < num_anchors;
       j += step) {
    const Box<A> anchor = read_box(anchors, j);
    Box<A> sum{};
    for (int64_t row = 0; row < rows; ++row) {
      const int64_t i = row * num_anchors + j;
      Deltas<A> grad;
      Box<A> grad_anchor;
      decode_box_backward(read_deltas(deltas, i), anchor, weights, scale_clamp,
                          limits_of(params, image_sizes, i), read_box(grad_boxes, i), &grad,
                          &grad_anchor);
      write_deltas(grad_deltas, i, grad);
      add_to(&sum, grad_anchor);
    }
    write_box(grad_anchors, j, sum);
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    encode_boxes_double_backward_kernel(int64_t rows, int64_t num_anchors,
                                        CodingSecondOrder<T> second, const T* grad_deltas,
                                        const T* boxes, const T* anchors, BoxCodingWeights weights,
                                        T* grad_boxes, T* grad_anchors) {
  using A = acc_t<T>;
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t j = blockIdx.x * static_cast<int64_t>(kThreads) + threadIdx.x; j < num_anchors;
       j += step) {
    const Box<Dual<A>> anchor = dual_of(read_box(anchors, j), read_box(second.v_anchors, j));
    Box<A> sum{};
    for (int64_t row = 0; row < rows; ++row) {
      const int64_t i = row * num_anchors + j;
      Deltas<A> grad_grad;
      Box<A> grad_box, grad_anchor;
      encode_box_double_backward(dual_of(read_box(boxes, i), read_box(second.v, i)), anchor,
                                 weights, read_deltas(grad_deltas, i), &grad_grad, &grad_box,
                                 &grad_anchor);
      write_deltas(second.grad_grad, i, grad_grad);
      write_box(grad_boxes, i, grad_box);
      add_to(&sum, grad_anchor);
    }
    write_box(grad_anchors, j, sum);
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    decode_boxes_double_backward_kernel(int64_t rows, int64_t num_anchors,
                                        CodingSecondOrder<T> second, const T* grad_boxes,
                                        const T* deltas, const T* anchors,
                                        const acc_t<T>* image_sizes, DecodeParams params,
                                        T* grad_deltas, T* grad_anchors) {
  using A = acc_t<T>;
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t j = blockIdx.x * static_cast<int64_t>(kThreads) + threadIdx.x; j < num_anchors;
       j += step) {
    const Box<Dual<A>> anchor = dual_of(read_box(anchors, j), read_box(second.v_anchors, j));
    Box<A> sum{};
    for (int64_t row = 0; row < rows; ++row) {
      const int64_t i = row * num_anchors + j;
      Deltas<A> grad;
      Box<A> grad_grad, grad_anchor;
      decode_box_double_backward(dual_of(read_deltas(deltas, i), read_deltas(second.v, i)), anchor,
                                 params, limits_of(params, image_sizes, i), read_box(grad_boxes, i),
                                 &grad_grad, &grad, &grad_anchor);
      write_box(second.grad_grad, i, grad_grad);
      write_deltas(grad_deltas, i, grad);
      add_to(&sum, grad_anchor);
    }
    write_box(grad_anchors, j, sum);
  }
}

}  // namespace

template <class T>
const char* encode_boxes(int64_t rows, int64_t num_anchors, const T* boxes, const T* anchors,
                         BoxCodingWeights weights, T* deltas, CUstream_st* stream) {
  const int64_t count = rows * num_anchors;
  if (count == 0) return nullptr;
  launch(encode_boxes_kernel<T>, grid_size(count, kThreads), kThreads, 0, stream, count,
         num_anchors, boxes, anchors, to_deltas<acc_t<T>>(weights), deltas);
  return launch_error();
}

template <class T>
const char* encode_boxes_backward(int64_t rows, int64_t num_anchors, const T* grad_deltas,
                                  const T* boxes, const T* anchors, BoxCodingWeights weights,
                                  T* grad_boxes, T* grad_anchors, CUstream_st* stream) {
  if (num_anchors == 0) return nullptr;
  launch(encode_boxes_backward_kernel<T>, grid_size(num_anchors, kThreads), kThreads, 0, stream,
         rows, num_anchors, grad_deltas, boxes, anchors, to_deltas<acc_t<T>>(weights), grad_boxes,
         grad_anchors);
  return launch_error();
}

template <class T>
const char* decode_boxes(int64_t rows, int64_t num_anchors, const T* deltas, const T* anchors,
                         const acc_t<T>* image_sizes, DecodeParams params, T* boxes,
                         CUstream_st* stream) {
  const int64_t count = rows * num_anchors;
  if (count == 0) return nullptr;
  launch(decode_boxes_kernel<T>, grid_size(count, kThreads), kThreads, 0, stream, count,
         num_anchors, deltas, anchors, image_sizes, params, boxes);
  return launch_error();
}

template <class T>
const char* decode_boxes_backward(int64_t rows, int64_t num_anchors, const T* grad_boxes,
                                  const T* deltas, const T* anchors, const acc_t<T>* image_sizes,
                                  DecodeParams params, T* grad_deltas, T* grad_anchors,
                                  CUstream_st* stream) {
  if (num_anchors == 0) return nullptr;
  launch(decode_boxes_backward_kernel<T>, grid_size(num_anchors, kThreads), kThreads, 0, stream,
         rows, num_anchors, grad_boxes, deltas, anchors, image_sizes, params, grad_deltas,
         grad_anchors);
  return launch_error();
}

template <class T>
const char* encode_boxes_double_backward(int64_t rows, int64_t num_anchors,
                                         const CodingSecondOrder<T>& second, const T* grad_deltas,
                                         const T* boxes, const T* anchors, BoxCodingWeights weights,
                                         T* grad_boxes, T* grad_anchors, CUstream_st* stream) {
  if (num_anchors == 0) return nullptr;
  launch(encode_boxes_double_backward_kernel<T>, grid_size(num_anchors, kThreads), kThreads, 0,
         stream, rows, num_anchors, second, grad_deltas, boxes, anchors, weights, grad_boxes,
         grad_anchors);
  return launch_error();
}

template <class T>
const char* decode_boxes_double_backward(int64_t rows, int64_t num_anchors,
                                         const CodingSecondOrder<T>& second, const T* grad_boxes,
                                         const T* deltas, const T* anchors,
                                         const acc_t<T>* image_sizes, DecodeParams params,
                                         T* grad_deltas, T* grad_anchors, CUstream_st* stream) {
  if (num_anchors == 0) return nullptr;
  launch(decode_boxes_double_backward_kernel<T>, grid_size(num_anchors, kThreads), kThreads, 0,
         stream, rows, num_anchors, second, grad_boxes, deltas, anchors, image_sizes, params,
         grad_deltas, grad_anchors);
  return launch_error();
}

template const char* encode_boxes(int64_t, int64_t, const float*, const float*, BoxCodingWeights,
                                  float*, CUstream_st*);
template const char* encode_boxes(int64_t, int64_t, const double*, const double*, BoxCodingWeights,
                                  double*, CUstream_st*);
template const char* encode_boxes(int64_t, int64_t, const Half*, const Half*, BoxCodingWeights,
                                  Half*, CUstream_st*);
template const char* encode_boxes(int64_t, int64_t, const BFloat16*, const BFloat16*,
                                  BoxCodingWeights, BFloat16*, CUstream_st*);

template const char* encode_boxes_backward(int64_t, int64_t, const float*, const float*,
                                           const float*, BoxCodingWeights, float*, float*,
                                           CUstream_st*);
template const char* encode_boxes_backward(int64_t, int64_t, const double*, const double*,
                                           const double*, BoxCodingWeights, double*, double*,
                                           CUstream_st*);
template const char* encode_boxes_backward(int64_t, int64_t, const Half*, const Half*, const Half*,
                                           BoxCodingWeights, Half*, Half*, CUstream_st*);
template const char* encode_boxes_backward(int64_t, int64_t, const BFloat16*, const BFloat16*,
                                           const BFloat16*, BoxCodingWeights, BFloat16*, BFloat16*,
                                           CUstream_st*);

template const char* decode_boxes(int64_t, int64_t, const float*, const float*, const float*,
                                  DecodeParams, float*, CUstream_st*);
template const char* decode_boxes(int64_t, int64_t, const double*, const double*, const double*,
                                  DecodeParams, double*, CUstream_st*);
template const char* decode_boxes(int64_t, int64_t, const Half*, const Half*, const float*,
                                  DecodeParams, Half*, CUstream_st*);
template const char* decode_boxes(int64_t, int64_t, const BFloat16*, const BFloat16*, const float*,
                                  DecodeParams, BFloat16*, CUstream_st*);

template const char* decode_boxes_backward(int64_t, int64_t, const float*, const float*,
                                           const float*, const float*, DecodeParams, float*, float*,
                                           CUstream_st*);
template const char* decode_boxes_backward(int64_t, int64_t, const double*, const double*,
                                           const double*, const double*, DecodeParams, double*,
                                           double*, CUstream_st*);
template const char* decode_boxes_backward(int64_t, int64_t, const Half*, const Half*, const Half*,
                                           const float*, DecodeParams, Half*, Half*, CUstream_st*);
template const char* decode_boxes_backward(int64_t, int64_t, const BFloat16*, const BFloat16*,
                                           const BFloat16*, const float*, DecodeParams, BFloat16*,
                                           BFloat16*, CUstream_st*);

template const char* encode_boxes_double_backward(int64_t, int64_t, const CodingSecondOrder<float>&,
                                                  const float*, const float*, const float*,
                                                  BoxCodingWeights, float*, float*, CUstream_st*);
template const char* encode_boxes_double_backward(int64_t, int64_t,
                                                  const CodingSecondOrder<double>&, const double*,
                                                  const double*, const double*, BoxCodingWeights,
                                                  double*, double*, CUstream_st*);
template const char* encode_boxes_double_backward(int64_t, int64_t, const CodingSecondOrder<Half>&,
                                                  const Half*, const Half*, const Half*,
                                                  BoxCodingWeights, Half*, Half*, CUstream_st*);
template const char* encode_boxes_double_backward(int64_t, int64_t,
                                                  const CodingSecondOrder<BFloat16>&,
                                                  const BFloat16*, const BFloat16*, const BFloat16*,
                                                  BoxCodingWeights, BFloat16*, BFloat16*,
                                                  CUstream_st*);

template const char* decode_boxes_double_backward(int64_t, int64_t, const CodingSecondOrder<float>&,
                                                  const float*, const float*, const float*,
                                                  const float*, DecodeParams, float*, float*,
                                                  CUstream_st*);
template const char* decode_boxes_double_backward(int64_t, int64_t,
                                                  const CodingSecondOrder<double>&, const double*,
                                                  const double*, const double*, const double*,
                                                  DecodeParams, double*, double*, CUstream_st*);
template const char* decode_boxes_double_backward(int64_t, int64_t, const CodingSecondOrder<Half>&,
                                                  const Half*, const Half*, const Half*,
                                                  const float*, DecodeParams, Half*, Half*,
                                                  CUstream_st*);
template const char* decode_boxes_double_backward(int64_t, int64_t,
                                                  const CodingSecondOrder<BFloat16>&,
                                                  const BFloat16*, const BFloat16*, const BFloat16*,
                                                  const float*, DecodeParams, BFloat16*, BFloat16*,
                                                  CUstream_st*);

}  // namespace cuda
}  // namespace pydet
