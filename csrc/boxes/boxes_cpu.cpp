// SPDX-License-Identifier: Apache-2.0
#include "boxes/boxes.h"
#include "common/parallel_for.h"

namespace pydet {
namespace cpu {

// Boxes a thread takes at a time.
constexpr int64_t kGrain = 1 << 14;

// No vector code of its own: a box is 16 bytes in and 16 out for a handful of operations, so the
// memory sets the pace.
template <class Operation>
void for_each_box(int64_t count, const Operation& operation) {
  parallel_for(count, kGrain, [&](int64_t begin, int64_t end) {
    const Operation local = operation;  // its numbers are the loop's own, whatever it writes to
    for (int64_t i = begin; i < end; ++i) local(i);
  });
}

template void for_each_box(int64_t, const BoxArea<float>&);
template void for_each_box(int64_t, const BoxArea<double>&);
template void for_each_box(int64_t, const BoxArea<Half>&);
template void for_each_box(int64_t, const BoxArea<BFloat16>&);
template void for_each_box(int64_t, const BoxArea<uint64_t>&);
template void for_each_box(int64_t, const BoxAreaBackward<float>&);
template void for_each_box(int64_t, const BoxAreaBackward<double>&);
template void for_each_box(int64_t, const BoxAreaBackward<Half>&);
template void for_each_box(int64_t, const BoxAreaBackward<BFloat16>&);
template void for_each_box(int64_t, const BoxConvert<float>&);
template void for_each_box(int64_t, const BoxConvert<double>&);
template void for_each_box(int64_t, const BoxConvert<Half>&);
template void for_each_box(int64_t, const BoxConvert<BFloat16>&);
template void for_each_box(int64_t, const BoxConvert<uint64_t>&);
template void for_each_box(int64_t, const BoxConvertBackward<float>&);
template void for_each_box(int64_t, const BoxConvertBackward<double>&);
template void for_each_box(int64_t, const BoxConvertBackward<Half>&);
template void for_each_box(int64_t, const BoxConvertBackward<BFloat16>&);
template void for_each_box(int64_t, const ClipBoxes<float>&);
template void for_each_box(int64_t, const ClipBoxes<double>&);
template void for_each_box(int64_t, const ClipBoxes<Half>&);
template void for_each_box(int64_t, const ClipBoxes<BFloat16>&);
template void for_each_box(int64_t, const ClipBoxes<int64_t>&);
template void for_each_box(int64_t, const ClipBoxesBackward<float>&);
template void for_each_box(int64_t, const ClipBoxesBackward<double>&);
template void for_each_box(int64_t, const ClipBoxesBackward<Half>&);
template void for_each_box(int64_t, const ClipBoxesBackward<BFloat16>&);
template void for_each_box(int64_t, const LargeBoxes<float>&);
template void for_each_box(int64_t, const LargeBoxes<double>&);
template void for_each_box(int64_t, const LargeBoxes<Half>&);
template void for_each_box(int64_t, const LargeBoxes<BFloat16>&);
template void for_each_box(int64_t, const LargeBoxes<int64_t>&);

}  // namespace cpu
}  // namespace pydet
