// SPDX-License-Identifier: Apache-2.0
// Writing large results of CPU kernels past the caches.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__x86_64__)
#include <emmintrin.h>
#endif

namespace pydet {
namespace cpu {

// Whether results of so many elements are in no cache when they are read, however they are written.
template <class T>
bool worth_streaming(int64_t count) {
  return count > (int64_t{32} << 20) / static_cast<int64_t>(sizeof(T));
}

// Copies `count` elements past the caches: the memory's lines are not read before they are written,
// and what is in the caches stays. finish_streams() comes before another thread may read them.
template <class T>
void stream(const T* from, int64_t count, T* to) {
  const int64_t bytes = count * static_cast<int64_t>(sizeof(T));
#if defined(__x86_64__)
  constexpr int64_t kLine = 64, kPart = sizeof(__m128i);
  if (reinterpret_cast<uintptr_t>(to) % kLine == 0 && bytes % kLine == 0) {
    for (int64_t i = 0; i < bytes / kPart; ++i)
      _mm_stream_si128(reinterpret_cast<__m128i*>(to) + i,
                       _mm_loadu_si128(reinterpret_cast<const __m128i*>(from) + i));
    return;
  }
#endif
  std::memcpy(to, from, bytes);
}

inline void finish_streams() {
#if defined(__x86_64__)
  _mm_sfence();
#endif
}

}  // namespace cpu
}  // namespace pydet
