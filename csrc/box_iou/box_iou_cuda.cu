// SPDX-License-Identifier: Apache-2.0
#include "box_iou/box_iou.h"
#include "common/launch.cuh"

namespace pydet {
namespace cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kColumns = 4;  // columns a thread: one 128-bit store of floats
constexpr int kRows = 16;    // rows a thread: it reads its boxes2 once for all of them

// Several values that are stored by one instruction.
template <class T>
struct alignas(sizeof(T) * kColumns) Pack {
  T values[kColumns];
};

// A box whose numbers are C: A, or Dual<A> with v for the tangents.
template <class C, class A>
__device__ Box<C> load_numbers(const A* boxes, const A* v, int64_t index) {
  const Box<A> box = load_box(boxes, index);
  if constexpr (sizeof(C) == sizeof(A)) {
    return box;
  } else {
    const Box<A> t = load_box(v, index);
    return {{box.x1, t.x1}, {box.y1, t.y1}, {box.x2, t.x2}, {box.y2, t.y2}};
  }
}

// The number itself, or the tangent of a dual number.
__device__ float result_of(float x) { return x; }
__device__ double result_of(double x) { return x; }
template <class A>
__device__ A result_of(const Dual<A>& x) {
  return x.tangent;
}

// A thread writes kRows x kColumns of one image's matrix: the overlaps, or their tangents.
// Neighbouring threads have neighbouring columns and go on with the next rows where those end, so
// no thread is idle, however few columns there are. The grid strides over all pieces: no matrix is
// too large for it.
template <class Kind, class C, class A>
__global__ void __launch_bounds__(kThreads)
    box_iou_kernel(BoxIouArgs args, const A* boxes1, const A* boxes2, const A* v1, const A* v2,
                   A* iou) {
  const int64_t n = args.num_boxes1, m = args.num_boxes2;
  const OverlapEps<C> eps{C(0), C(static_cast<A>(args.eps)), C(static_cast<A>(args.eps))};
  const int64_t packs = ceil_div<int64_t>(m, kColumns), runs = ceil_div<int64_t>(n, kRows);
  const int64_t pieces = args.batch * runs * packs, step = int64_t{gridDim.x} * kThreads;
  const bool aligned = m % kColumns == 0;  // then each row starts at a multiple of a pack
  for (int64_t piece = int64_t{blockIdx.x} * kThreads + threadIdx.x; piece < pieces;
       piece += step) {
    const int64_t image = piece / (runs * packs);
    const int64_t row_begin = piece / packs % runs * kRows;
    const int64_t row_end = min_of(row_begin + kRows, n);
    const int64_t column = piece % packs * kColumns;
    const int count = static_cast<int>(min_of<int64_t>(kColumns, m - column));
    MeasuredBox<C> b[kColumns];
#pragma unroll
    for (int k = 0; k < kColumns; ++k) {
      const int64_t j = image * m + (k < count ? column + k : column);
      b[k] = measure<Kind>(load_numbers<C>(boxes2, v2, j));
    }
    for (int64_t i = row_begin; i < row_end; ++i) {
      // Most warps have one run of rows: their threads read the same box.
      const MeasuredBox<C> a = measure<Kind>(load_numbers<C>(boxes1, v1, image * n + i));
      Pack<A> pack;
#pragma unroll
      for (int k = 0; k < kColumns; ++k) pack.values[k] = result_of(overlap<Kind>(a, b[k], eps));
      A* out = iou + (image * n + i) * m + column;
      if (aligned) {
        *reinterpret_cast<Pack<A>*>(out) = pack;
      } else {
#pragma unroll
        for (int k = 0; k < kColumns; ++k) {
          if (k < count) out[k] = pack.values[k];
        }
      }
    }
  }
}

template <class C>
__device__ OverlapSums<C> sum_of(const OverlapSums<C>& a, const OverlapSums<C>& b) {
  return {
      {a.ends.x1 + b.ends.x1, a.ends.y1 + b.ends.y1, a.ends.x2 + b.ends.x2, a.ends.y2 + b.ends.y2},
      a.area + b.area,
      a.centre_x + b.centre_x,
      a.centre_y + b.centre_y,
      a.angle + b.angle};
}

// One side of the gradient: that of `boxes`, summed over the others. By rows the boxes are boxes1,
// by columns boxes2; the arrays are those of the side, so `boxes` are [batch, count, 4].
template <class A>
struct Side {
  int64_t batch, count, others;
  A eps;
  const A *grad_iou, *boxes, *other_boxes, *v, *other_v;
  A* grad_boxes;
};

template <class Kind, class C, class A>
__device__ void store_gradient(const Side<A>& side, const Box<C>& box, int64_t index,
                               const OverlapSums<C>& sum) {
  const Box<C> grad = finish_backward<Kind>(box, sum);
  store_box(side.grad_boxes, index,
            {result_of(grad.x1), result_of(grad.y1), result_of(grad.x2), result_of(grad.y2)});
}

// All formulas are symmetric, so each side's boxes are the first of their pairs.
template <class Kind, class C, class A>
__device__ void add_pair(const MeasuredBox<C>& box, const Box<C>& other, const OverlapEps<C>& eps,
                         A grad, OverlapSums<C>* sum) {
  const PairGrads<C> g = overlap_backward<Kind>(box, measure<Kind>(other), eps, C(grad));
  *sum = sum_of(*sum, {g.ends_a, g.area, g.centre_x, g.centre_y, g.angle});
}

constexpr int kLanes = 8;    // columns a block: a sector of grad_iou is one row of them
constexpr int kGroups = 32;  // rows that are added up in parallel

// Gradient of boxes2: a block takes kLanes columns, its kGroups rows of threads take every
// kGroups-th row, and the parts are added in a fixed order.
template <class Kind, class C, class A>
__global__ void __launch_bounds__(kLanes* kGroups) box_iou_columns_kernel(Side<A> side) {
  __shared__ OverlapSums<C> parts[kGroups][kLanes];
  const OverlapEps<C> eps{C(0), C(side.eps), C(side.eps)};
  const int64_t blocks = ceil_div<int64_t>(side.count, kLanes);
  for (int64_t piece = blockIdx.x; piece < side.batch * blocks; piece += gridDim.x) {
    const int64_t image = piece / blocks, j = piece % blocks * kLanes + threadIdx.x;
    const int64_t index = image * side.count + j;
    OverlapSums<C> sum{};
    Box<C> box{};
    if (j < side.count) {
      box = load_numbers<C>(side.boxes, side.v, index);
      const MeasuredBox<C> measured = measure<Kind>(box);
      for (int64_t i = threadIdx.y; i < side.others; i += kGroups) {
        const int64_t other = image * side.others + i;
        add_pair<Kind>(measured, load_numbers<C>(side.other_boxes, side.other_v, other), eps,
                       load(side.grad_iou + other * side.count + j), &sum);
      }
    }
    parts[threadIdx.y][threadIdx.x] = sum;
    __syncthreads();
    // By halves: lane x of the lower half adds that of the upper.
    for (int half = kGroups / 2; half > 0; half /= 2) {
      if (static_cast<int>(threadIdx.y) < half) {
        parts[threadIdx.y][threadIdx.x] =
            sum_of(parts[threadIdx.y][threadIdx.x], parts[threadIdx.y + half][threadIdx.x]);
      }
      __syncthreads();
    }
    if (threadIdx.y == 0 && j < side.count)
      store_gradient<Kind>(side, box, index, parts[0][threadIdx.x]);
    __syncthreads();
  }
}

template <class A>
__device__ A from_below(A value, int delta) {
  return __shfl_down_sync(~0u, value, delta);
}
template <class A>
__device__ Dual<A> from_below(const Dual<A>& x, int delta) {
  return {__shfl_down_sync(~0u, x.value, delta), __shfl_down_sync(~0u, x.tangent, delta)};
}
template <class C>
__device__ OverlapSums<C> from_below(const OverlapSums<C>& s, int delta) {
  return {{from_below(s.ends.x1, delta), from_below(s.ends.y1, delta), from_below(s.ends.x2, delta),
           from_below(s.ends.y2, delta)},
          from_below(s.area, delta),
          from_below(s.centre_x, delta),
          from_below(s.centre_y, delta),
          from_below(s.angle, delta)};
}

constexpr int kWarp = 32;

// Gradient of boxes1: a warp takes a row, its lanes every 32nd column, and the lanes' parts are
// added in a fixed order.
template <class Kind, class C, class A>
__global__ void __launch_bounds__(kThreads) box_iou_rows_kernel(Side<A> side) {
  const OverlapEps<C> eps{C(0), C(side.eps), C(side.eps)};
  const int lane = threadIdx.x % kWarp;
  const int64_t warps = static_cast<int64_t>(gridDim.x) * (kThreads / kWarp);
  for (int64_t index = blockIdx.x * static_cast<int64_t>(kThreads / kWarp) + threadIdx.x / kWarp;
       index < side.batch * side.count; index += warps) {
    const Box<C> box = load_numbers<C>(side.boxes, side.v, index);
    const MeasuredBox<C> measured = measure<Kind>(box);
    const int64_t first = index / side.count * side.others;
    OverlapSums<C> sum{};
    for (int64_t j = lane; j < side.others; j += kWarp) {
      add_pair<Kind>(measured, load_numbers<C>(side.other_boxes, side.other_v, first + j), eps,
                     load(side.grad_iou + index * side.others + j), &sum);
    }
    for (int delta = kWarp / 2; delta > 0; delta /= 2) sum = sum_of(sum, from_below(sum, delta));
    if (lane == 0) store_gradient<Kind>(side, box, index, sum);
  }
}

// The overlaps, or their tangents along v1 and v2 where C is Dual<A>.
template <class C, class A>
const char* launch_pairs(const BoxIouArgs& args, const A* boxes1, const A* boxes2, const A* v1,
                         const A* v2, A* iou, CUstream_st* stream) {
  const int64_t pieces = args.batch * ceil_div<int64_t>(args.num_boxes1, kRows) *
                         ceil_div<int64_t>(args.num_boxes2, kColumns);
  if (pieces == 0) return nullptr;
  with_kind<false>(args.overlap, [&](auto kind) {
    launch(box_iou_kernel<decltype(kind), C, A>, grid_size(pieces, kThreads), kThreads, 0, stream,
           args, boxes1, boxes2, v1, v2, iou);
  });
  return launch_error();
}

template <class C, class A>
const char* launch_backward(const BoxIouArgs& args, const SecondOrder<A>& second, const A* grad_iou,
                            const A* boxes1, const A* boxes2, A* grad_boxes1, A* grad_boxes2,
                            CUstream_st* stream) {
  const int64_t n = args.num_boxes1, m = args.num_boxes2;
  const A eps = static_cast<A>(args.eps);
  const Side<A> rows{args.batch, n,      m,         eps,       grad_iou,
                     boxes1,     boxes2, second.v1, second.v2, grad_boxes1};
  const Side<A> columns{args.batch, m,      n,         eps,       grad_iou,
                        boxes2,     boxes1, second.v2, second.v1, grad_boxes2};
  with_kind<false>(args.overlap, [&](auto kind) {
    using Kind = decltype(kind);
    if (args.batch * n != 0) {
      launch(box_iou_rows_kernel<Kind, C, A>, grid_size(args.batch * n, kThreads / kWarp), kThreads,
             0, stream, rows);
    }
    if (args.batch * m != 0) {
      launch(box_iou_columns_kernel<Kind, C, A>,
             grid_size(args.batch * ceil_div<int64_t>(m, kLanes), 1), dim3(kLanes, kGroups), 0,
             stream, columns);
    }
  });
  return launch_error();
}

}  // namespace

