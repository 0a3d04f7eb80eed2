// SPDX-License-Identifier: Apache-2.0
// The CPU kernels and the emulated CUDA kernels around the sizes of their pieces, for the
// sanitizers.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "box_loss/box_loss.h"
#include "check.h"
#include "device.h"

namespace {

using device::in;
using device::out;
using device::scratch;

using pydet::BoxLossArgs;
using pydet::Overlap;

constexpr Overlap kOverlaps[] = {Overlap::kIou, Overlap::kGeneralized, Overlap::kDistance,
                                 Overlap::kComplete};

// CUDA's wide loads want what its allocator gives, and std::vector does not promise.
struct alignas(16) Four {
  float x[4];
};

struct Boxes {
  std::vector<Four> rows;
  explicit Boxes(int64_t count) : rows(count) {}
  float* data() { return rows.empty() ? nullptr : rows[0].x; }
  const float* data() const { return rows.empty() ? nullptr : rows[0].x; }
};

// A few of them degenerate.
Boxes random_boxes(int64_t count, uint32_t seed) {
  Boxes boxes(count);
  for (Four& box : boxes.rows) {
    seed = seed * 1664525u + 1013904223u;
    const float x = static_cast<float>(seed >> 24), y = static_cast<float>(seed >> 16 & 255);
    const float width = static_cast<float>(seed >> 8 & 63), height = static_cast<float>(seed & 63);
    box = {{x, y, x + width, y + height}};
  }
  return boxes;
}

void check_close(const float* a, const float* b, size_t count) {
  float largest = 1e-3f;
  for (size_t i = 0; i < count; ++i) largest = std::max(largest, std::abs(b[i]));
  for (size_t i = 0; i < count; ++i) CHECK(std::abs(a[i] - b[i]) <= 1e-4f * largest);
}

void test_size(Overlap overlap, int64_t count, bool along_v) {
  const Boxes a = random_boxes(count, 1), b = random_boxes(count, 2);
  const Boxes v1 = random_boxes(count, 3), v2 = random_boxes(count, 4);
  const BoxLossArgs<float> args{overlap,
                                count,
                                1e-3,
                                0.5,
                                a.data(),
                                b.data(),
                                along_v ? v1.data() : nullptr,
                                along_v ? v2.data() : nullptr};
  std::vector<float> loss(count), cuda_loss(count);
  pydet::cpu::box_loss(args, loss.data());
  const auto gpu_a = in(a.data(), 4 * count), gpu_b = in(b.data(), 4 * count);
  const auto gpu_v1 = in(args.v1, 4 * count), gpu_v2 = in(args.v2, 4 * count);
  const BoxLossArgs<float> on_gpu{overlap,      count,        1e-3,          0.5,
                                  gpu_a.data(), gpu_b.data(), gpu_v1.data(), gpu_v2.data()};
  CHECK(pydet::cuda::box_loss(on_gpu, out(cuda_loss).data(), nullptr) == nullptr);
  check_close(cuda_loss.data(), loss.data(), count);

  std::vector<double> partials(pydet::box_loss_pieces(count));
  float sum = -1, cuda_sum = -1;
  double wanted = 0;
  for (float x : loss) wanted += 0.5 * x;
  pydet::cpu::box_loss_sum(args, partials.data(), &sum);
  CHECK(pydet::cuda::box_loss_sum(on_gpu, scratch(partials).data(), out(&cuda_sum, 1).data(),
                                  nullptr) == nullptr);
  CHECK(std::abs(sum - wanted) <= 1e-5 * (1 + std::abs(wanted)));
  CHECK(std::abs(cuda_sum - wanted) <= 1e-5 * (1 + std::abs(wanted)));

  const std::vector<float> grad(count + 1, 0.75f);
  for (bool of_sum : {false, true}) {
    Boxes grad_a(count), grad_b(count), cuda_grad_a(count), cuda_grad_b(count);
    pydet::cpu::box_loss_backward(args, of_sum, grad.data(), grad_a.data(), grad_b.data());
    CHECK(pydet::cuda::box_loss_backward(
              on_gpu, of_sum, in(grad).data(), out(cuda_grad_a.data(), 4 * count).data(),
              out(cuda_grad_b.data(), 4 * count).data(), nullptr) == nullptr);
    check_close(cuda_grad_a.data(), grad_a.data(), 4 * count);
    check_close(cuda_grad_b.data(), grad_b.data(), 4 * count);
    for (int64_t i = 0; i < count; ++i) {
      // Moving both boxes by one vector changes no loss.
      const float *x = grad_a.rows[i].x, *y = grad_b.rows[i].x;
      float largest = 1;
      for (int k = 0; k < 4; ++k) largest = std::max({largest, std::abs(x[k]), std::abs(y[k])});
      CHECK(std::abs(x[0] + x[2] + y[0] + y[2]) <= 1e-5f * largest);
      CHECK(std::abs(x[1] + x[3] + y[1] + y[3]) <= 1e-5f * largest);
    }
  }
}

}  // namespace

int main() {
  for (Overlap overlap : kOverlaps) {
    for (bool along_v : {false, true}) {
      for (int64_t count : {0, 1, 255, 2049}) test_size(overlap, count, along_v);
    }
  }
  return check::result();
}
