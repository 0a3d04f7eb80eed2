// SPDX-License-Identifier: Apache-2.0
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
// A coordinate that two instructions take is loaded once. GCC's generic tuning reads it from the
// tile each time, which slows the stores of a result that lies in no cache by a third.
#pragma GCC target("tune=skylake-avx512")
#endif
#include <algorithm>
#include <type_traits>
#include <vector>

#include "box_iou/box_iou.h"
#include "common/isa.h"
#include "common/parallel_for.h"

namespace pydet {
namespace cpu {
namespace {

// Columns a tile: its arrays stay in the first-level cache while the rows of boxes1 pass over them.
constexpr int64_t kTile = 1024;
// Not a power of two: arrays 2 KiB apart would share their lines of the cache.
constexpr int64_t kBackwardTile = 496;
// Pairs a thread takes at a time.
constexpr int64_t kGrain = 1 << 16;
// Rows a task of the backward: each task gives the sums of its columns, for these rows alone.
constexpr int64_t kBackwardRows = 256;
// Boxes whose parts a thread adds up at a time.
constexpr int64_t kFinish = 1 << 12;
// Columns that are computed together: a vector, or several.
constexpr int64_t kLanes = 16;

// boxes2 of one tile as a structure of arrays, so that one vector register holds one coordinate of
// many boxes. C is a number or a dual number.
template <class Kind, class C, int64_t kSize>
struct Tile {
  C x1[kSize], y1[kSize], x2[kSize], y2[kSize], area[kSize], angle[Kind::kHasAngle ? kSize : 1];

  void set(int64_t j, const Box<C>& box) {
    const MeasuredBox<C> measured = measure<Kind>(box);
    x1[j] = box.x1;
    y1[j] = box.y1;
    x2[j] = box.x2;
    y2[j] = box.y2;
    area[j] = measured.area;
    if constexpr (Kind::kHasAngle) angle[j] = measured.angle;
  }
  MeasuredBox<C> box(int64_t j) const {
    C its_angle = C(0);
    if constexpr (Kind::kHasAngle) its_angle = angle[j];
    return {{x1[j], y1[j], x2[j], y2[j]}, area[j], its_angle};
  }
  // Not while they are set: the compiler would take that loop box by box.
  bool none_inverted(int64_t count) const {
    int32_t good = 0;
    for (int64_t j = 0; j < count; ++j) good += not_inverted(Box<C>{x1[j], y1[j], x2[j], y2[j]});
    return good == count;
  }
};

template <class Kind>
struct BoxIou {
  template <class A, Isa kIsa>
  struct OfTile {
    using Sums = FusedSums<A, kIsa != Isa::kPortable>;
    using Columns = Tile<Kind, A, kTile>;

    // iou[i, j] for rows [row_begin, row_end) and the columns [begin, begin + count) of one image.
    static void run(A eps, int64_t row_begin, int64_t row_end, int64_t begin, int64_t count,
                    int64_t num_boxes2, const A* boxes1, const A* boxes2, A* iou) {
      Columns tile;
      for (int64_t j = 0; j < count; ++j) tile.set(j, load_box(boxes2, begin + j));
      const bool may_be_proper = (!Kind::kHasAngle || eps > A(0)) && tile.none_inverted(count);
      const Sums sums;
      const OverlapEps<A> all_eps{A(0), eps, eps};
      for (int64_t i = row_begin; i < row_end; ++i) {
        const MeasuredBox<A> a = measure<Kind>(load_box(boxes1, i));
        A* row = iou + i * num_boxes2 + begin;
        if (may_be_proper && has_area(a)) {
          fill_row<typename Kind::Proper>(a, tile, all_eps, sums, count, row);
        } else {
          fill_row<Kind>(a, tile, all_eps, sums, count, row);
        }
      }
    }

