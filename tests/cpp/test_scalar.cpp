// SPDX-License-Identifier: Apache-2.0
// Every one of the 65536 half and bfloat16 numbers survives load and store; rounding goes to the
// nearest, ties to even.
#include <cmath>
#include <cstdint>
#include <limits>

#include "check.h"
#include "common/scalar.h"

using pydet::BFloat16;
using pydet::Half;

namespace {

// The value of a binary16 number by its definition.
float half_value(uint16_t bits) {
  const int exponent = bits >> 10 & 31, mantissa = bits & 1023;
  float value = std::ldexp(1024.0f + static_cast<float>(mantissa), exponent - 25);
  if (exponent == 0) value = std::ldexp(static_cast<float>(mantissa), -24);
  if (exponent == 31) value = mantissa == 0 ? INFINITY : NAN;
  return (bits & 0x8000) != 0 ? -value : value;
}

template <class T>
uint16_t rounded(float value) {
  T result;
  pydet::store(&result, value);
  return result.bits;
}

}  // namespace

int main() {
  for (int i = 0; i < 65536; ++i) {
    const Half half{static_cast<uint16_t>(i)};
    const float value = pydet::load(&half), wanted = half_value(half.bits);
    CHECK(std::isnan(wanted) ? std::isnan(value) : value == wanted);
    CHECK(std::isnan(wanted) || rounded<Half>(value) == half.bits);
    const BFloat16 bfloat{static_cast<uint16_t>(i)};
    const float wide = pydet::load(&bfloat);
    CHECK(std::isnan(wide) || rounded<BFloat16>(wide) == bfloat.bits);
  }
  // Between each two neighbours: the middle goes to the even one, floats beside it to the nearest.
  for (int i = 0; i < 0x7bff; ++i) {
    const uint16_t low = static_cast<uint16_t>(i), high = static_cast<uint16_t>(i + 1);
    const float middle = 0.5f * (half_value(low) + half_value(high));
    CHECK(rounded<Half>(middle) == (low % 2 == 0 ? low : high));
    CHECK(rounded<Half>(std::nextafter(middle, 0.0f)) == low);
    CHECK(rounded<Half>(std::nextafter(middle, INFINITY)) == high);
  }
  CHECK(rounded<Half>(65519.996f) == 0x7bff);
  CHECK(rounded<Half>(65520.0f) == 0x7c00);
  CHECK(std::isnan(half_value(rounded<Half>(NAN))));
  CHECK(rounded<BFloat16>(std::numeric_limits<float>::max()) == 0x7f80);
  CHECK((rounded<BFloat16>(NAN) & 0x7fff) > 0x7f80);
  return check::result();
}
