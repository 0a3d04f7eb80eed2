// SPDX-License-Identifier: Apache-2.0
// Box maths for host and device; common/box_overlap.h has the gradients. Boxes are corners (x1, y1,
// x2, y2) in continuous coordinates: the width is x2 - x1.
#pragma once

#include <cstdint>

#include "common/host_device.h"
#include "common/scalar.h"

namespace pydet {

template <class A>
struct Box {
  A x1, y1, x2, y2;
};

// Box number `index` of an array [.., 4].
template <class T>
PYDET_HOST_DEVICE Box<acc_t<T>> load_box(const T* boxes, int64_t index) {
  const T* p = boxes + 4 * index;
  return {load(p), load(p + 1), load(p + 2), load(p + 3)};
}

template <class T>
PYDET_HOST_DEVICE void store_box(T* boxes, int64_t index, const Box<acc_t<T>>& box) {
  T* p = boxes + 4 * index;
  store(p, box.x1);
  store(p + 1, box.y1);
  store(p + 2, box.x2);
  store(p + 3, box.y2);
}

template <class A>
PYDET_HOST_DEVICE A area(const Box<A>& box) {
  return (box.x2 - box.x1) * (box.y2 - box.y1);
}

template <class A>
PYDET_HOST_DEVICE A intersection(const Box<A>& a, const Box<A>& b) {
  const A width = min_of(a.x2, b.x2) - max_of(a.x1, b.x1);
  const A height = min_of(a.y2, b.y2) - max_of(a.y1, b.y1);
  return max_of(width, A(0)) * max_of(height, A(0));
}

// IoU from the intersection and the two areas. Two boxes without any area give 0, not 0/0. A NaN
// coordinate makes an area NaN, so the union and the result are NaN whatever min and max returned.
template <class A>
PYDET_HOST_DEVICE A iou(A intersection, A area_a, A area_b) {
  const A union_area = area_a + area_b - intersection;
  return union_area == A(0) ? A(0) : intersection / union_area;
}

template <class A>
PYDET_HOST_DEVICE A iou(const Box<A>& a, const Box<A>& b) {
  return iou(intersection(a, b), area(a), area(b));
}

}  // namespace pydet
