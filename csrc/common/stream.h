// SPDX-License-Identifier: Apache-2.0
// Writing large results of CPU kernels past the caches.
#pragma once

#include <algorithm>
#include <cstdint>

#if defined(__x86_64__)
#include <emmintrin.h>
#endif

namespace pydet {
namespace cpu {

constexpr int64_t kStreamLine = 64;

// Whether to stream results of `count` elements, of which pieces of `piece` are made at a time:
// they are whole lines, and in no cache when they are read, however they are written.
template <class T>
bool worth_streaming(int64_t count, int64_t piece) {
  constexpr int64_t kSize = sizeof(T);
  return count * kSize > int64_t{32} << 20 && piece * kSize % kStreamLine == 0;
}

// Copies `count` elements past the caches: the memory's lines are not read before they are written,
// and what is in the caches stays. finish_streams() comes before another thread may read them.
template <class T>
void stream(const T* from, int64_t count, T* to) {
#if defined(__x86_64__)
  constexpr int64_t kPart = sizeof(__m128i);
  const int64_t bytes = count * static_cast<int64_t>(sizeof(T));
  if (reinterpret_cast<uintptr_t>(to) % kStreamLine == 0 && bytes % kStreamLine == 0) {
    for (int64_t i = 0; i < bytes / kPart; ++i)
      _mm_stream_si128(reinterpret_cast<__m128i*>(to) + i,
                       _mm_loadu_si128(reinterpret_cast<const __m128i*>(from) + i));
    return;
  }
#endif
  std::copy_n(from, count, to);
}

inline void finish_streams() {
#if defined(__x86_64__)
  _mm_sfence();
#endif
}

}  // namespace cpu
}  // namespace pydet
