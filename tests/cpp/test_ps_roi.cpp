// SPDX-License-Identifier: Apache-2.0
// The CPU kernels and the emulated CUDA kernels in both layouts, for the sanitizers.
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "check.h"
#include "device.h"
#include "ps_roi/ps_roi.h"

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

std::vector<float> random_rois(int64_t count) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  std::vector<float> rois{0,     0, 0, kInfinity, 4, -1, 0, 0, 4, 4, 1,  NAN, 0,   4, 4, 0, 0, 0,
                          3e38f, 4, 0, -3e38f,    0, 9,  4, 1, 9, 9, -9, -9,  NAN, 0, 0, 4, 4};
  Random random{7};
  for (int64_t i = 0; i < count; ++i) {
    rois.insert(rois.end(), {random.below(3), random.below(80) - 8, random.below(80) - 8,
                             random.below(80), random.below(80)});
  }
  return rois;
}

bool close(const std::vector<float>& a, const std::vector<float>& b) {
  for (size_t i = 0; i < a.size(); ++i) {
    // Sums of a few hundred products of at most 4, in two orders.
    if (!(std::abs(a[i] - b[i]) < 1e-3f)) return false;
  }
  return true;
}

void test_size(int64_t channels, int64_t height, int64_t width, int64_t ratio, bool align,
               bool last) {
  const std::vector<float> rois = random_rois(14);
  const pydet::PsRoiParams<float> p{
      2,     6 * channels, height, width,      static_cast<int64_t>(rois.size() / 5), 2, 3, ratio,
      align, last,         0.25f,  rois.data()};
  const int64_t map_size = p.batch * p.channels * height * width;
  Random random{3};
  std::vector<float> map(map_size), pooled_out(p.num_rois * p.channels, -9), cuda_out(pooled_out);
  for (float& cell : map) cell = random.below(8) - 4;
  std::vector<float> grad_out(pooled_out.size()), grad(map_size, -9);
  for (float& cell : grad_out) cell = random.below(8) - 4;
  pydet::cpu::ps_roi(p, map.data(), pooled_out.data());
  const auto gpu_rois = in(rois);
  pydet::PsRoiParams<float> on_gpu = p;
  on_gpu.rois = gpu_rois.data();
  CHECK(pydet::cuda::ps_roi(on_gpu, in(map).data(), out(cuda_out).data(), nullptr) == nullptr);
  CHECK(close(pooled_out, cuda_out));
  pydet::cpu::ps_roi_backward(p, grad_out.data(), grad.data());
  for (bool deterministic : {false, true}) {
    std::vector<float> cuda_grad(map_size, -9);
    CHECK(pydet::cuda::ps_roi_backward(on_gpu, in(grad_out).data(), deterministic,
                                       out(cuda_grad).data(), nullptr) == nullptr);
    CHECK(close(grad, cuda_grad));
  }
  // Both are linear, one the transpose of the other.
  double forward = 0, backward = 0;
  for (size_t i = 0; i < pooled_out.size(); ++i) forward += double{pooled_out[i]} * grad_out[i];
  for (int64_t i = 0; i < map_size; ++i) backward += double{map[i]} * grad[i];
  CHECK(std::abs(forward - backward) < 1e-4 * (1 + std::abs(forward)));
}

}  // namespace

int main() {
  for (bool last : {false, true}) {
    test_size(2, 13, 21, 1, false, last);
    test_size(1, 1, 5, 1, false, last);
    test_size(1, 0, 5, 1, false, last);
    for (int64_t ratio : {-1, 2}) {
      test_size(6, 13, 21, ratio, true, last);  // work for several threads
      test_size(1, 1, 5, ratio, true, last);
      test_size(1, 0, 5, ratio, true, last);
    }
  }
  return check::result();
}
