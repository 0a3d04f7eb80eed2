// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <type_traits>

#include "box_loss/box_loss.h"
#include "common/isa.h"
#include "common/loss_cpu.h"
#include "common/parallel_for.h"

namespace pydet {
namespace cpu {
namespace {

// Pairs that are computed together, in arrays that stay in the first-level cache.
constexpr int64_t kChunk = 256;

// Boxes as a structure of arrays, so that one vector register holds one coordinate of many.
template <class A>
struct Coordinates {
  A x1[kChunk], y1[kChunk], x2[kChunk], y2[kChunk];

  template <class T>
  void load_boxes(const T* boxes, int64_t count) {
    for (int64_t i = 0; i < count; ++i) set(i, load_box(boxes, i));
    for (int64_t i = count; i < padded(count); ++i) set(i, {A(0), A(0), A(0), A(0)});
  }
  template <class T>
  void store_boxes(T* boxes, int64_t count) const {
    for (int64_t i = 0; i < count; ++i) store_box(boxes, i, box(i));
  }
  Box<A> box(int64_t i) const { return {x1[i], y1[i], x2[i], y2[i]}; }
  void set(int64_t i, const Box<A>& box) {
    x1[i] = box.x1;
    y1[i] = box.y1;
    x2[i] = box.x2;
    y2[i] = box.y2;
  }
};

// The boxes of a chunk: numbers, or dual numbers with v for their tangents.
template <class A, bool kDual>
struct Boxes {
  Coordinates<A> value, tangent;

  template <class T>
  void load_boxes(const T* boxes, const T* v, int64_t count) {
    value.load_boxes(boxes, count);
    if constexpr (kDual) tangent.load_boxes(v, count);
  }
  auto box(int64_t i) const {
    if constexpr (kDual) {
      return Box<Dual<A>>{{value.x1[i], tangent.x1[i]},
                          {value.y1[i], tangent.y1[i]},
                          {value.x2[i], tangent.x2[i]},
                          {value.y2[i], tangent.y2[i]}};
    } else {
      return value.box(i);
    }
  }
};

// The number itself, or the tangent of a dual number.
template <class A>
A result_of(A x) {
  return x;
}
template <class A>
A result_of(const Dual<A>& x) {
  return x.tangent;
}
template <class C>
auto result_of(const Box<C>& box) {
  using A = decltype(result_of(box.x1));
  return Box<A>{result_of(box.x1), result_of(box.y1), result_of(box.x2), result_of(box.y2)};
}

// The formulas, each a plain loop: that of float is compiled once an instruction set.

template <class A, bool kDual>
using PairLossLoop = void (*)(int64_t count, const Boxes<A, kDual>* a, const Boxes<A, kDual>* b,
                              A eps, A* values);

template <class A, bool kDual, class Kind>
struct ForwardLoop {
  using C = std::conditional_t<kDual, Dual<A>, A>;

  static void run(int64_t count, const Boxes<A, kDual>* a, const Boxes<A, kDual>* b, A eps,
                  A* __restrict values) {
    count = count / kLossLanes * kLossLanes;  // for the compiler
    for (int64_t i = 0; i < count; ++i)
      values[i] = result_of(pair_loss<Kind>(a->box(i), b->box(i), C(eps)));
  }
};

// The gradients of a chunk's boxes.
template <class A>
struct Gradients {
  Coordinates<A> a, b;
};

template <class A, bool kDual>
using GradientLoop = void (*)(int64_t count, const Boxes<A, kDual>* a, const Boxes<A, kDual>* b,
                              A eps, const A* grads, Gradients<A>* result);

template <class A, bool kDual, class Kind>
struct BackwardLoop {
  using C = std::conditional_t<kDual, Dual<A>, A>;

  static void run(int64_t count, const Boxes<A, kDual>* a, const Boxes<A, kDual>* b, A eps,
                  const A* __restrict grads, Gradients<A>* __restrict result) {
    count = count / kLossLanes * kLossLanes;
    for (int64_t i = 0; i < count; ++i) {
      Box<C> of_a, of_b;
      pair_loss_backward<Kind>(a->box(i), b->box(i), C(eps), C(grads[i]), &of_a, &of_b);
      result->a.set(i, result_of(of_a));
      result->b.set(i, result_of(of_b));
    }
  }
};

// The loop as a function that chooses the instruction set. Second derivatives in double go without.
template <class Loop, bool kPlain, class... Args>
auto best_of() {
  return [](int64_t count, Args... args) {
    if constexpr (kPlain) {
      Loop::run(count, args...);
    } else {
      run_on_best_isa<Loop>(count, args...);
    }
  };
}

template <class T, bool kDual>
struct LossPiece {
  using A = acc_t<T>;

