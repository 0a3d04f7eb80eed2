// SPDX-License-Identifier: Apache-2.0
// Dual numbers value + tangent e, with e^2 = 0, for host and device. A function written for any
// number type A and evaluated at x + e v gives f(x) and, as the tangent, the derivative of f along
// v. The second derivatives of the ops come from here: with v the gradient of what `<op>_backward`
// gave, f(x + e v) has the tangent grad f . v, which is the gradient of the incoming gradient, and
// `<op>_backward` at x + e v has the tangent grad H v, which is that of the inputs. So there is one
// formula for the first derivative and none for the second.
//
// Comparisons look at the values alone, so a branch is taken as without tangents and min_of and
// max_of (common/scalar.h) pass the tangent of the number that they choose.
#pragma once

#include "common/host_device.h"
#include "common/math.h"
#include "common/scalar.h"

namespace pydet {

template <class A>
struct Dual {
  A value, tangent;

  Dual() = default;  // trivial: shared memory of a kernel may hold it
  // A constant. Not explicit: formulas mix numbers and constants.
  PYDET_HOST_DEVICE Dual(A constant) : value(constant), tangent(A(0)) {}
  PYDET_HOST_DEVICE Dual(A value, A tangent) : value(value), tangent(tangent) {}

  PYDET_HOST_DEVICE friend Dual operator-(const Dual& a) { return {-a.value, -a.tangent}; }
  PYDET_HOST_DEVICE friend Dual operator+(const Dual& a, const Dual& b) {
    return {a.value + b.value, a.tangent + b.tangent};
  }
  PYDET_HOST_DEVICE friend Dual operator-(const Dual& a, const Dual& b) {
    return {a.value - b.value, a.tangent - b.tangent};
  }
  PYDET_HOST_DEVICE friend Dual operator*(const Dual& a, const Dual& b) {
    return {a.value * b.value, a.value * b.tangent + a.tangent * b.value};
  }
  PYDET_HOST_DEVICE friend Dual operator/(const Dual& a, const Dual& b) {
    const A quotient = a.value / b.value;
    return {quotient, (a.tangent - quotient * b.tangent) / b.value};
  }
  PYDET_HOST_DEVICE Dual& operator+=(const Dual& other) { return *this = *this + other; }
  PYDET_HOST_DEVICE Dual& operator-=(const Dual& other) { return *this = *this - other; }
  PYDET_HOST_DEVICE Dual& operator*=(const Dual& other) { return *this = *this * other; }
  PYDET_HOST_DEVICE Dual& operator/=(const Dual& other) { return *this = *this / other; }

  PYDET_HOST_DEVICE friend bool operator<(const Dual& a, const Dual& b) {
    return a.value < b.value;
  }
  PYDET_HOST_DEVICE friend bool operator>(const Dual& a, const Dual& b) {
    return a.value > b.value;
  }
  PYDET_HOST_DEVICE friend bool operator<=(const Dual& a, const Dual& b) {
    return a.value <= b.value;
  }
  PYDET_HOST_DEVICE friend bool operator>=(const Dual& a, const Dual& b) {
    return a.value >= b.value;
  }
  PYDET_HOST_DEVICE friend bool operator==(const Dual& a, const Dual& b) {
    return a.value == b.value;
  }
  PYDET_HOST_DEVICE friend bool operator!=(const Dual& a, const Dual& b) {
    return a.value != b.value;
  }
};

// What scalar.h says of plain numbers, and here of their tangents.

template <class A>
PYDET_HOST_DEVICE Dual<A> constant_of(const Dual<A>& number) {
  return Dual<A>(number.value);
}

template <class A>
PYDET_HOST_DEVICE Dual<A> shared_min_of(const Dual<A>& a, const Dual<A>& b) {
  return a == b ? Dual<A>(a.value, A(0.5) * (a.tangent + b.tangent)) : min_of(a, b);
}
template <class A>
PYDET_HOST_DEVICE Dual<A> shared_max_of(const Dual<A>& a, const Dual<A>& b) {
  return a == b ? Dual<A>(a.value, A(0.5) * (a.tangent + b.tangent)) : max_of(a, b);
}

template <class A>
PYDET_HOST_DEVICE Dual<A> positive_part(const Dual<A>& x) {
  return x.value >= A(0) ? x : Dual<A>(A(0));
}

// The functions of common/math.h; the tangent is 0 where the value is held constant.

template <class A>
PYDET_HOST_DEVICE Dual<A> mul_add(const Dual<A>& a, const Dual<A>& b, const Dual<A>& c) {
  return a * b + c;
}

template <class A>
PYDET_HOST_DEVICE Dual<A> exp_of_negative(const Dual<A>& x) {
  const A power = exp_of_negative(x.value);
  return {power, power * x.tangent};
}

template <class A>
PYDET_HOST_DEVICE Dual<A> exp_of(const Dual<A>& x) {
  const A power = exp_of(x.value);
  return {power, power * x.tangent};
}

template <class A>
PYDET_HOST_DEVICE Dual<A> log1p_of_fraction(const Dual<A>& x) {
  return {log1p_of_fraction(x.value), x.tangent / (A(1) + x.value)};
}

template <class A>
PYDET_HOST_DEVICE Dual<A> log_of_fraction(const Dual<A>& x) {
  return {log_of_fraction(x.value), x.value == A(0) ? A(0) : x.tangent / x.value};
}

template <class A>
PYDET_HOST_DEVICE Dual<A> log_of_positive(const Dual<A>& x) {
  return {log_of_positive(x.value), x.tangent / x.value};
}

}  // namespace pydet