    template <class PairKind>
    static void fill_row(const MeasuredBox<A>& a, const Columns& tile, const OverlapEps<A>& eps,
                         const Sums& sums, int64_t count, A* row) {
      for (int64_t j = 0; j < count; ++j) row[j] = overlap<PairKind>(a, tile.box(j), eps, sums);
    }
  };
};

// Sums of kSize boxes as a structure of arrays.
template <class Kind, class C, int64_t kSize>
struct SumArrays {
  C x1[kSize], y1[kSize], x2[kSize], y2[kSize], area[kSize];
  C centre_x[Kind::kHasDistance ? kSize : 1], centre_y[Kind::kHasDistance ? kSize : 1];
  C angle[Kind::kHasAngle ? kSize : 1];

  // Adds a pair's share of its first (kFirst) or second box to box number j.
  template <bool kFirst>
  void add(int64_t j, const PairGrads<C>& grads) {
    const Box<C>& ends = kFirst ? grads.ends_a : grads.ends_b;
    x1[j] += ends.x1;
    y1[j] += ends.y1;
    x2[j] += ends.x2;
    y2[j] += ends.y2;
    area[j] += grads.area;
    if constexpr (Kind::kHasDistance) {
      centre_x[j] += kFirst ? grads.centre_x : -grads.centre_x;
      centre_y[j] += kFirst ? grads.centre_y : -grads.centre_y;
    }
    if constexpr (Kind::kHasAngle) angle[j] += kFirst ? grads.angle : -grads.angle;
  }
  OverlapSums<C> sums(int64_t j) const {
    OverlapSums<C> result{{x1[j], y1[j], x2[j], y2[j]}, area[j], C(0), C(0), C(0)};
    if constexpr (Kind::kHasDistance) {
      result.centre_x = centre_x[j];
      result.centre_y = centre_y[j];
    }
    if constexpr (Kind::kHasAngle) result.angle = angle[j];
    return result;
  }
};

template <class C>
OverlapSums<C> operator+(const OverlapSums<C>& a, const OverlapSums<C>& b) {
  return {
      {a.ends.x1 + b.ends.x1, a.ends.y1 + b.ends.y1, a.ends.x2 + b.ends.x2, a.ends.y2 + b.ends.y2},
      a.area + b.area,
      a.centre_x + b.centre_x,
      a.centre_y + b.centre_y,
      a.angle + b.angle};
}

// Where numbers are dual, their tangents are v1 and v2.
template <class C, class A>
Box<C> load_numbers(const A* boxes, [[maybe_unused]] const A* tangents, int64_t index) {
  const Box<A> box = load_box(boxes, index);
  if constexpr (std::is_same_v<C, A>) {
    return box;
  } else {
    const Box<A> v = load_box(tangents, index);
    return {{box.x1, v.x1}, {box.y1, v.y1}, {box.x2, v.x2}, {box.y2, v.y2}};
  }
}

// The arrays of one image, and one task of its backward: rows [row_begin, row_end) and the columns
// [begin, begin + count). C is A, or Dual<A> for the second derivative.
template <class A, class C>
struct BackwardTask {
  int64_t row_begin, row_end, begin, count, num_boxes2;
  A eps;
  const A *grad_iou, *boxes1, *boxes2;
  SecondOrder<A> second;
  OverlapSums<C>* sums1;  // [row_end - row_begin], over the columns
  OverlapSums<C>* sums2;  // [count], over the rows
};

template <class Kind, class A, class C>
struct BackwardTile {
  using Columns = SumArrays<Kind, C, kBackwardTile>;
  using Lanes = SumArrays<Kind, C, kLanes>;

  // Columns [j, j + lanes) of a row.
  static void pairs(const MeasuredBox<C>& a, const Tile<Kind, C, kBackwardTile>& tile,
                    const OverlapEps<C>& eps, const A* grad, [[maybe_unused]] A* grad_grad,
                    int64_t j, int64_t lanes, Lanes* row, Columns* columns) {
    for (int64_t lane = 0; lane < lanes; ++lane) {
      const MeasuredBox<C> b = tile.box(j + lane);
      const PairGrads<C> grads = overlap_backward<Kind>(a, b, eps, C(grad[j + lane]));
      row->template add<true>(lane, grads);
      columns->template add<false>(j + lane, grads);
      if constexpr (!std::is_same_v<C, A>) grad_grad[j + lane] = overlap<Kind>(a, b, eps).tangent;
    }
  }