  // Pairs [begin, end): their losses, or the sum of them.
  static void run(const BoxLossArgs<T>* args, PairLossLoop<A, kDual> loop, int64_t begin,
                  int64_t end, A* loss, double* sum) {
    Boxes<A, kDual> a, b;
    A values[kChunk];
    double total = 0;
    for (; begin < end; begin += kChunk) {
      const int64_t count = std::min(kChunk, end - begin);
      a.load_boxes(args->boxes1 + 4 * begin, kDual ? args->v1 + 4 * begin : nullptr, count);
      b.load_boxes(args->boxes2 + 4 * begin, kDual ? args->v2 + 4 * begin : nullptr, count);
      loop(padded(count), &a, &b, static_cast<A>(args->eps), values);
      if (loss != nullptr) {
        std::copy(values, values + count, loss + begin);
      } else {
        total += folded_sum(values, count);
      }
    }
    if (sum != nullptr) *sum = total;
  }
};

template <class T, bool kDual>
struct LossBackwardPiece {
  using A = acc_t<T>;

  static void run(const BoxLossArgs<T>* args, GradientLoop<A, kDual> loop, int64_t begin,
                  int64_t end, bool of_sum, const A* grad_loss, T* grad_boxes1, T* grad_boxes2) {
    Boxes<A, kDual> a, b;
    Gradients<A> result;
    A grads[kChunk] = {};
    if (of_sum) std::fill(grads, grads + kChunk, static_cast<A>(*grad_loss * args->scale));
    for (; begin < end; begin += kChunk) {
      const int64_t count = std::min(kChunk, end - begin);
      a.load_boxes(args->boxes1 + 4 * begin, kDual ? args->v1 + 4 * begin : nullptr, count);
      b.load_boxes(args->boxes2 + 4 * begin, kDual ? args->v2 + 4 * begin : nullptr, count);
      if (!of_sum) std::copy(grad_loss + begin, grad_loss + begin + count, grads);
      loop(padded(count), &a, &b, static_cast<A>(args->eps), grads, &result);
      result.a.store_boxes(grad_boxes1 + 4 * begin, count);
      result.b.store_boxes(grad_boxes2 + 4 * begin, count);
    }
  }
};

// The losses, or the sums of pieces in `partials`.
template <class T>
void run_forward(const BoxLossArgs<T>& args, acc_t<T>* loss, double* partials) {
  with_kind_of(args, [&](auto kind, auto along_v) {
    using A = acc_t<T>;
    constexpr bool kDual = decltype(along_v)::value;
    constexpr bool kPlain = kDual && std::is_same_v<A, double>;
    using Side = const Boxes<A, kDual>*;
    const PairLossLoop<A, kDual> loop =
        best_of<ForwardLoop<A, kDual, decltype(kind)>, kPlain, Side, Side, A, A*>();
    parallel_for(args.count, kBoxLossPiece, [&](int64_t begin, int64_t end) {
      run_on_best_isa<LossPiece<T, kDual>>(
          &args, loop, begin, end, loss,
          partials == nullptr ? nullptr : partials + begin / kBoxLossPiece);
    });
  });
}

}  // namespace

template <class T>
void box_loss(const BoxLossArgs<T>& args, acc_t<T>* loss) {
  run_forward(args, loss, nullptr);
}

template <class T>
void box_loss_sum(const BoxLossArgs<T>& args, double* partials, acc_t<T>* sum) {
  run_forward(args, static_cast<acc_t<T>*>(nullptr), partials);
  // Of no pairs the mean is 0 as well, whatever the scale is.
  add_partials(1, box_loss_pieces(args.count), args.count == 0 ? 0.0 : args.scale, partials, sum);
}

template <class T>
void box_loss_backward(const BoxLossArgs<T>& args, bool of_sum, const acc_t<T>* grad_loss,
                       T* grad_boxes1, T* grad_boxes2) {
  with_kind_of(args, [&](auto kind, auto along_v) {
    using A = acc_t<T>;
    constexpr bool kDual = decltype(along_v)::value;
    constexpr bool kPlain = kDual && std::is_same_v<A, double>;
    using Side = const Boxes<A, kDual>*;
    const GradientLoop<A, kDual> loop = best_of<BackwardLoop<A, kDual, decltype(kind)>, kPlain,
                                                Side, Side, A, const A*, Gradients<A>*>();
    parallel_for(args.count, kBoxLossPiece, [&](int64_t begin, int64_t end) {
      run_on_best_isa<LossBackwardPiece<T, kDual>>(&args, loop, begin, end, of_sum, grad_loss,
                                                   grad_boxes1, grad_boxes2);
    });
  });
}

template void box_loss(const BoxLossArgs<float>&, float*);
template void box_loss(const BoxLossArgs<double>&, double*);
template void box_loss(const BoxLossArgs<Half>&, float*);
template void box_loss(const BoxLossArgs<BFloat16>&, float*);

template void box_loss_sum(const BoxLossArgs<float>&, double*, float*);
template void box_loss_sum(const BoxLossArgs<double>&, double*, double*);
template void box_loss_sum(const BoxLossArgs<Half>&, double*, float*);
template void box_loss_sum(const BoxLossArgs<BFloat16>&, double*, float*);

template void box_loss_backward(const BoxLossArgs<float>&, bool, const float*, float*, float*);
template void box_loss_backward(const BoxLossArgs<double>&, bool, const double*, double*, double*);
template void box_loss_backward(const BoxLossArgs<Half>&, bool, const float*, Half*, Half*);
template void box_loss_backward(const BoxLossArgs<BFloat16>&, bool, const float*, BFloat16*,
                                BFloat16*);

}  // namespace cpu
}  // namespace pydet
