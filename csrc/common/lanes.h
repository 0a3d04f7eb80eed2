// SPDX-License-Identifier: Apache-2.0
// Several numbers that one vector operation takes, by the compiler's extension, for kernels that
// are compiled for each instruction set (isa.h).
#pragma once

#include <cstdint>
#include <type_traits>
#include <utility>

#include "common/scalar.h"

namespace pydet {
namespace cpu {

// 32 bytes, or 64 where the kernel is for a machine that has such registers (vector_bytes): a
// larger vector than its registers the compiler keeps in memory.
template <class A, int kBytes = 32>
struct Lanes {
  static constexpr int64_t kCount = kBytes / sizeof(A);
  typedef A Vector __attribute__((vector_size(kBytes)));

  // V is a vector or, for what is left of a row, A: one number.
  template <class T, class V>
  static void load(const T* from, V* to) {
    if constexpr (std::is_same_v<V, T>) {
      *to = *from;
    } else if constexpr (std::is_same_v<V, A>) {
      *to = pydet::load(from);
    } else if constexpr (std::is_same_v<T, A>) {
      *to = *reinterpret_cast<const Unaligned<V>*>(from);
    } else {
      constexpr int64_t kLanes = sizeof(V) / sizeof(A);
      A values[kLanes];
      for (int64_t i = 0; i < kLanes; ++i) values[i] = pydet::load(from + i);
      *to = *reinterpret_cast<const Unaligned<V>*>(values);
    }
  }

  template <class T, class V>
  static void store(const V& from, T* to) {
    if constexpr (std::is_same_v<V, T>) {
      *to = from;
    } else if constexpr (std::is_same_v<V, A>) {
      pydet::store(to, from);
    } else if constexpr (std::is_same_v<T, A>) {
      *reinterpret_cast<Unaligned<V>*>(to) = from;
    } else {
      constexpr int64_t kLanes = sizeof(V) / sizeof(A);
      A values[kLanes];
      *reinterpret_cast<Unaligned<V>*>(values) = from;
      for (int64_t i = 0; i < kLanes; ++i) pydet::store(to + i, values[i]);
    }
  }

  // to[i * to_stride + j] = from[j * from_stride + i] for i and j below kCount.
  template <class From, class To>
  static void transpose(const From* from, int64_t from_stride, To* to, int64_t to_stride) {
    transpose(from, from_stride, to, to_stride, std::make_integer_sequence<int, kCount>());
  }

 private:
  // Not a memcpy, of which the compiler makes two halves before it knows the instruction set.
  template <class V>
  using Unaligned __attribute__((aligned(sizeof(A)), may_alias)) = V;

  // Written out by the indices, not as loops: so the rows are registers.
  template <class From, class To, int... kIndex>
  static void transpose(const From* from, int64_t from_stride, To* to, int64_t to_stride,
                        std::integer_sequence<int, kIndex...> indices) {
#if defined(__clang__) || __GNUC__ >= 12
    Vector rows[kCount];
    (load(from + kIndex * from_stride, &rows[kIndex]), ...);
    swap_blocks<kCount / 2>(rows, indices);
    (store(rows[kIndex], to + kIndex * to_stride), ...);
#else
    for (int64_t i = 0; i < kCount; ++i) {
      for (int64_t j = 0; j < kCount; ++j)
        pydet::store(to + i * to_stride + j, A(pydet::load(from + j * from_stride + i)));
    }
#endif
  }

#if defined(__clang__) || __GNUC__ >= 12
  // One step of the transposition for each power of two: of each two rows that far apart, the
  // second half of the first changes places with the first half of the second, block by block.
  template <int kStep, int... kIndex>
  static void swap_blocks(Vector* rows, std::integer_sequence<int, kIndex...> indices) {
    (swap_rows<kStep, kIndex>(rows, indices), ...);
    if constexpr (kStep > 1) swap_blocks<kStep / 2>(rows, indices);
  }

  template <int kStep, int kRow, int... kIndex>
  static void swap_rows(Vector* rows, std::integer_sequence<int, kIndex...>) {
    if constexpr ((kRow & kStep) == 0) {
      constexpr int kEnd = static_cast<int>(kCount);
      const Vector a = rows[kRow], b = rows[kRow + kStep];
      rows[kRow] = __builtin_shufflevector(
          a, b, ((kIndex & kStep) == 0 ? kIndex : kEnd + kIndex - kStep)...);
      rows[kRow + kStep] = __builtin_shufflevector(
          a, b, ((kIndex & kStep) == 0 ? kIndex + kStep : kEnd + kIndex)...);
    }
  }
#endif
};

}  // namespace cpu
}  // namespace pydet