  static void run(const BackwardTask<A, C>* task) {
    const BackwardTask<A, C> t = *task;
    Tile<Kind, C, kBackwardTile> tile;
    for (int64_t j = 0; j < t.count; ++j)
      tile.set(j, load_numbers<C>(t.boxes2, t.second.v2, t.begin + j));
    Columns columns{};
    const OverlapEps<C> eps{C(0), C(t.eps), C(t.eps)};
    const int64_t whole = t.count / kLanes * kLanes;
    for (int64_t i = t.row_begin; i < t.row_end; ++i) {
      const MeasuredBox<C> a = measure<Kind>(load_numbers<C>(t.boxes1, t.second.v1, i));
      const A* grad = t.grad_iou + i * t.num_boxes2 + t.begin;
      A* grad_grad = nullptr;
      if constexpr (!std::is_same_v<C, A>)
        grad_grad = t.second.grad_grad_iou + i * t.num_boxes2 + t.begin;
      Lanes row{};
      for (int64_t j = 0; j < whole; j += kLanes)
        pairs(a, tile, eps, grad, grad_grad, j, kLanes, &row, &columns);
      pairs(a, tile, eps, grad, grad_grad, whole, t.count - whole, &row, &columns);
      OverlapSums<C> sum = row.sums(0);
      for (int64_t lane = 1; lane < kLanes; ++lane) sum = sum + row.sums(lane);
      t.sums1[i - t.row_begin] = sum;
    }
    for (int64_t j = 0; j < t.count; ++j) t.sums2[j] = columns.sums(j);
  }
};

// Adds up `parts` arrays of sums, [parts, count], in their order, and makes gradients of them.
template <class Kind, class A, class C>
void finish(int64_t count, int64_t parts, const OverlapSums<C>* sums, const A* boxes, const A* v,
            A* grad_boxes) {
  parallel_for(count, kFinish, [=](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      OverlapSums<C> sum{};
      for (int64_t part = 0; part < parts; ++part) sum = sum + sums[part * count + i];
      const Box<C> grad = finish_backward<Kind>(load_numbers<C>(boxes, v, i), sum);
      if constexpr (std::is_same_v<C, A>) {
        store_box(grad_boxes, i, grad);
      } else {
        store_box(grad_boxes, i,
                  {grad.x1.tangent, grad.y1.tangent, grad.x2.tangent, grad.y2.tangent});
      }
    }
  });
}

// Each pair is computed once: a task gives the sums of its rows over its columns and of its columns
// over its rows, and these parts are added in their order.
template <class C, class A>
void backward(const BoxIouArgs& args, const SecondOrder<A>& second, const A* grad_iou,
              const A* boxes1, const A* boxes2, A* grad_boxes1, A* grad_boxes2) {
  const int64_t n = args.num_boxes1, m = args.num_boxes2;
  const int64_t tiles = (m + kBackwardTile - 1) / kBackwardTile;
  const int64_t blocks = (n + kBackwardRows - 1) / kBackwardRows;
  std::vector<OverlapSums<C>> sums1(args.batch * tiles * n), sums2(args.batch * blocks * m);
  OverlapSums<C>*first1 = sums1.data(), *first2 = sums2.data();
  with_kind<false>(args.overlap, [=](auto kind) {
    using Kind = decltype(kind);
    parallel_for(args.batch * blocks * tiles, 1, [=](int64_t index, int64_t) {
      const int64_t tile = index % tiles, block = index / tiles % blocks,
                    b = index / (tiles * blocks);
      const int64_t row = block * kBackwardRows, column = tile * kBackwardTile;
      SecondOrder<A> image{};
      if constexpr (!std::is_same_v<C, A>) {
        image = {second.v1 + 4 * b * n, second.v2 + 4 * b * m, second.grad_grad_iou + b * n * m};
      }
      const BackwardTask<A, C> task{row,
                                    std::min(row + kBackwardRows, n),
                                    column,
                                    std::min(kBackwardTile, m - column),
                                    m,
                                    static_cast<A>(args.eps),
                                    grad_iou + b * n * m,
                                    boxes1 + 4 * b * n,
                                    boxes2 + 4 * b * m,
                                    image,
                                    first1 + (b * tiles + tile) * n + row,
                                    first2 + (b * blocks + block) * m + column};
      run_on_best_isa<BackwardTile<Kind, A, C>>(&task);
    });
    for (int64_t b = 0; b < args.batch; ++b) {
      const int64_t box1 = 4 * b * n, box2 = 4 * b * m;
      const A* v1 = std::is_same_v<C, A> ? nullptr : second.v1 + box1;
      const A* v2 = std::is_same_v<C, A> ? nullptr : second.v2 + box2;
      finish<Kind, A>(n, tiles, first1 + b * tiles * n, boxes1 + box1, v1, grad_boxes1 + box1);
      finish<Kind, A>(m, blocks, first2 + b * blocks * m, boxes2 + box2, v2, grad_boxes2 + box2);
    }
  });
}

}  // namespace

template <class A>
void box_iou(const BoxIouArgs& args, const A* boxes1, const A* boxes2, A* iou) {
  const int64_t n = args.num_boxes1, m = args.num_boxes2;
  if (args.batch == 0 || n == 0 || m == 0) return;
  const int64_t tiles = (m + kTile - 1) / kTile;
  const int64_t rows_a_task = std::max<int64_t>(1, kGrain / std::min(m, kTile));
  const int64_t row_blocks = (n + rows_a_task - 1) / rows_a_task;
  with_kind<false>(args.overlap, [=](auto kind) {
    parallel_for(args.batch * row_blocks * tiles, 1, [=](int64_t task, int64_t) {
      const int64_t tile = task % tiles, block = task / tiles % row_blocks,
                    b = task / (tiles * row_blocks);
      const int64_t row_begin = block * rows_a_task, begin = tile * kTile;
      run_for_isa<BoxIou<decltype(kind)>::template OfTile, A>(
          static_cast<A>(args.eps), row_begin, std::min(row_begin + rows_a_task, n), begin,
          std::min(kTile, m - begin), m, boxes1 + 4 * b * n, boxes2 + 4 * b * m, iou + b * n * m);
    });
  });
}

template <class A>
void box_iou_backward(const BoxIouArgs& args, const A* grad_iou, const A* boxes1, const A* boxes2,
                      A* grad_boxes1, A* grad_boxes2) {
  backward<A>(args, SecondOrder<A>{}, grad_iou, boxes1, boxes2, grad_boxes1, grad_boxes2);
}

template <class A>
void box_iou_double_backward(const BoxIouArgs& args, const SecondOrder<A>& second,
                             const A* grad_iou, const A* boxes1, const A* boxes2, A* grad_boxes1,
                             A* grad_boxes2) {
  backward<Dual<A>>(args, second, grad_iou, boxes1, boxes2, grad_boxes1, grad_boxes2);
}

template void box_iou(const BoxIouArgs&, const float*, const float*, float*);
template void box_iou(const BoxIouArgs&, const double*, const double*, double*);

template void box_iou_backward(const BoxIouArgs&, const float*, const float*, const float*, float*,
                               float*);
template void box_iou_backward(const BoxIouArgs&, const double*, const double*, const double*,
                               double*, double*);

template void box_iou_double_backward(const BoxIouArgs&, const SecondOrder<float>&, const float*,
                                      const float*, const float*, float*, float*);
template void box_iou_double_backward(const BoxIouArgs&, const SecondOrder<double>&, const double*,
                                      const double*, const double*, double*, double*);

}  // namespace cpu
}  // namespace pydet
