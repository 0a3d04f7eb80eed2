// SPDX-License-Identifier: Apache-2.0
// The four numbers of a box, moved by one or two instructions of at most 128 bits: scalar accesses
// would touch each sector of memory four times.
#pragma once

#include <cstdint>

#include "common/box.h"
#include "common/launch.cuh"

namespace pydet {
namespace cuda {

template <class T>
struct alignas(4 * sizeof(T) < 16 ? 4 * sizeof(T) : 16) BoxWords {
  T values[4];
};

// Whether the array starts where its boxes can be moved so; views of tensors may start anywhere.
template <class T>
__device__ bool holds_words(const T* boxes) {
  return reinterpret_cast<uintptr_t>(boxes) % alignof(BoxWords<T>) == 0;
}

// Box number `index` of an array [.., 4].
template <class T>
__device__ BoxWords<T> load_words(const T* boxes, int64_t index) {
  if (holds_words(boxes)) return reinterpret_cast<const BoxWords<T>*>(boxes)[index];
  const T* p = boxes + 4 * index;
  return {{p[0], p[1], p[2], p[3]}};
}

template <class T>
__device__ void store_words(T* boxes, int64_t index, const BoxWords<T>& words) {
  if (holds_words(boxes)) {
    reinterpret_cast<BoxWords<T>*>(boxes)[index] = words;
    return;
  }
  for (int k = 0; k < 4; ++k) boxes[4 * index + k] = words.values[k];
}

// As load_box and store_box.
template <class T>
__device__ Box<acc_t<T>> read_box(const T* boxes, int64_t index) {
  return load_box(load_words(boxes, index).values, 0);
}

template <class T>
__device__ void write_box(T* boxes, int64_t index, const Box<acc_t<T>>& box) {
  BoxWords<T> words;
  store_box(words.values, 0, box);
  store_words(boxes, index, words);
}

}  // namespace cuda
}  // namespace pydet
