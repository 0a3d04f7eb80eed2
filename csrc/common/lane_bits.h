// SPDX-License-Identifier: Apache-2.0
// The truth values of 32 lanes as bits. A reduction of vectors takes some 18 cycles for what the
// instruction sets have an instruction for, and of which compilers do not think.
#pragma once

#include <cstdint>
#include <type_traits>

#include "common/isa.h"

#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>
#endif

namespace pydet {

constexpr int kBitLanes = 32;

namespace detail {

#if defined(__x86_64__) && defined(__GNUC__)
__attribute__((target("avx2"))) inline uint32_t sign_bits_avx2(const int32_t* signs) {
  uint32_t bits = 0;
  for (int lane = 0; lane < kBitLanes; lane += 8) {
    const __m256i eight = _mm256_load_si256(reinterpret_cast<const __m256i*>(signs + lane));
    bits |= static_cast<uint32_t>(_mm256_movemask_ps(_mm256_castsi256_ps(eight))) << lane;
  }
  return bits;
}

__attribute__((target("avx512f,avx512dq"))) inline uint32_t sign_bits_avx512(const int32_t* signs) {
  const uint32_t low = _cvtmask16_u32(_mm512_movepi32_mask(_mm512_load_si512(signs)));
  return low | _cvtmask16_u32(_mm512_movepi32_mask(_mm512_load_si512(signs + 16))) << 16;
}

__attribute__((target("avx512f"))) inline uint32_t at_most_bits_avx512(const float* a,
                                                                       const float* b) {
  const __m512 low_a = _mm512_load_ps(a), high_a = _mm512_load_ps(a + 16);
  const __m512 low_b = _mm512_load_ps(b), high_b = _mm512_load_ps(b + 16);
  return _cvtmask16_u32(_mm512_cmp_ps_mask(low_a, low_b, _CMP_LE_OQ)) |
         _cvtmask16_u32(_mm512_cmp_ps_mask(high_a, high_b, _CMP_LE_OQ)) << 16;
}
#endif

}  // namespace detail

// A bit for each lane for which test(lane) holds; kIsa is what the caller is compiled for.
template <Isa kIsa, class Test>
uint32_t bits_where(const Test& test) {
  // In registers, for compilers that see a vector written and read.
  alignas(64) int32_t signs[kBitLanes];
  for (int lane = 0; lane < kBitLanes; ++lane) signs[lane] = -static_cast<int32_t>(test(lane));
#if defined(__x86_64__) && defined(__GNUC__)
  if constexpr (kIsa == Isa::kAvx512) return detail::sign_bits_avx512(signs);
  if constexpr (kIsa == Isa::kAvx2) return detail::sign_bits_avx2(signs);
#endif
  uint32_t bits = 0;
  for (int lane = 0; lane < kBitLanes; ++lane)
    bits |= static_cast<uint32_t>(signs[lane]) & uint32_t{1} << lane;
  return bits;
}

// The same for a(lane) <= b(lane), of which compilers for AVX-512 do not make one comparison.
template <Isa kIsa, class ValueA, class ValueB>
uint32_t bits_where_at_most(const ValueA& a, const ValueB& b) {
#if defined(__x86_64__) && defined(__GNUC__)
  if constexpr (kIsa == Isa::kAvx512 && std::is_same_v<decltype(b(0)), float>) {
    alignas(64) float all_a[kBitLanes], all_b[kBitLanes];
    for (int lane = 0; lane < kBitLanes; ++lane) all_a[lane] = a(lane);
    for (int lane = 0; lane < kBitLanes; ++lane) all_b[lane] = b(lane);
    return detail::at_most_bits_avx512(all_a, all_b);
  }
#endif
  return bits_where<kIsa>([&](int lane) { return a(lane) <= b(lane); });
}

}  // namespace pydet
