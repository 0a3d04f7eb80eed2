// SPDX-License-Identifier: Apache-2.0
#include "common/loss_sum.cuh"
#include "common/pack.cuh"
#include "common/softmax_focal.h"
#include "softmax_focal_loss/softmax_focal_loss.h"

namespace pydet {
namespace cuda {
namespace {

constexpr unsigned int kAllLanes = 0xffffffffu;

// The threads that share a row: a part of a warp, a warp or the block. Each takes every kGroup-th
// pack of columns where rows lie at multiples of 16 bytes, else every kGroup-th column.
template <int kGroup>
struct Group {
  static constexpr int kRows = kLossThreads / kGroup;  // rows of the block at a time

  __device__ static int row() { return static_cast<int>(threadIdx.x) / kGroup; }
  __device__ static int thread() { return static_cast<int>(threadIdx.x) % kGroup; }

  // The join of all threads' values, for all; every thread of the block must call it.
  template <class V, class Join>
  __device__ static V reduce(V value, const Join& join_two) {
    constexpr int kWidth = kGroup < 32 ? kGroup : 32;
    for (int lane = kWidth / 2; lane > 0; lane /= 2) {
      value = join_two(value, __shfl_xor_sync(kAllLanes, value, lane));
    }
    if constexpr (kGroup > 32) {
      __shared__ V parts[kLossThreads / 32];
      __syncthreads();  // nobody reads the parts of the last call any more
      if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = value;
      __syncthreads();
      value = parts[0];
      for (int warp = 1; warp < kLossThreads / 32; ++warp) value = join_two(value, parts[warp]);
    }
    return value;
  }

