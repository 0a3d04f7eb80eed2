// SPDX-License-Identifier: Apache-2.0
// The ways to write a box as four numbers, one axis at a time, and what is computed from a box as
// it is written. Each function stands beside its gradient.
#pragma once

#include <cstdint>
#include <type_traits>

#include "common/box.h"
#include "common/host_device.h"
#include "common/scalar.h"

namespace pydet {

enum class BoxFormat { kXyxy, kXywh, kCxcywh };

// The type that the numbers of boxes are computed in: as everywhere, and integers in themselves.
template <class T>
using box_number_t = std::conditional_t<std::is_integral_v<T>, T, acc_t<T>>;

// The numbers of one axis: (x1, x2), (x, w) or (cx, w) of the box.
template <class A>
struct Side {
  A first, second;
};

// A centre is only ever asked for floating numbers. 0.5 w and (lo + hi) / 2 are torchvision's
// expressions: they round in the same way.
template <class A>
PYDET_HOST_DEVICE Side<A> to_corners(BoxFormat format, const Side<A>& side) {
  switch (format) {
    case BoxFormat::kXywh:
      return {side.first, static_cast<A>(side.first + side.second)};
    case BoxFormat::kCxcywh:
      return {static_cast<A>(side.first - A(0.5) * side.second),
              static_cast<A>(side.first + A(0.5) * side.second)};
    case BoxFormat::kXyxy:
      break;
  }
  return side;
}

template <class A>
PYDET_HOST_DEVICE Side<A> to_corners_backward(BoxFormat format, const Side<A>& grad) {
  switch (format) {
    case BoxFormat::kXywh:
      return {grad.first + grad.second, grad.second};
    case BoxFormat::kCxcywh:
      return {grad.first + grad.second, A(0.5) * (grad.second - grad.first)};
    case BoxFormat::kXyxy:
      break;
  }
  return grad;
}

template <class A>
PYDET_HOST_DEVICE Side<A> from_corners(BoxFormat format, const Side<A>& side) {
  switch (format) {
    case BoxFormat::kXywh:
      return {side.first, static_cast<A>(side.second - side.first)};
    case BoxFormat::kCxcywh:
      return {static_cast<A>((side.first + side.second) / A(2)),
              static_cast<A>(side.second - side.first)};
    case BoxFormat::kXyxy:
      break;
  }
  return side;
}

template <class A>
PYDET_HOST_DEVICE Side<A> from_corners_backward(BoxFormat format, const Side<A>& grad) {
  switch (format) {
    case BoxFormat::kXywh:
      return {grad.first - grad.second, grad.second};
    case BoxFormat::kCxcywh:
      return {grad.first / A(2) - grad.second, grad.first / A(2) + grad.second};
    case BoxFormat::kXyxy:
      break;
  }
  return grad;
}

// The two sides of a box whose numbers are (a, b, c, d), and back.
template <class A>
struct Sides {
  Side<A> x, y;
};

template <class T>
PYDET_HOST_DEVICE Sides<box_number_t<T>> load_sides(const T* boxes, int64_t index) {
  const T* p = boxes + 4 * index;
  if constexpr (std::is_integral_v<T>) {
    return {{p[0], p[2]}, {p[1], p[3]}};
  } else {
    return {{load(p), load(p + 2)}, {load(p + 1), load(p + 3)}};
  }
}

template <class T>
PYDET_HOST_DEVICE void store_sides(T* boxes, int64_t index, const Sides<box_number_t<T>>& sides) {
  T* p = boxes + 4 * index;
  if constexpr (std::is_integral_v<T>) {
    p[0] = sides.x.first;
    p[1] = sides.y.first;
    p[2] = sides.x.second;
    p[3] = sides.y.second;
  } else {
    store(p, sides.x.first);
    store(p + 1, sides.y.first);
    store(p + 2, sides.x.second);
    store(p + 3, sides.y.second);
  }
}

// A side's length as it is written.
template <class A>
PYDET_HOST_DEVICE A length_of(BoxFormat format, const Side<A>& side) {
  return format == BoxFormat::kXyxy ? static_cast<A>(side.second - side.first) : side.second;
}

template <class A>
PYDET_HOST_DEVICE Side<A> length_backward(BoxFormat format, A grad) {
  return {format == BoxFormat::kXyxy ? -grad : A(0), grad};
}

// A coordinate held in [0, size]; a NaN stays. The gradient passes where it was inside, the ends
// included.
template <class A>
PYDET_HOST_DEVICE A clip(A coordinate, A size) {
  return min_of(size, max_of(A(0), coordinate));
}

template <class A>
PYDET_HOST_DEVICE A clip_backward(A coordinate, A size, A grad) {
  return coordinate >= A(0) && coordinate <= size ? grad : A(0);
}

}  // namespace pydet
