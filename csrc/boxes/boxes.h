// SPDX-License-Identifier: Apache-2.0
// What is done to each box alone: area, format, clipping, size. Each operation is a struct of its
// arrays ([count, 4], contiguous, unless it says otherwise) and its numbers, and a call with the
// index of a box and how the device moves boxes (load_sides and store_sides, or wider);
// for_each_box runs it over all boxes. Arithmetic of floating numbers in float
// (double for double), rounded once. Instantiated for float, double, Half and BFloat16; where
// integers make sense also for int64_t, or for uint64_t, whose overflow is defined as torch's is.
#pragma once

#include <cstdint>

#include "common/box_format.h"

struct CUstream_st;

namespace pydet {

// Boxes moved number by number.
struct BoxNumbers {
  template <class T>
  PYDET_HOST_DEVICE Sides<box_number_t<T>> load(const T* boxes, int64_t index) const {
    return load_sides(boxes, index);
  }
  template <class T>
  PYDET_HOST_DEVICE void store(T* boxes, int64_t index, const Sides<box_number_t<T>>& sides) const {
    store_sides(boxes, index, sides);
  }
};

template <class T>
struct BoxArea {
  BoxFormat format;
  const T* boxes;
  box_number_t<T>* areas;  // [count]

  template <class Mover>
  PYDET_HOST_DEVICE void operator()(int64_t i, Mover move) const {
    const Sides<box_number_t<T>> box = move.load(boxes, i);
    areas[i] = length_of(format, box.x) * length_of(format, box.y);
  }
};

template <class T>
struct BoxAreaBackward {
  BoxFormat format;
  const acc_t<T>* grad_areas;  // [count]
  const T* boxes;
  T* grad_boxes;

  template <class Mover>
  PYDET_HOST_DEVICE void operator()(int64_t i, Mover move) const {
    const Sides<acc_t<T>> box = move.load(boxes, i);
    const acc_t<T> grad = grad_areas[i];
    move.store(grad_boxes, i,
               {length_backward(format, grad * length_of(format, box.y)),
                length_backward(format, grad * length_of(format, box.x))});
  }
};

template <class T>
struct BoxConvert {
  BoxFormat in_format, out_format;
  const T* boxes;
  T* converted;

  template <class Mover>
  PYDET_HOST_DEVICE void operator()(int64_t i, Mover move) const {
    const Sides<box_number_t<T>> box = move.load(boxes, i);
    move.store(converted, i,
               {from_corners(out_format, to_corners(in_format, box.x)),
                from_corners(out_format, to_corners(in_format, box.y))});
  }
};

template <class T>
struct BoxConvertBackward {
  BoxFormat in_format, out_format;
  const T* grad_converted;
  T* grad_boxes;

  template <class Mover>
  PYDET_HOST_DEVICE void operator()(int64_t i, Mover move) const {
    const Sides<acc_t<T>> grad = move.load(grad_converted, i);
    move.store(grad_boxes, i,
               {to_corners_backward(in_format, from_corners_backward(out_format, grad.x)),
                to_corners_backward(in_format, from_corners_backward(out_format, grad.y))});
  }
};

template <class T>
struct ClipBoxes {
  box_number_t<T> height, width;
  const T* boxes;
  T* clipped;

  template <class Mover>
  PYDET_HOST_DEVICE void operator()(int64_t i, Mover move) const {
    const Sides<box_number_t<T>> box = move.load(boxes, i);
    move.store(clipped, i,
               {{clip(box.x.first, width), clip(box.x.second, width)},
                {clip(box.y.first, height), clip(box.y.second, height)}});
  }
};

template <class T>
struct ClipBoxesBackward {
  acc_t<T> height, width;
  const T* grad_clipped;
  const T* boxes;
  T* grad_boxes;

  template <class Mover>
  PYDET_HOST_DEVICE void operator()(int64_t i, Mover move) const {
    const Sides<acc_t<T>> box = move.load(boxes, i), grad = move.load(grad_clipped, i);
    move.store(grad_boxes, i,
               {{clip_backward(box.x.first, width, grad.x.first),
                 clip_backward(box.x.second, width, grad.x.second)},
                {clip_backward(box.y.first, height, grad.y.first),
                 clip_backward(box.y.second, height, grad.y.second)}});
  }
};

// large[i]: neither side of box i is shorter than min_size (a NaN is).
template <class T>
struct LargeBoxes {
  double min_size;
  const T* boxes;
  bool* large;  // [count]

  template <class Mover>
  PYDET_HOST_DEVICE void operator()(int64_t i, Mover move) const {
    // Integers are subtracted as doubles, where nothing overflows.
    using A = std::conditional_t<std::is_integral_v<T>, double, acc_t<T>>;
    const Sides<box_number_t<T>> box = move.load(boxes, i);
    const A width = static_cast<A>(box.x.second) - static_cast<A>(box.x.first);
    const A height = static_cast<A>(box.y.second) - static_cast<A>(box.y.first);
    large[i] = width >= static_cast<A>(min_size) && height >= static_cast<A>(min_size);
  }
};

// Whether an element of a mask belongs to the object: all numbers but 0, NaN too.
template <class T>
PYDET_HOST_DEVICE bool is_set(const T& element) {
  if constexpr (std::is_arithmetic_v<T>) {
    return element != T(0);
  } else {
    return (element.bits & 0x7fffu) != 0;  // 16 bits, of which the first is the sign
  }
}

namespace cpu {

// operation(i) for i in [0, count)
template <class Operation>
void for_each_box(int64_t count, const Operation& operation);

// boxes [count, 4]: the first and last column and row, x1, y1, x2, y2, of the elements of masks
// [count, height, width] that are set; all 0 where none is. Height and width are less than 2^31.
// Instantiated for uint8_t, int16_t, int32_t, int64_t, float, double, Half and BFloat16.
template <class T>
void masks_to_boxes(int64_t count, int64_t height, int64_t width, const T* masks, float* boxes);

}  // namespace cpu

namespace cuda {

template <class Operation>
const char* for_each_box(int64_t count, const Operation& operation, CUstream_st* stream);

template <class T>
const char* masks_to_boxes(int64_t count, int64_t height, int64_t width, const T* masks,
                           float* boxes, CUstream_st* stream);

}  // namespace cuda
}  // namespace pydet
