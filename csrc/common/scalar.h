// SPDX-License-Identifier: Apache-2.0
// Element types and their conversions, for host and device. The 16-bit types are storage only:
// every kernel loads them to float, computes there and rounds once when it stores. They carry names
// of their own, because the header of an op must be the same whether CUDA, torch or neither is
// there; their bits are IEEE binary16 and bfloat16.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__CUDACC__)
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#endif

#include "common/host_device.h"

namespace pydet {

struct Half {
  uint16_t bits;
};

struct BFloat16 {
  uint16_t bits;
};

template <class T>
struct AccumulateType {
  using type = float;
};
template <>
struct AccumulateType<double> {
  using type = double;
};

// The type that an op computes in: double for double, float for all others.
template <class T>
using acc_t = typename AccumulateType<T>::type;

PYDET_HOST_DEVICE float float_from_bits(uint32_t bits) {
#if defined(__CUDA_ARCH__)
  return __uint_as_float(bits);
#else
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
#endif
}

PYDET_HOST_DEVICE uint32_t bits_from_float(float value) {
#if defined(__CUDA_ARCH__)
  return __float_as_uint(value);
#else
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return bits;
#endif
}

PYDET_HOST_DEVICE double double_from_bits(uint64_t bits) {
#if defined(__CUDA_ARCH__)
  return __longlong_as_double(static_cast<long long>(bits));
#else
  double value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
#endif
}

PYDET_HOST_DEVICE uint64_t bits_from_double(double value) {
#if defined(__CUDA_ARCH__)
  return static_cast<uint64_t>(__double_as_longlong(value));
#else
  uint64_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return bits;
#endif
}

PYDET_HOST_DEVICE float load(const float* p) { return *p; }
PYDET_HOST_DEVICE double load(const double* p) { return *p; }

PYDET_HOST_DEVICE float load(const BFloat16* p) {
  return float_from_bits(static_cast<uint32_t>(p->bits) << 16);
}

PYDET_HOST_DEVICE float load(const Half* p) {
#if defined(__CUDA_ARCH__)
  return __half2float(__ushort_as_half(p->bits));
#else
  // Read as a float with the same exponent field, the value is 2^112 too small; the product is
  // exact, also for subnormals. Only an exponent of all ones (infinity, NaN) needs its own path,
  // taken without a branch.
  const uint32_t magnitude = static_cast<uint32_t>(p->bits & 0x7fffu) << 13;
  const uint32_t special = magnitude >= 0x0f800000u ? 0x7f800000u : 0u;
  const uint32_t sign = static_cast<uint32_t>(p->bits & 0x8000u) << 16;
  return float_from_bits(bits_from_float(float_from_bits(magnitude) * 0x1p112f) | special | sign);
#endif
}

PYDET_HOST_DEVICE void store(float* p, float value) { *p = value; }
PYDET_HOST_DEVICE void store(double* p, double value) { *p = value; }

PYDET_HOST_DEVICE void store(BFloat16* p, float value) {
#if defined(__CUDA_ARCH__)
  p->bits = __bfloat16_as_ushort(__float2bfloat16_rn(value));
#else
  const uint32_t bits = bits_from_float(value);
  const uint32_t rounded =
      (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;  // to nearest, ties to even
  p->bits = static_cast<uint16_t>(value == value ? rounded : 0x7fc0u);
#endif
}

PYDET_HOST_DEVICE void store(Half* p, float value) {
#if defined(__CUDA_ARCH__)
  p->bits = __half_as_ushort(__float2half_rn(value));
#else
  const uint32_t bits = bits_from_float(value);
  const uint32_t magnitude = bits & 0x7fffffffu;
  // Normal numbers: round the mantissa to 10 bits (ties to even) and move the exponent's bias from
  // 127 to 15.
  const uint32_t normal = (magnitude + 0xfffu + ((magnitude >> 13) & 1u) - 0x38000000u) >> 13;
  // Below 2^-14 the spacing is 2^-24, which is the spacing of floats at 0.5: the addition does the
  // rounding.
  const uint32_t subnormal = bits_from_float(float_from_bits(magnitude) + 0.5f) - 0x3f000000u;
  uint32_t result = magnitude < 0x38800000u ? subnormal : normal;
  result = magnitude >= 0x477ff000u ? 0x7c00u : result;  // 65520 and more round to infinity
  result = magnitude > 0x7f800000u ? 0x7e00u : result;
  p->bits = static_cast<uint16_t>(result | ((bits >> 16) & 0x8000u));
#endif
}

// Smaller and larger of two numbers; where one is NaN the second is returned, as the vector
// instructions do.
template <class T>
PYDET_HOST_DEVICE T min_of(T a, T b) {
  return a < b ? a : b;
}
template <class T>
PYDET_HOST_DEVICE T max_of(T a, T b) {
  return a > b ? a : b;
}

// The same for formulas whose derivatives count (common/dual.h): at a tie each of the two gets half
// of the gradient, as with torch.minimum and torch.maximum.
template <class T>
PYDET_HOST_DEVICE T shared_min_of(T a, T b) {
  return min_of(a, b);
}
template <class T>
PYDET_HOST_DEVICE T shared_max_of(T a, T b) {
  return max_of(a, b);
}

// max(x, 0), 0 for NaN; the gradient passes from 0 on, as with torch.clamp(min=0).
template <class T>
PYDET_HOST_DEVICE T positive_part(T x) {
  return max_of(x, T(0));
}

// The number as a constant for the derivatives, as under torch.no_grad.
template <class T>
PYDET_HOST_DEVICE T constant_of(T number) {
  return number;
}

}  // namespace pydet
