// SPDX-License-Identifier: Apache-2.0
// The CPU kernels and the emulated CUDA kernels, for the sanitizers.
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "check.h"
#include "deform_conv2d/deform_conv2d.h"
#include "device.h"

namespace {

using device::in;
using device::out;

struct Random {
  uint32_t state;
  float below(uint32_t count) {
    state = state * 1664525u + 1013904223u;
    return static_cast<float>((state >> 8) % count);
  }
};

// Multiples of 1/8 in [-limit, limit), so that sums are exact.
std::vector<float> eighths(int64_t count, uint32_t seed, uint32_t limit) {
  Random random{seed};
  std::vector<float> values(count);
  for (float& value : values) value = random.below(16 * limit) / 8 - static_cast<float>(limit);
  return values;
}

double dot(const std::vector<float>& a, const std::vector<float>& b) {
  double sum = 0;
  for (size_t i = 0; i < a.size(); ++i) sum += double{a[i]} * b[i];
  return sum;
}

bool close(const std::vector<float>& a, const std::vector<float>& b) {
  for (size_t i = 0; i < a.size(); ++i) {
    if (!(std::abs(a[i] - b[i]) < 1e-3f)) return false;
  }
  return true;
}

void test_size(int64_t height, int64_t width, int64_t groups, bool masked) {
  constexpr int64_t kChannels = 18, kTaps = 6, kOut = 35;
  const std::vector<float> input = eighths(kChannels * height * width, 1, 4);
  std::vector<float> offset = eighths(groups * kTaps * 2 * kOut, 2, 4);
  const std::vector<float> mask = eighths(groups * kTaps * kOut, 3, 1);
  const float special[] = {NAN, 1e30f, -1e30f, std::numeric_limits<float>::infinity()};
  for (int i = 0; i < 4; ++i) offset[10 + 7 * i] = special[i];
  for (int64_t begin : {0, 20}) {
    const int64_t count = begin == 0 ? 34 : 15;
    const pydet::DeformConvParams<float> p{kChannels,
                                           height,
                                           width,
                                           3,
                                           2,
                                           2,
                                           1,
                                           1,
                                           2,
                                           1,
                                           2,
                                           groups,
                                           5,
                                           7,
                                           begin,
                                           count,
                                           input.data(),
                                           offset.data(),
                                           masked ? mask.data() : nullptr};
    std::vector<float> columns(kChannels * kTaps * count, -9), cuda_columns(columns);
    pydet::cpu::deform_im2col(p, columns.data());
    const auto gpu_input = in(input), gpu_offset = in(offset), gpu_mask = in(mask);
    pydet::DeformConvParams<float> on_gpu = p;
    on_gpu.input = gpu_input.data();
    on_gpu.offset = gpu_offset.data();
    on_gpu.mask = masked ? gpu_mask.data() : nullptr;
    CHECK(pydet::cuda::deform_im2col(on_gpu, out(cuda_columns).data(), nullptr) == nullptr);
    CHECK(close(columns, cuda_columns));
    const std::vector<float> grad = eighths(static_cast<int64_t>(columns.size()), 4, 1);
    std::vector<float> to_input(input.size(), 0);
    pydet::cpu::deform_col2im(p, grad.data(), to_input.data());
    // Linear in the input, one the transpose of the other.
    CHECK(std::abs(dot(columns, grad) - dot(input, to_input)) < 1e-2);
    for (bool deterministic : {false, true}) {
      std::vector<float> cuda_to_input(input.size(), 0);
      CHECK(pydet::cuda::deform_col2im(on_gpu, in(grad).data(), deterministic,
                                       out(cuda_to_input).data(), nullptr) == nullptr);
      CHECK(close(to_input, cuda_to_input));
    }
    std::vector<float> to_offset(offset.size(), 0), to_mask(mask.size(), 0);
    std::vector<float> cuda_to_offset(to_offset), cuda_to_mask(to_mask);
    pydet::cpu::deform_col2points(p, grad.data(), to_offset.data(),
                                  masked ? to_mask.data() : nullptr);
    {
      const auto gpu_to_mask = out(cuda_to_mask);
      CHECK(pydet::cuda::deform_col2points(on_gpu, in(grad).data(), out(cuda_to_offset).data(),
                                           masked ? gpu_to_mask.data() : nullptr,
                                           nullptr) == nullptr);
    }
    CHECK(close(to_offset, cuda_to_offset) && close(to_mask, cuda_to_mask));
    // Linear in the mask, too; positions of other chunks are not touched.
    if (masked) CHECK(std::abs(dot(columns, grad) - dot(mask, to_mask)) < 1e-2);
    for (int64_t k = 0; k < groups * kTaps * 2; ++k) {
      CHECK(to_offset[k * kOut + (begin == 0 ? 34 : 19)] == 0);
    }
  }
}

}  // namespace

int main() {
  for (bool masked : {false, true}) {
    for (int64_t groups : {1, 2, 9}) test_size(9, 7, groups, masked);
    test_size(1, 1, 2, masked);
    test_size(0, 4, 1, masked);
  }
  return check::result();
}
