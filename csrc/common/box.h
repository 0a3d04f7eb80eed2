// SPDX-License-Identifier: Apache-2.0
// Box maths for host and device: each function stands beside its gradient. Boxes are corners (x1,
// y1, x2, y2) in continuous coordinates: the width is x2 - x1.
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

// Share of the gradient of min(a, b) or max(a, b) that goes to a: all, nothing, or half where they
// are equal.
template <class A>
PYDET_HOST_DEVICE A share_of_min(A a, A b) {
  return a < b ? A(1) : (a == b ? A(0.5) : A(0));
}

// Adds grad * dIoU/da to grad_a and grad * dIoU/db to grad_b. With I the intersection and U = A + B
// - I: dIoU/dI = (U + I) / U^2 and dIoU/dA = dIoU/dB = -I / U^2.
template <class A>
PYDET_HOST_DEVICE void iou_backward(const Box<A>& a, const Box<A>& b, A grad, Box<A>* grad_a,
                                    Box<A>* grad_b) {
  const A width = min_of(a.x2, b.x2) - max_of(a.x1, b.x1);
  const A height = min_of(a.y2, b.y2) - max_of(a.y1, b.y1);
  const A inter = max_of(width, A(0)) * max_of(height, A(0));
  const A union_area = area(a) + area(b) - inter;
  if (union_area == A(0)) return;  // the value is 0 by definition there, and so is its gradient
  const A grad_area = -grad * inter / (union_area * union_area);
  const A grad_inter = grad * (union_area + inter) / (union_area * union_area);
  const A grad_width = width >= A(0) ? grad_inter * max_of(height, A(0)) : A(0);
  const A grad_height = height >= A(0) ? grad_inter * max_of(width, A(0)) : A(0);
  const A x1_a = share_of_min(b.x1, a.x1), x2_a = share_of_min(a.x2, b.x2);
  const A y1_a = share_of_min(b.y1, a.y1), y2_a = share_of_min(a.y2, b.y2);
  grad_a->x1 += -grad_width * x1_a - grad_area * (a.y2 - a.y1);
  grad_a->y1 += -grad_height * y1_a - grad_area * (a.x2 - a.x1);
  grad_a->x2 += grad_width * x2_a + grad_area * (a.y2 - a.y1);
  grad_a->y2 += grad_height * y2_a + grad_area * (a.x2 - a.x1);
  grad_b->x1 += -grad_width * (A(1) - x1_a) - grad_area * (b.y2 - b.y1);
  grad_b->y1 += -grad_height * (A(1) - y1_a) - grad_area * (b.x2 - b.x1);
  grad_b->x2 += grad_width * (A(1) - x2_a) + grad_area * (b.y2 - b.y1);
  grad_b->y2 += grad_height * (A(1) - y2_a) + grad_area * (b.x2 - b.x1);
}

}  // namespace pydet
