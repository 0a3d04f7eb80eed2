// SPDX-License-Identifier: Apache-2.0
// The CPU kernels and the emulated CUDA kernels in both layouts, for the sanitizers.
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "check.h"
#include "device.h"
#include "roi_pool/roi_pool.h"

namespace {

using device::in;
using device::out;
using device::scratch;

using Params = pydet::RoiPoolParams<float>;

struct Random {
  uint32_t state;
  uint32_t next() { return state = state * 1664525u + 1013904223u; }
  float below(uint32_t count) { return static_cast<float>((next() >> 8) % count); }
};

// Few values, so that many cells tie; some are NaN.
std::vector<float> random_map(int64_t count, uint32_t seed) {
  Random random{seed};
  std::vector<float> map(count);
  for (float& cell : map) {
    cell = random.below(50) == 0 ? std::numeric_limits<float>::quiet_NaN() : random.below(8) - 4;
  }
  return map;
}

std::vector<float> random_rois(int64_t count, uint32_t seed) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  std::vector<float> rois{0, 0, 0, kInfinity, 4, -1,    0, 0, 4, 4, 1,  NAN, 0,
                          4, 4, 0, 0,         0, 3e38f, 4, 1, 9, 9, -9, -9};
  Random random{seed};
  for (int64_t i = 0; i < count; ++i) {
    rois.insert(rois.end(), {random.below(3), random.below(80) - 8, random.below(80) - 8,
                             random.below(80), random.below(80)});
  }
  return rois;
}

// The largest cell of a bin, by the definition.
int32_t largest(const Params& p, const std::vector<float>& map, int64_t r, int64_t c, int64_t ph,
                int64_t pw, float* value) {
  const auto place = pydet::roi_pool_place(p, r);
  *value = 0;
  if (place.image < 0) return -1;
  const auto y = pydet::bin_cells(place.y, ph, p.height);
  const auto x = pydet::bin_cells(place.x, pw, p.width);
  if (y.begin >= y.end || x.begin >= x.end) return -1;
  *value = -std::numeric_limits<float>::infinity();
  int64_t best = -1;
  for (int64_t i = y.begin; i < y.end; ++i) {
    for (int64_t j = x.begin; j < x.end; ++j) {
      const int64_t cell = i * p.width + j, cells = p.height * p.width;
      const float here = p.channels_last ? map[(place.image * cells + cell) * p.channels + c]
                                         : map[(place.image * p.channels + c) * cells + cell];
      if (here > *value) {
        *value = here;
        best = cell;
      }
    }
  }
  return static_cast<int32_t>(best);
}

bool same(const std::vector<float>& a, const std::vector<float>& b) { return a == b; }

void test_size(int64_t channels, int64_t height, int64_t width, int64_t pooled, bool last) {
  const std::vector<float> rois = random_rois(20, 7);
  const Params p{2,      channels, height, width, static_cast<int64_t>(rois.size() / 5),
                 pooled, pooled,   last,   0.25f, rois.data()};
  const int64_t map_size = 2 * channels * height * width, bins = pooled * pooled;
  const std::vector<float> map = random_map(map_size, 3);
  const std::vector<float> values = random_map(map_size, 5);
  std::vector<float> pooled_out(p.num_rois * channels * bins, -9), cuda_out(pooled_out),
      wanted(pooled_out);
  std::vector<float> gathered(pooled_out), cuda_gathered(pooled_out);
  std::vector<float> grad_out(pooled_out.size()), grad(map_size, -9), wanted_grad(map_size, 0);
  for (size_t i = 0; i < grad_out.size(); ++i) grad_out[i] = static_cast<float>(i % 7) - 3;
  pydet::cpu::roi_pool(p, map.data(), pooled_out.data());
  pydet::cpu::roi_pool_gather(p, map.data(), values.data(), gathered.data());
  pydet::cpu::roi_pool_backward(p, map.data(), grad_out.data(), grad.data());
  for (int64_t r = 0; r < p.num_rois; ++r) {
    for (int64_t c = 0; c < channels; ++c) {
      for (int64_t bin = 0; bin < bins; ++bin) {
        const int64_t k = r * channels * bins + (last ? bin * channels + c : c * bins + bin);
        const int32_t cell = largest(p, map, r, c, bin / pooled, bin % pooled, &wanted[k]);
        if (cell < 0) {
          CHECK(gathered[k] == 0);
          continue;
        }
        const int64_t image = pydet::roi_pool_place(p, r).image * channels * height * width;
        const int64_t at = image + (last ? cell * channels + c : c * height * width + cell);
        wanted_grad[at] += grad_out[k];
        CHECK(gathered[k] == values[at] || values[at] != values[at]);
      }
    }
  }
  CHECK(same(pooled_out, wanted));
  CHECK(same(grad, wanted_grad));  // small integers: no order of additions rounds
  // The CUDA kernels: the same, by both ways of adding up.
  const auto gpu_rois = in(rois);
  Params on_gpu = p;
  on_gpu.rois = gpu_rois.data();
  CHECK(pydet::cuda::roi_pool(on_gpu, in(map).data(), out(cuda_out).data(), nullptr) == nullptr);
  CHECK(same(cuda_out, wanted));
  CHECK(pydet::cuda::roi_pool_gather(on_gpu, in(map).data(), in(values).data(),
                                     out(cuda_gathered).data(), nullptr) == nullptr);
  for (size_t i = 0; i < gathered.size(); ++i) {
    CHECK(cuda_gathered[i] == gathered[i] || gathered[i] != gathered[i]);
  }
  for (bool deterministic : {false, true}) {
    std::vector<int32_t> workspace(grad_out.size());
    const auto gpu_workspace = scratch(workspace);
    std::vector<float> cuda_grad(map_size, -9);
    CHECK(pydet::cuda::roi_pool_backward(on_gpu, in(map).data(), in(grad_out).data(),
                                         deterministic ? gpu_workspace.data() : nullptr,
                                         out(cuda_grad).data(), nullptr) == nullptr);
    CHECK(same(cuda_grad, wanted_grad));
  }
}

}  // namespace

int main() {
  for (bool last : {false, true}) {
    for (int64_t channels : {1, 16, 27}) {
      test_size(channels, 13, 21, 3, last);
      test_size(channels, 5, 9, 7, last);
    }
    test_size(3, 0, 9, 2, last);
  }
  test_size(4, 3, 5, 46, true);  // more bins than a block keeps, and than one takes
  return check::result();
}
