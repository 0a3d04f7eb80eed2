// SPDX-License-Identifier: Apache-2.0
// The operations on single boxes, on the CPU and as an emulated CUDA kernel, at the edges of their
// tasks and blocks, for the sanitizers.
#include <cstdint>
#include <vector>

#include "boxes/boxes.h"
#include "check.h"
#include "device.h"

namespace {

using pydet::BoxFormat;

constexpr BoxFormat kFormats[] = {BoxFormat::kXyxy, BoxFormat::kXywh, BoxFormat::kCxcywh};

std::vector<float> random_boxes(int64_t count) {
  std::vector<float> boxes;
  uint32_t seed = 1;
  for (int64_t i = 0; i < 4 * count; ++i) {
    seed = seed * 1664525u + 1013904223u;
    boxes.push_back(static_cast<float>(seed >> 20) / 4 - 100);
  }
  return boxes;
}

// Runs an operation that writes to `out` on both devices; the results must be equal, and all of
// them written.
template <class Operation, class Out>
void run_both(int64_t count, const Operation& operation, std::vector<Out>& out, Out unset) {
  out.assign(out.size(), unset);
  pydet::cpu::for_each_box(count, operation);
  const std::vector<Out> on_cpu = out;
  for (const Out& value : on_cpu) CHECK(value != unset);
#if !defined(PYDET_ON_GPU)  // the operation has pointers to the host's memory
  out.assign(out.size(), unset);
  CHECK(pydet::cuda::for_each_box(count, operation, nullptr) == nullptr);
  CHECK(out == on_cpu);
#endif
}

void test_count(int64_t count) {
  const std::vector<float> boxes = random_boxes(count);
  std::vector<float> areas(count), converted(4 * count), back(4 * count), clipped(4 * count);
  constexpr float kUnset = 12345.678f;
  for (BoxFormat in : kFormats) {
    run_both(count, pydet::BoxArea<float>{in, boxes.data(), areas.data()}, areas, kUnset);
    run_both(count, pydet::BoxAreaBackward<float>{in, areas.data(), boxes.data(), back.data()},
             back, kUnset);
    for (BoxFormat to : kFormats) {
      run_both(count, pydet::BoxConvert<float>{in, to, boxes.data(), converted.data()}, converted,
               kUnset);
      // The numbers are multiples of 1/4: there and back is exact.
      run_both(count, pydet::BoxConvert<float>{to, in, converted.data(), back.data()}, back,
               kUnset);
      CHECK(back == boxes);
      run_both(count, pydet::BoxConvertBackward<float>{in, to, boxes.data(), back.data()}, back,
               kUnset);
    }
  }
  run_both(count, pydet::ClipBoxes<float>{200, 300, boxes.data(), clipped.data()}, clipped, kUnset);
  for (size_t i = 0; i < clipped.size(); ++i) {
    CHECK(clipped[i] >= 0 && clipped[i] <= (i % 2 == 0 ? 300 : 200));
  }
  run_both(count,
           pydet::ClipBoxesBackward<float>{200, 300, boxes.data(), boxes.data(), clipped.data()},
           clipped, kUnset);
  // std::vector<bool> has no pointer.
  struct Flags {
    bool values[20000];
  };
  std::vector<Flags> flags(1);
  for (bool& value : flags[0].values) value = true;
  pydet::cpu::for_each_box(count, pydet::LargeBoxes<float>{50, boxes.data(), flags[0].values});
  for (int64_t i = 0; i < count; ++i) {
    const float* box = boxes.data() + 4 * i;
    CHECK(flags[0].values[i] == (box[2] - box[0] >= 50 && box[3] - box[1] >= 50));
  }
}

// Views of tensors may start anywhere: where boxes are not aligned to themselves the same comes
// out.
void test_views(int64_t count) {
  const std::vector<float> boxes = random_boxes(count);
  std::vector<float> shifted(boxes), wanted(boxes.size()), found(boxes.size() + 1, -1);
  shifted.insert(shifted.begin(), 0.0f);
  pydet::cpu::for_each_box(count, pydet::BoxConvert<float>{BoxFormat::kXyxy, BoxFormat::kCxcywh,
                                                           boxes.data(), wanted.data()});
#if !defined(PYDET_ON_GPU)
  const pydet::BoxConvert<float> view{BoxFormat::kXyxy, BoxFormat::kCxcywh, shifted.data() + 1,
                                      found.data() + 1};
  CHECK(pydet::cuda::for_each_box(count, view, nullptr) == nullptr);
  CHECK(found[0] == -1 && std::vector<float>(found.begin() + 1, found.end()) == wanted);
#endif
}

// Masks of a size that is no multiple of a load, so that they start anywhere.
template <class T>
void test_masks() {
  const int64_t count = 5, height = 7, width = 307;
  std::vector<T> masks(count * height * width, T(0));
  const auto set = [&](int64_t mask, int64_t y, int64_t x) {
    masks[(mask * height + y) * width + x] = T(1);
  };
  set(0, 0, 0);
  set(1, 6, 306);
  set(2, 3, 299), set(2, 5, 12), set(2, 4, 150);
  for (int64_t x = 0; x < width; ++x) set(4, 2, x);
  const std::vector<float> wanted{0,   0, 0, 0, 306, 6, 306, 6, 12,  3,
                                  299, 5, 0, 0, 0,   0, 0,   2, 306, 2};
  std::vector<float> boxes(4 * count, -1), cuda_boxes(boxes);
  pydet::cpu::masks_to_boxes(count, height, width, masks.data(), boxes.data());
  CHECK(boxes == wanted);
  CHECK(pydet::cuda::masks_to_boxes(count, height, width, device::in(masks).data(),
                                    device::out(cuda_boxes).data(), nullptr) == nullptr);
  CHECK(cuda_boxes == wanted);
}

}  // namespace

int main() {
  test_masks<uint8_t>();
  test_masks<int16_t>();
  test_masks<float>();
  test_masks<double>();
  test_views(257);
  for (int64_t count : {0, 1, 255, 256, 257, 16385}) test_count(count);
  return check::result();
}
