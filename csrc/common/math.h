// SPDX-License-Identifier: Apache-2.0
// exp, log and atan for float without a call of the C library, so that the compiler can vectorise a
// loop around them. They are additions, multiplications, divisions and integer operations only:
// every instruction set gives the same bits, but for files that fuse them (common/fused.h).
// Relative errors are below 2^-22 (tests/cpp/test_math.cpp). For double, and on the device, the
// library's own functions.
#pragma once

#include <cmath>
#include <cstdint>

#include "common/host_device.h"
#include "common/scalar.h"

namespace pydet {

// a * b + c: one instruction on the device, two roundings on the host, where not every instruction
// set has it.
PYDET_HOST_DEVICE float mul_add(float a, float b, float c) {
#if defined(__CUDA_ARCH__)
  return __fmaf_rn(a, b, c);
#else
  return a * b + c;
#endif
}
PYDET_HOST_DEVICE double mul_add(double a, double b, double c) { return a * b + c; }

// exp(x) as `mantissa` times 2^n, for |x| < 2^14.
PYDET_HOST_DEVICE void split_exp(float x, float* mantissa, uint32_t* n) {
  constexpr float kRounder = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
  const float shifted = x * 1.44269504f + kRounder;
  const float whole = shifted - kRounder;
  // x - n log(2), with log(2) in two parts, the first of so few bits that n times it is exact.
  const float r = (x - whole * 0.693359375f) + whole * 2.12194440e-4f;
  // exp(r) = 1 + r + r^2 q(r) on [-log(2)/2, log(2)/2]: minimax polynomial, error 3e-9.
  float q = 0.0013814599f;
  q = q * r + 0.008368717f;
  q = q * r + 0.04166839f;
  q = q * r + 0.16666521f;
  q = q * r + 0.49999994f;
  *mantissa = (q * (r * r) + r) + 1.0f;
  *n = bits_from_float(shifted);  // above its low bits, the rounder's
}

// exp(x) for x <= 0 by additions and multiplications alone: the same bits on the device, too.
// Results below the smallest normal number (2^-126; double: 2^-1022) are 0. NaN for NaN. For what
// decides.
PYDET_HOST_DEVICE float portable_exp_of_negative(float x) {
  constexpr float kLeast = -87.33654f;  // log(2^-126), rounded towards 0
  const float y = max_of(kLeast, x);    // in this order a NaN stays
  float mantissa;
  uint32_t n;
  split_exp(y, &mantissa, &n);
  const float power = float_from_bits((n + 127u) << 23);
  // As x < kLeast; of that same condition again compilers would make branches within vectors.
  return y > x ? 0.0f : mantissa * power;
}

PYDET_HOST_DEVICE double portable_exp_of_negative(double x) {
  constexpr double kLeast = -708.396418532264;     // log(2^-1022), rounded towards 0
  constexpr double kRounder = 6755399441055744.0;  // 1.5 * 2^52
  const double y = max_of(kLeast, x);
  const double shifted = y * 1.4426950408889634 + kRounder;
  const double n = shifted - kRounder;
  const double r = (y - n * 0.693145751953125) - n * 1.42860682030941723212e-6;
  // Taylor's series: the first term left out is below 5e-18 on [-log(2)/2, log(2)/2].
  double q = 1.0 / 6227020800.0;
  q = q * r + 1.0 / 479001600.0;
  q = q * r + 1.0 / 39916800.0;
  q = q * r + 1.0 / 3628800.0;
  q = q * r + 1.0 / 362880.0;
  q = q * r + 1.0 / 40320.0;
  q = q * r + 1.0 / 5040.0;
  q = q * r + 1.0 / 720.0;
  q = q * r + 1.0 / 120.0;
  q = q * r + 1.0 / 24.0;
  q = q * r + 1.0 / 6.0;
  q = q * r + 0.5;
  const double mantissa = (q * (r * r) + r) + 1.0;
  const double power = double_from_bits((bits_from_double(shifted) + 1023u) << 52);
  return y > x ? 0.0 : mantissa * power;
}

// exp(x) for x <= 0, on the device by the library.
PYDET_HOST_DEVICE float exp_of_negative(float x) {
#if defined(__CUDA_ARCH__)
  return expf(x);
#else
  return portable_exp_of_negative(x);
#endif
}
PYDET_HOST_DEVICE double exp_of_negative(double x) { return exp(x); }

// exp(x) for any x: 0 and infinity where it is too small or too large for a float. NaN for NaN.
PYDET_HOST_DEVICE float exp_of(float x) {
#if defined(__CUDA_ARCH__)
  return expf(x);
#else
  // Beyond these the results are 0 and infinity anyway. In this order a NaN stays.
  const float y = min_of(90.0f, max_of(-105.0f, x));
  float mantissa;
  uint32_t n;
  split_exp(y, &mantissa, &n);
  // 2^n need not be a float; it is the product of two that are, up to 2^65 and down to 2^-76.
  const uint32_t exponent = (n & 0x1ffu) ^ 0x100u;  // n + 256
  const uint32_t half = exponent >> 1;
  const float first = float_from_bits((half - 1u) << 23);
  const float second = float_from_bits((exponent - half - 1u) << 23);
  return (mantissa * first) * second;
#endif
}
PYDET_HOST_DEVICE double exp_of(double x) { return exp(x); }

// log(1 + x) for x in [0, 1].
PYDET_HOST_DEVICE float log1p_of_fraction(float x) {
  // log(1 + x) = x (1 + x q(x)): minimax polynomial, error 3e-8.
  float q = 0.0053648185f;
  q = mul_add(q, x, -0.03006577f);
  q = mul_add(q, x, 0.0792045f);
  q = mul_add(q, x, -0.13753799f);
  q = mul_add(q, x, 0.19153653f);
  q = mul_add(q, x, -0.24857163f);
  q = mul_add(q, x, 0.33321324f);
  q = mul_add(q, x, -0.49999648f);
  return x * mul_add(q, x, 1.0f);
}
PYDET_HOST_DEVICE double log1p_of_fraction(double x) { return log1p(x); }

// log(x) for x >= 0; for 0 and subnormal numbers some number below -87. NaN for NaN and below
// 0.
PYDET_HOST_DEVICE float log_of_fraction(float x) {
#if defined(__CUDA_ARCH__)
  return logf(x < 0.0f ? x : max_of(1.17549435e-38f, x));
#else
  // x = 2^n m with m in [sqrt(1/2), sqrt(2)).
  const uint32_t bits = bits_from_float(x);
  const uint32_t shifted = bits + (0x3f800000u - 0x3f3504f3u);
  const float n = static_cast<float>(static_cast<int32_t>(shifted >> 23) - 127);
  const float m = float_from_bits((shifted & 0x7fffffu) + 0x3f3504f3u);
  // log(m) = 2 atanh(s) with s = (m - 1) / (m + 1), |s| < 0.1716.
  const float s = (m - 1.0f) / (m + 1.0f), z = s * s;
  const float tail = s * z * ((z * 0.28571430f + 0.4f) * z + 0.66666667f);
  const float log_m = 2.0f * s + tail;
  const float result = (n * -2.12194440e-4f + log_m) + n * 0.693359375f;
  return x >= 0.0f ? result : NAN;
#endif
}
PYDET_HOST_DEVICE double log_of_fraction(double x) { return log(x); }

// log(x) for any x > 0; NaN for NaN and what is not above 0.
PYDET_HOST_DEVICE float log_of_positive(float x) {
#if defined(__CUDA_ARCH__)
  return x > 0.0f ? logf(x) : NAN;
#else
  const bool subnormal = x < 1.17549435e-38f;
  const float scaled = subnormal ? x * 0x1p24f : x;
  const float result = log_of_fraction(scaled) - (subnormal ? 16.6355323f : 0.0f);  // 24 log(2)
  const float finite = x > 0.0f ? result : NAN;
  return x > 3.40282347e38f ? x : finite;
#endif
}
PYDET_HOST_DEVICE double log_of_positive(double x) { return x > 0.0 ? log(x) : NAN; }

// atan(x) for x in [0, 1]. The same bits on the device as on the host. NaN for NaN.
PYDET_HOST_DEVICE float atan_of_fraction(float x) {
  // atan(x) = x + x^3 q(x^2): minimax polynomial, error 2.4e-9.
  const float z = x * x;
  float q = -0.0017539472f;
  q = q * z + 0.010727027f;
  q = q * z + -0.030804763f;
  q = q * z + 0.057552285f;
  q = q * z + -0.08377328f;
  q = q * z + 0.10942035f;
  q = q * z + -0.14261934f;
  q = q * z + 0.19998266f;
  q = q * z + -0.33333284f;
  return x + x * (z * q);
}
PYDET_HOST_DEVICE double atan_of_fraction(double x) { return atan(x); }

}  // namespace pydet