  // Calls body(column, count, values) for this thread's columns of a row of `classes`; `pointers`
  // are rows of that length, and values[p][k] is the column + k of the row p.
  template <int kPointers, class T, class Body>
  __device__ static void for_each_column(const T* const (&pointers)[kPointers], int64_t classes,
                                         bool aligned, const Body& body) {
    constexpr int kSize = Pack<T>::kSize;
    acc_t<T> values[kPointers][kSize];
    if (aligned) {
      for (int64_t j = thread() * kSize; j < classes; j += kGroup * kSize) {
#pragma unroll
        for (int p = 0; p < kPointers; ++p) load_pack(pointers[p] + j, kSize, true, values[p]);
        body(j, std::integral_constant<int, kSize>{}, values);
      }
    } else {
      for (int64_t j = thread(); j < classes; j += kGroup) {
#pragma unroll
        for (int p = 0; p < kPointers; ++p) values[p][0] = load(pointers[p] + j);
        body(j, std::integral_constant<int, 1>{}, values);
      }
    }
  }
};

template <class T, int kCount>
__device__ void store_columns(T* p, std::integral_constant<int, kCount>, const acc_t<T>* values) {
  if constexpr (kCount == 1) {
    store(p, values[0]);
  } else {
    store_pack(p, kCount, true, values);
  }
}

// The sum over all columns but the target's; for all threads of the group.
template <int kGroup, class T>
__device__ ExpSum<acc_t<T>> sum_others(const T* x, int64_t classes, int64_t target, bool active,
                                       bool aligned) {
  using A = acc_t<T>;
  ExpSum<A> sum{-static_cast<A>(INFINITY), A(0)};
  const T* const rows[] = {x};
  Group<kGroup>::for_each_column(
      rows, active ? classes : 0, aligned, [&](int64_t j, auto count, const auto& values) {
#pragma unroll
        for (int k = 0; k < decltype(count)::value; ++k) {
          const A value = values[0][k];
          if (j + k == target) continue;
          // One exponential for both cases, so that lanes need not part.
          const bool above = value > sum.highest;
          const A factor = exp_below(above ? sum.highest : value, above ? value : sum.highest);
          sum.sum = above ? sum.sum * factor + A(1) : sum.sum + factor;
          sum.highest = above ? value : sum.highest;
        }
      });
  // All sums are brought to the group's highest value, an exponential a thread, and then added.
  const A highest = Group<kGroup>::reduce(sum.highest, [](A a, A b) { return max_of(a, b); });
  const A scaled = sum.sum * exp_below(sum.highest, highest);
  return {highest, Group<kGroup>::reduce(scaled, [](A a, A b) { return a + b; })};
}

// All of one row, by its group; every thread of the block must call it, `active` or not. Returns
// the loss, or the gradient of its gradient.
template <int kGroup, int kGamma, Pass kPass, class T>
__device__ acc_t<T> run_row(const SoftmaxFocalCall<T>& call, int64_t segment, int64_t number,
                            bool active, bool aligned) {
  using A = acc_t<T>;
  using G = Group<kGroup>;
  const int64_t classes = call.classes;
  Target target{-1, true};
  if (active) target = target_of(call.labels[number], classes, call.background, call.ignored);
  const bool valid = target.column >= 0;
  const T* x = call.inputs + number * classes;
  T* grad_inputs = kPass == Pass::kForward ? nullptr : call.grad_inputs + number * classes;
  const A fill = target.ignored ? A(0) : static_cast<A>(NAN);
  if (active && !valid && kPass != Pass::kForward) {
    for (int64_t j = G::thread(); j < classes; j += kGroup) store(grad_inputs + j, fill);
  }
  const ExpSum<A> others = sum_others<kGroup>(x, classes, target.column, valid, aligned);
  const A share = others.sum == A(0) ? A(0) : A(1) / others.sum;
  A u = A(0), weight = A(0), grad = A(0);
  const A gamma = static_cast<A>(call.gamma);
  if (valid) {
    u = margin_of(others, A(load(x + target.column)));
    weight = class_weight(call.class_weights, call.alpha, target.column, call.background);
    if (kPass != Pass::kForward) {
      grad = call.grad_sums == nullptr ? A(load(call.grad_loss + number))
                                       : static_cast<A>(call.grad_sums[segment] * call.scale);
    }
  }
  if constexpr (kPass == Pass::kForward) {
    return valid ? weight * focal_negative<kGamma>(u, gamma) : fill;
  } else if constexpr (kPass == Pass::kBackward) {
    const A factor = grad * weight * focal_negative_backward<kGamma>(u, gamma);
    const A scaled = factor * share;
    const T* const rows[] = {x};
    G::for_each_column(rows, valid ? classes : 0, aligned,
                       [&](int64_t j, auto count, const auto& values) {
                         A results[Pack<T>::kSize];
#pragma unroll
                         for (int k = 0; k < decltype(count)::value; ++k) {
                           const A e = exp_below(values[0][k], others.highest);
                           results[k] = j + k == target.column ? -factor : scaled * e;
                         }
                         store_columns(grad_inputs + j, count, results);
                       });
    return A(0);
  } else {
    const T* v = call.grad_grad + number * classes;
    const T* const rows[] = {x, v};
    A mean = A(0);
    G::for_each_column(rows, valid ? classes : 0, aligned,
                       [&](int64_t j, auto count, const auto& values) {
#pragma unroll
                         for (int k = 0; k < decltype(count)::value; ++k) {
                           if (j + k == target.column) continue;
                           mean += exp_below(values[0][k], others.highest) * values[1][k];
                         }
                       });
    mean = G::reduce(mean, [](A a, A b) { return a + b; }) * share;
    if (!valid) return fill;
    const SecondSlopes<A> slopes =
        second_slopes(u, gamma, weight, grad, mean - A(load(v + target.column)));
    G::for_each_column(rows, classes, aligned, [&](int64_t j, auto count, const auto& values) {
      A results[Pack<T>::kSize];
#pragma unroll
      for (int k = 0; k < decltype(count)::value; ++k) {
        const A slope = slopes.along + slopes.across * (values[1][k] - mean);
        const A result = share * exp_below(values[0][k], others.highest) * slope;
        results[k] = j + k == target.column ? -slopes.along : result;
      }
      store_columns(grad_inputs + j, count, results);
    });
    return slopes.of_grad;
  }
}

// Pieces of rows: their results, and the sum of each piece.
template <class T, int kGroup, int kGamma, Pass kPass>
__global__ void __launch_bounds__(kLossThreads, sizeof(T) == 8 ? 2 : 4)
    softmax_focal_kernel(SoftmaxFocalCall<T> call, int64_t pieces, bool aligned) {
  const int64_t length = call.rows / call.segments, piece_rows = softmax_focal_rows(call.classes);
  for (int64_t piece = blockIdx.x; piece < call.segments * pieces; piece += gridDim.x) {
    const int64_t segment = piece / pieces, offset = (piece - segment * pieces) * piece_rows;
    const int64_t begin = segment * length + offset;
    const int64_t end = segment * length + min_of(offset + piece_rows, length);
    double sum = 0;
    for (int64_t first = begin; first < end; first += Group<kGroup>::kRows) {
      const int64_t row = first + Group<kGroup>::row();
      const bool active = row < end;
      const acc_t<T> loss =
          run_row<kGroup, kGamma, kPass>(call, segment, active ? row : begin, active, aligned);
      if (!active || Group<kGroup>::thread() != 0) continue;
      if (call.losses != nullptr) store(call.losses + row, loss);
      sum += static_cast<double>(loss);
    }
    if (call.sums != nullptr) {
      sum = block_sum(sum);
      if (threadIdx.x == 0) call.partials[piece] = sum;
    }
  }
}

template <class T, int kGroup>
void launch_group(const SoftmaxFocalCall<T>& call, int64_t pieces, bool aligned,
                  CUstream_st* stream) {
  using Kernel = void (*)(SoftmaxFocalCall<T>, int64_t, bool);
  Kernel kernel = softmax_focal_kernel<T, kGroup, kAnyGamma, Pass::kDoubleBackward>;
  if (call.pass == Pass::kForward) {
    kernel = call.gamma == 2 ? softmax_focal_kernel<T, kGroup, 2, Pass::kForward>
                             : softmax_focal_kernel<T, kGroup, kAnyGamma, Pass::kForward>;
  } else if (call.pass == Pass::kBackward) {
    kernel = call.gamma == 2 ? softmax_focal_kernel<T, kGroup, 2, Pass::kBackward>
                             : softmax_focal_kernel<T, kGroup, kAnyGamma, Pass::kBackward>;
  }
  launch(kernel, grid_size(call.segments * pieces, 1), kLossThreads, 0, stream, call, pieces,
         aligned);
}

}  // namespace

template <class T>
const char* softmax_focal_loss(const SoftmaxFocalCall<T>& call, CUstream_st* stream) {
  int64_t pieces = 0;
  if (call.rows > 0) {
    pieces = softmax_focal_pieces(call.rows / call.segments, call.classes, 1);
    const bool aligned = is_aligned(call.inputs) && is_aligned(call.grad_grad) &&
                         is_aligned(call.grad_inputs) && call.classes % Pack<T>::kSize == 0;
    // What is once a row costs all lanes of its group alike, as much as some 6 columns each do:
    // rows that are not long share a warp.
    if (call.classes <= 256) {
      launch_group<T, 8>(call, pieces, aligned, stream);
    } else if (call.classes <= 2048) {
      launch_group<T, 32>(call, pieces, aligned, stream);
    } else {
      launch_group<T, kLossThreads>(call, pieces, aligned, stream);
    }
    if (const char* error = launch_error()) return error;
  }
  if (call.sums == nullptr) return nullptr;
  return add_partials(call.segments, pieces, call.scale, call.partials, call.sums, stream);
}

template const char* softmax_focal_loss(const SoftmaxFocalCall<float>&, CUstream_st*);
template const char* softmax_focal_loss(const SoftmaxFocalCall<double>&, CUstream_st*);
template const char* softmax_focal_loss(const SoftmaxFocalCall<Half>&, CUstream_st*);
template const char* softmax_focal_loss(const SoftmaxFocalCall<BFloat16>&, CUstream_st*);

}  // namespace cuda
}  // namespace pydet
