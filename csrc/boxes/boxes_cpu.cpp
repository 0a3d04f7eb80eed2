// SPDX-License-Identifier: Apache-2.0
#include <algorithm>

#include "boxes/boxes.h"
#include "common/isa.h"
#include "common/parallel_for.h"

namespace pydet {
namespace cpu {
namespace {

// The first and the last element of p[0, count) that is set; count and -1 where none is. Looked at
// in pieces without branches, which the compiler vectorises.
constexpr int64_t kPiece = 256;

template <class T>
bool any_set(const T* p, int64_t count) {
  bool any = false;
  for (int64_t i = 0; i < count; ++i) any |= is_set(p[i]);
  return any;
}

template <class T>
int64_t first_set(const T* p, int64_t count) {
  int64_t i = 0;
  while (i < count && !any_set(p + i, std::min(kPiece, count - i))) i += kPiece;
  while (i < count && !is_set(p[i])) ++i;
  return std::min(i, count);
}

template <class T>
int64_t last_set(const T* p, int64_t count) {
  while (count > 0) {
    const int64_t piece = std::min(kPiece, count);
    if (any_set(p + count - piece, piece)) break;
    count -= piece;
  }
  while (count > 0 && !is_set(p[count - 1])) --count;
  return count - 1;
}

// Above and below the object all elements are read, beside it those left and right of what is known
// of it, and those within not at all.
template <class T>
struct MaskToBox {
  static void run(int64_t height, int64_t width, const T* mask, float* box) {
    const int64_t first = first_set(mask, height * width);
    std::fill(box, box + 4, 0.0f);
    if (first == height * width) return;
    const int64_t top = first / width, bottom = last_set(mask, height * width) / width;
    int64_t left = first % width, right = left;
    for (int64_t y = top; y <= bottom; ++y) {
      const T* row = mask + y * width;
      left = std::min(left, first_set(row, left));
      right = std::max(right, right + 1 + last_set(row + right + 1, width - right - 1));
    }
    box[0] = static_cast<float>(left);
    box[1] = static_cast<float>(top);
    box[2] = static_cast<float>(right);
    box[3] = static_cast<float>(bottom);
  }
};

}  // namespace

// Boxes a thread takes at a time.
constexpr int64_t kGrain = 1 << 14;

// No vector code of its own: a box is 16 bytes in and 16 out for a handful of operations, so the
// memory sets the pace.
template <class Operation>
void for_each_box(int64_t count, const Operation& operation) {
  parallel_for(count, kGrain, [&](int64_t begin, int64_t end) {
    const Operation local = operation;  // its numbers are the loop's own, whatever it writes to
    for (int64_t i = begin; i < end; ++i) local(i, BoxNumbers{});
  });
}

template <class T>
void masks_to_boxes(int64_t count, int64_t height, int64_t width, const T* masks, float* boxes) {
  parallel_for(count, 1, [=](int64_t i, int64_t) {
    run_on_best_isa<MaskToBox<T>>(height, width, masks + i * height * width, boxes + 4 * i);
  });
}

template void masks_to_boxes(int64_t, int64_t, int64_t, const uint8_t*, float*);
template void masks_to_boxes(int64_t, int64_t, int64_t, const int16_t*, float*);
template void masks_to_boxes(int64_t, int64_t, int64_t, const int32_t*, float*);
template void masks_to_boxes(int64_t, int64_t, int64_t, const int64_t*, float*);
template void masks_to_boxes(int64_t, int64_t, int64_t, const float*, float*);
template void masks_to_boxes(int64_t, int64_t, int64_t, const double*, float*);
template void masks_to_boxes(int64_t, int64_t, int64_t, const Half*, float*);
template void masks_to_boxes(int64_t, int64_t, int64_t, const BFloat16*, float*);

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
