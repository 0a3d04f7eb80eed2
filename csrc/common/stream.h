// SPDX-License-Identifier: Apache-2.0
// Writing large results of CPU kernels past the caches.
#pragma once

#include <algorithm>
#include <cstdint>

#include "common/channel_block.h"

#if defined(__x86_64__)
#include <emmintrin.h>
#endif

namespace pydet {
namespace cpu {

// Writes a result that is made piece by piece. Above 32 MiB, and where pieces are whole lines, they
// are made aside and copied past the caches: the memory's lines are not read before they are
// written, and what is in the caches stays. The result would be in no cache anyway when it is read.
template <class T>
class PieceWriter {
 public:
  // For a result of `count` elements in pieces of `piece`.
  PieceWriter(int64_t count, int64_t piece, Scratch<T>* scratch) : piece_(piece) {
    constexpr int64_t kSize = sizeof(T);
    const bool large = count * kSize > int64_t{32} << 20;
    if (large && piece * kSize % kLine == 0) aside_ = scratch->reserve(piece);
  }
  PieceWriter(const PieceWriter&) = delete;
  PieceWriter& operator=(const PieceWriter&) = delete;

  ~PieceWriter() {
#if defined(__x86_64__)
    if (aside_ != nullptr) _mm_sfence();  // before another thread may read the result
#endif
  }

  // Whether pieces are made where they belong.
  bool in_place() const { return aside_ == nullptr; }

  // Calls make(memory), which makes the piece that belongs at `to`.
  template <class Make>
  void write(T* to, const Make& make) const {
    if (in_place()) return make(to);
    make(aside_);
#if defined(__x86_64__)
    if (reinterpret_cast<uintptr_t>(to) % kLine == 0) {
      constexpr int64_t kPart = sizeof(__m128i);
      for (int64_t i = 0; i < piece_ * static_cast<int64_t>(sizeof(T)) / kPart; ++i)
        _mm_stream_si128(reinterpret_cast<__m128i*>(to) + i,
                         _mm_load_si128(reinterpret_cast<const __m128i*>(aside_) + i));
      return;
    }
#endif
    std::copy_n(aside_, piece_, to);
  }

 private:
  static constexpr int64_t kLine = 64;

  int64_t piece_;
  T* aside_ = nullptr;
};

}  // namespace cpu
}  // namespace pydet