template <class A>
const char* box_iou(const BoxIouArgs& args, const A* boxes1, const A* boxes2, A* iou,
                    CUstream_st* stream) {
  return launch_pairs<A, A>(args, boxes1, boxes2, nullptr, nullptr, iou, stream);
}

template <class A>
const char* box_iou_backward(const BoxIouArgs& args, const A* grad_iou, const A* boxes1,
                             const A* boxes2, A* grad_boxes1, A* grad_boxes2, CUstream_st* stream) {
  return launch_backward<A, A>(args, {}, grad_iou, boxes1, boxes2, grad_boxes1, grad_boxes2,
                               stream);
}

template <class A>
const char* box_iou_double_backward(const BoxIouArgs& args, const SecondOrder<A>& second,
                                    const A* grad_iou, const A* boxes1, const A* boxes2,
                                    A* grad_boxes1, A* grad_boxes2, CUstream_st* stream) {
  const char* error = launch_pairs<Dual<A>, A>(args, boxes1, boxes2, second.v1, second.v2,
                                               second.grad_grad_iou, stream);
  if (error != nullptr) return error;
  return launch_backward<Dual<A>, A>(args, second, grad_iou, boxes1, boxes2, grad_boxes1,
                                     grad_boxes2, stream);
}

template const char* box_iou(const BoxIouArgs&, const float*, const float*, float*, CUstream_st*);
template const char* box_iou(const BoxIouArgs&, const double*, const double*, double*,
                             CUstream_st*);

template const char* box_iou_backward(const BoxIouArgs&, const float*, const float*, const float*,
                                      float*, float*, CUstream_st*);
template const char* box_iou_backward(const BoxIouArgs&, const double*, const double*,
                                      const double*, double*, double*, CUstream_st*);

template const char* box_iou_double_backward(const BoxIouArgs&, const SecondOrder<float>&,
                                             const float*, const float*, const float*, float*,
                                             float*, CUstream_st*);
template const char* box_iou_double_backward(const BoxIouArgs&, const SecondOrder<double>&,
                                             const double*, const double*, const double*, double*,
                                             double*, CUstream_st*);

}  // namespace cuda
}  // namespace pydet
