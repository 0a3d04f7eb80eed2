// SPDX-License-Identifier: Apache-2.0
// The CPU kernels and the emulated CUDA kernels on small maps, in both layouts, for the sanitizers.
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "check.h"
#include "device.h"
#include "roi_align/roi_align.h"

namespace {

using device::in;
using device::out;

using Params = pydet::RoiAlignParams<float>;

uint32_t state = 1;
float random_float() {
  state = state * 1664525u + 1013904223u;
  return static_cast<float>(state >> 8) / (1 << 24);
}

std::vector<float> random_floats(int64_t count) {
  std::vector<float> values(count);
  for (float& value : values) value = random_float() * 2 - 1;
  return values;
}

// One call's tensors: two levels, of which `cells` counts the elements.
struct Call {
  Params params{};
  std::vector<float> rois, tangents, maps[2], grad_out;

  Call(int64_t channels, int64_t num_rois, int64_t pooled, int64_t ratio, bool aligned,
       bool channels_last, bool tangent_y, bool tangent_x) {
    params.batch = 2;
    params.channels = channels;
    params.num_rois = num_rois;
    params.pooled_height = pooled;
    params.pooled_width = pooled + 1;
    params.sampling_ratio = ratio;
    params.aligned = aligned;
    params.channels_last = channels_last;
    params.tangent_y = tangent_y;
    params.tangent_x = tangent_x;
    params.num_levels = 2;
    params.canonical_scale = 1;
    params.levels[0] = {9, 35, 0.5f, 0.0f};
    params.levels[1] = {5, 18, 0.25f, 12.0f};
    for (int64_t r = 0; r < num_rois; ++r) {
      const float x = random_float() * 60 - 10, y = random_float() * 20 - 5;
      rois.insert(rois.end(), {random_float() < 0.5f ? 0.0f : 1.0f, x, y,
                               x + 3 + random_float() * 30, y + 1 + random_float() * 20});
    }
    // What must not be trusted: other images, NaN, infinities, enormous and inverted boxes.
    const float nan = std::numeric_limits<float>::quiet_NaN();
    const float inf = std::numeric_limits<float>::infinity();
    const float odd[8][5] = {{2, 1, 1, 9, 9},          {-1, 1, 1, 9, 9},
                             {nan, 1, 1, 9, 9},        {0, nan, 1, 9, 9},
                             {0, 1, 1, inf, 9},        {1, -1e6f, -1e6f, 1e6f, 1e6f},
                             {1, -1e30f, 0, 1e30f, 9}, {0, 9, 9, 1, 1}};
    for (int64_t r = 0; r < num_rois && r < 8; ++r) {
      for (int64_t k = 0; k < 5; ++k) rois[5 * r + k] = odd[r][k];
    }
    tangents = random_floats(4 * num_rois);
    params.rois = rois.data();
    params.tangents = tangents.data();
    for (int i = 0; i < 2; ++i)
      maps[i] = random_floats(2 * channels * params.levels[i].height * params.levels[i].width);
    grad_out = random_floats(num_rois * channels * pooled * (pooled + 1));
  }

  pydet::RoiLevelData<const float> features() const { return {{maps[0].data(), maps[1].data()}}; }
};

bool near(const std::vector<float>& a, const std::vector<float>& b) {
  if (a.size() != b.size()) return false;
  for (size_t i = 0; i < a.size(); ++i) {
    if (!(std::abs(a[i] - b[i]) <= 1e-4f * (1 + std::abs(b[i])))) return false;
  }
  return true;
}

double dot(const std::vector<float>& a, const std::vector<float>& b) {
  double sum = 0;
  for (size_t i = 0; i < a.size(); ++i) sum += static_cast<double>(a[i]) * b[i];
  return sum;
}

void test_call(const Call& call) {
  const Params& params = call.params;
  std::vector<float> pooled(call.grad_out.size(), 7), cuda_out(pooled);
  pydet::cpu::roi_align(params, call.features(), pooled.data());
  const auto rois = in(call.rois), tangents = in(call.tangents);
  const auto fine = in(call.maps[0]), coarse = in(call.maps[1]);
  Params on_gpu = params;
  on_gpu.rois = rois.data();
  on_gpu.tangents = tangents.data();
  const pydet::RoiLevelData<const float> features{{fine.data(), coarse.data()}};
  CHECK(pydet::cuda::roi_align(on_gpu, features, out(cuda_out).data(), nullptr) == nullptr);
  CHECK(near(pooled, cuda_out));

  // On the CPU, on CUDA by atomics, on CUDA cell by cell; each overwrites what was there.
  std::vector<float> grads[3][2];
  for (int i = 0; i < 3; ++i) {
    for (int level = 0; level < 2; ++level) grads[i][level].assign(call.maps[level].size(), 7);
    if (i == 0) {
      const pydet::RoiLevelData<float> data{{grads[i][0].data(), grads[i][1].data()}};
      pydet::cpu::roi_align_backward(params, call.grad_out.data(), data);
    } else {
      const auto first = out(grads[i][0]), second = out(grads[i][1]);
      const pydet::RoiLevelData<float> data{{first.data(), second.data()}};
      CHECK(pydet::cuda::roi_align_backward(on_gpu, in(call.grad_out).data(), data, i == 2,
                                            nullptr) == nullptr);
    }
  }
  for (int level = 0; level < 2; ++level) {
    CHECK(near(grads[1][level], grads[0][level]));
    CHECK(near(grads[2][level], grads[0][level]));
  }
  // The backward is the transpose of the forward: <grad_out, out> = <grad_features, features>.
  const double forward = dot(call.grad_out, pooled);
  const double backward = dot(grads[0][0], call.maps[0]) + dot(grads[0][1], call.maps[1]);
  CHECK(std::abs(forward - backward) <= 1e-3 * (1 + std::abs(forward)));

  std::vector<float> grad_rois(5 * params.num_rois, 7), cuda_grad_rois(grad_rois);
  pydet::cpu::roi_align_boxes_backward(params, call.grad_out.data(), call.features(),
                                       grad_rois.data());
  CHECK(pydet::cuda::roi_align_boxes_backward(on_gpu, in(call.grad_out).data(), features,
                                              out(cuda_grad_rois).data(), nullptr) == nullptr);
  CHECK(near(cuda_grad_rois, grad_rois));
}

}  // namespace

int main() {
  for (bool channels_last : {false, true}) {
    for (int64_t channels : {1, 4, 21}) {
      test_call(Call(channels, 11, 2, 2, false, channels_last, false, false));
      test_call(Call(channels, 9, 3, -1, true, channels_last, false, false));
    }
    test_call(Call(150, 6, 1, 1, false, channels_last, false, false));
    test_call(Call(40, 9, 1, 20, false, channels_last, false, false));
    // More samples than shared memory holds, and more RoIs than a block looks at a time.
    test_call(Call(1, 9, 2, 150, true, channels_last, false, false));
    test_call(Call(2, 300, 1, 1, false, channels_last, false, false));
    test_call(Call(3, 12, 2, 2, true, channels_last, true, false));
    test_call(Call(3, 12, 2, -1, false, channels_last, false, true));
    test_call(Call(3, 12, 2, 2, false, channels_last, true, true));
    test_call(Call(3, 0, 2, 2, false, channels_last, false, false));
  }
  return check::result();
}
