// SPDX-License-Identifier: Apache-2.0
#include <algorithm>

#include "box_iou/box_iou.h"
#include "common/box.h"
#include "common/isa.h"
#include "common/parallel_for.h"

namespace pydet {
namespace cpu {
namespace {

// Columns a tile: its five arrays stay in the first-level cache while the rows of boxes1 pass over
// them.
constexpr int64_t kTile = 1024;
// Pairs a thread takes at a time.
constexpr int64_t kGrain = 1 << 16;

// boxes2 of one tile as a structure of arrays, so that one vector register holds one coordinate of
// many boxes.
template <class A>
struct Tile {
  A x1[kTile], y1[kTile], x2[kTile], y2[kTile], area[kTile];
};

template <class T>
struct BoxIouTile {
  // iou[i, j] for rows [row_begin, row_end) and the columns [begin, begin + count) of one image.
  static void run(int64_t row_begin, int64_t row_end, int64_t begin, int64_t count,
                  int64_t num_boxes2, const T* boxes1, const T* boxes2, T* iou) {
    using A = acc_t<T>;
    Tile<A> tile;
    for (int64_t j = 0; j < count; ++j) {
      const Box<A> box = load_box(boxes2, begin + j);
      tile.x1[j] = box.x1;
      tile.y1[j] = box.y1;
      tile.x2[j] = box.x2;
      tile.y2[j] = box.y2;
      tile.area[j] = area(box);
    }
    for (int64_t i = row_begin; i < row_end; ++i) {
      const Box<A> a = load_box(boxes1, i);
      const A area_a = area(a);
      T* row = iou + i * num_boxes2 + begin;
      for (int64_t j = 0; j < count; ++j) {
        const A inter = intersection(a, {tile.x1[j], tile.y1[j], tile.x2[j], tile.y2[j]});
        store(row + j, pydet::iou(inter, area_a, tile.area[j]));
      }
    }
  }
};

}  // namespace

template <class T>
void box_iou(int64_t batch, int64_t num_boxes1, int64_t num_boxes2, const T* boxes1,
             const T* boxes2, T* iou) {
  if (batch == 0 || num_boxes1 == 0 || num_boxes2 == 0) return;
  const int64_t tiles = (num_boxes2 + kTile - 1) / kTile;
  const int64_t rows_a_task = std::max<int64_t>(1, kGrain / std::min(num_boxes2, kTile));
  const int64_t row_blocks = (num_boxes1 + rows_a_task - 1) / rows_a_task;
  parallel_for(batch * row_blocks * tiles, 1, [=](int64_t task, int64_t) {
    const int64_t tile = task % tiles, block = task / tiles % row_blocks,
                  b = task / (tiles * row_blocks);
    const int64_t row_begin = block * rows_a_task, begin = tile * kTile;
    run_on_best_isa<BoxIouTile<T>>(row_begin, std::min(row_begin + rows_a_task, num_boxes1), begin,
                                   std::min(kTile, num_boxes2 - begin), num_boxes2,
                                   boxes1 + 4 * b * num_boxes1, boxes2 + 4 * b * num_boxes2,
                                   iou + b * num_boxes1 * num_boxes2);
  });
}

template <class T>
void box_iou_backward(int64_t batch, int64_t num_boxes1, int64_t num_boxes2, const T* grad_iou,
                      const T* boxes1, const T* boxes2, T* grad_boxes1, T* grad_boxes2) {
  using A = acc_t<T>;
  // Gradient of each box of one side: the sum over the boxes of the other side, in their order.
  const auto gather = [=](int64_t count, int64_t others, int64_t stride, int64_t other_stride,
                          const T* boxes, const T* other_boxes, T* grad_boxes) {
    parallel_for(batch * count, std::max<int64_t>(1, kGrain / 8 / std::max<int64_t>(1, others)),
                 [=](int64_t begin, int64_t end) {
                   for (int64_t index = begin; index < end; ++index) {
                     const int64_t b = index / count, i = index % count;
                     const T* grad = grad_iou + b * num_boxes1 * num_boxes2 + i * stride;
                     const Box<A> box = load_box(boxes, index);
                     Box<A> sum{}, ignored{};
                     for (int64_t j = 0; j < others; ++j) {
                       iou_backward(box, load_box(other_boxes, b * others + j),
                                    load(grad + j * other_stride), &sum, &ignored);
                     }
                     store_box(grad_boxes, index, sum);
                   }
                 });
  };
  if (grad_boxes1 != nullptr)
    gather(num_boxes1, num_boxes2, num_boxes2, 1, boxes1, boxes2, grad_boxes1);
  if (grad_boxes2 != nullptr)
    gather(num_boxes2, num_boxes1, 1, num_boxes2, boxes2, boxes1, grad_boxes2);
}

template void box_iou(int64_t, int64_t, int64_t, const float*, const float*, float*);
template void box_iou(int64_t, int64_t, int64_t, const double*, const double*, double*);
template void box_iou(int64_t, int64_t, int64_t, const Half*, const Half*, Half*);
template void box_iou(int64_t, int64_t, int64_t, const BFloat16*, const BFloat16*, BFloat16*);

template void box_iou_backward(int64_t, int64_t, int64_t, const float*, const float*, const float*,
                               float*, float*);
template void box_iou_backward(int64_t, int64_t, int64_t, const double*, const double*,
                               const double*, double*, double*);
template void box_iou_backward(int64_t, int64_t, int64_t, const Half*, const Half*, const Half*,
                               Half*, Half*);
template void box_iou_backward(int64_t, int64_t, int64_t, const BFloat16*, const BFloat16*,
                               const BFloat16*, BFloat16*, BFloat16*);

}  // namespace cpu
}  // namespace pydet
