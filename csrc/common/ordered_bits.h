// SPDX-License-Identifier: Apache-2.0
// Floating numbers as integers of the same order. Compilers turn a minimum or maximum of integers
// into vectors, but not one of floats, whose order of evaluation would count for NaN.
#pragma once

#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>

namespace pydet {

// An integer as wide as the number, so that one vector holds as many of either.
template <class A>
using bits_t = std::conditional_t<sizeof(A) == 4, int32_t, int64_t>;

// The bits of a number; those of numbers that are not negative are ordered as the numbers are.
template <class A>
bits_t<A> to_bits(A value) {
  bits_t<A> bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return bits;
}

template <class A>
A from_bits(bits_t<A> bits) {
  A value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

// Ordered also where numbers are negative: all bits but the sign's turn over there.
template <class A>
bits_t<A> to_ordered(A value) {
  const bits_t<A> bits = to_bits(value);
  return bits ^ ((bits >> (8 * sizeof(A) - 1)) & std::numeric_limits<bits_t<A>>::max());
}

template <class A>
A from_ordered(bits_t<A> bits) {
  return from_bits<A>(bits ^
                      ((bits >> (8 * sizeof(A) - 1)) & std::numeric_limits<bits_t<A>>::max()));
}

}  // namespace pydet
