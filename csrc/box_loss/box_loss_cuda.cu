// SPDX-License-Identifier: Apache-2.0
#include <type_traits>

#include "box_loss/box_loss.h"
#include "common/box_words.cuh"
#include "common/launch.cuh"
#include "common/loss_sum.cuh"

namespace pydet {
namespace cuda {
namespace {

constexpr int kThreads = kLossThreads;

// A box of numbers, or of dual numbers with v for the tangents.
template <bool kDual, class T>
__device__ auto load_numbers(const T* boxes, const T* v, int64_t index) {
  using A = acc_t<T>;
  const Box<A> box = read_box(boxes, index);
  if constexpr (kDual) {
    const Box<A> t = read_box(v, index);
    return Box<Dual<A>>{{box.x1, t.x1}, {box.y1, t.y1}, {box.x2, t.x2}, {box.y2, t.y2}};
  } else {
    return box;
  }
}

// The number itself, or the tangent of a dual number.
__device__ float result_of(float x) { return x; }
__device__ double result_of(double x) { return x; }
template <class A>
__device__ A result_of(const Dual<A>& x) {
  return x.tangent;
}

// A block takes a piece of pairs at a time: stores their losses, or the sum of them.
template <class T, class Kind, bool kDual>
__global__ void __launch_bounds__(kThreads, 2)
    box_loss_kernel(BoxLossArgs<T> args, acc_t<T>* loss, double* partials) {
  using A = acc_t<T>;
  using C = std::conditional_t<kDual, Dual<A>, A>;
  const C eps(static_cast<A>(args.eps));
  const int64_t pieces = ceil_div(args.count, kBoxLossPiece);
  for (int64_t piece = blockIdx.x; piece < pieces; piece += gridDim.x) {
    const int64_t begin = piece * kBoxLossPiece;
    const int64_t end = min_of(begin + kBoxLossPiece, args.count);
    double sum = 0;
    for (int64_t i = begin + threadIdx.x; i < end; i += kThreads) {
      const A value = result_of(pair_loss<Kind>(load_numbers<kDual>(args.boxes1, args.v1, i),
                                                load_numbers<kDual>(args.boxes2, args.v2, i), eps));
      if (loss != nullptr) {
        loss[i] = value;
      } else {
        sum += static_cast<double>(value);
      }
    }
    if (partials != nullptr) {
      sum = block_sum(sum);
      if (threadIdx.x == 0) partials[piece] = sum;
    }
  }
}

template <class T, class Kind, bool kDual>
__global__ void __launch_bounds__(kThreads)
    box_loss_backward_kernel(BoxLossArgs<T> args, bool of_sum, const acc_t<T>* grad_loss,
                             T* grad_boxes1, T* grad_boxes2) {
  using A = acc_t<T>;
  using C = std::conditional_t<kDual, Dual<A>, A>;
  const C eps(static_cast<A>(args.eps));
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t i = blockIdx.x * static_cast<int64_t>(kThreads) + threadIdx.x; i < args.count;
       i += step) {
    const A grad = of_sum ? static_cast<A>(*grad_loss * args.scale) : grad_loss[i];
    Box<C> a, b;
    pair_loss_backward<Kind>(load_numbers<kDual>(args.boxes1, args.v1, i),
                             load_numbers<kDual>(args.boxes2, args.v2, i), eps, C(grad), &a, &b);
    write_box<T>(grad_boxes1, i,
                 {result_of(a.x1), result_of(a.y1), result_of(a.x2), result_of(a.y2)});
    write_box<T>(grad_boxes2, i,
                 {result_of(b.x1), result_of(b.y1), result_of(b.x2), result_of(b.y2)});
  }
}

template <class T>
void launch_forward(const BoxLossArgs<T>& args, acc_t<T>* loss, double* partials,
                    CUstream_st* stream) {
  with_kind_of(args, [&](auto kind, auto along_v) {
    launch(box_loss_kernel<T, decltype(kind), decltype(along_v)::value>,
           grid_size(box_loss_pieces(args.count), 1), kThreads, 0, stream, args, loss, partials);
  });
}

}  // namespace

template <class T>
const char* box_loss(const BoxLossArgs<T>& args, acc_t<T>* loss, CUstream_st* stream) {
  if (args.count == 0) return nullptr;
  launch_forward<T>(args, loss, nullptr, stream);
  return launch_error();
}

template <class T>
const char* box_loss_sum(const BoxLossArgs<T>& args, double* partials, acc_t<T>* sum,
                         CUstream_st* stream) {
  if (args.count != 0) {
    launch_forward<T>(args, nullptr, partials, stream);
    if (const char* error = launch_error()) return error;
  }
  // Of no pairs the mean is 0 as well, whatever the scale is.
  return add_partials(1, box_loss_pieces(args.count), args.count == 0 ? 0.0 : args.scale, partials,
                      sum, stream);
}

template <class T>
const char* box_loss_backward(const BoxLossArgs<T>& args, bool of_sum, const acc_t<T>* grad_loss,
                              T* grad_boxes1, T* grad_boxes2, CUstream_st* stream) {
  if (args.count == 0) return nullptr;
  with_kind_of(args, [&](auto kind, auto along_v) {
    launch(box_loss_backward_kernel<T, decltype(kind), decltype(along_v)::value>,
           grid_size(args.count, kThreads), kThreads, 0, stream, args, of_sum, grad_loss,
           grad_boxes1, grad_boxes2);
  });
  return launch_error();
}

template const char* box_loss(const BoxLossArgs<float>&, float*, CUstream_st*);
template const char* box_loss(const BoxLossArgs<double>&, double*, CUstream_st*);
template const char* box_loss(const BoxLossArgs<Half>&, float*, CUstream_st*);
template const char* box_loss(const BoxLossArgs<BFloat16>&, float*, CUstream_st*);

template const char* box_loss_sum(const BoxLossArgs<float>&, double*, float*, CUstream_st*);
template const char* box_loss_sum(const BoxLossArgs<double>&, double*, double*, CUstream_st*);
template const char* box_loss_sum(const BoxLossArgs<Half>&, double*, float*, CUstream_st*);
template const char* box_loss_sum(const BoxLossArgs<BFloat16>&, double*, float*, CUstream_st*);

template const char* box_loss_backward(const BoxLossArgs<float>&, bool, const float*, float*,
                                       float*, CUstream_st*);
template const char* box_loss_backward(const BoxLossArgs<double>&, bool, const double*, double*,
                                       double*, CUstream_st*);
template const char* box_loss_backward(const BoxLossArgs<Half>&, bool, const float*, Half*, Half*,
                                       CUstream_st*);
template const char* box_loss_backward(const BoxLossArgs<BFloat16>&, bool, const float*, BFloat16*,
                                       BFloat16*, CUstream_st*);

}  // namespace cuda
}  // namespace pydet
