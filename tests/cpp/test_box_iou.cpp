// SPDX-License-Identifier: Apache-2.0
// The CPU kernel and the emulated CUDA kernel at the edges of their tiles, for the sanitizers.
#include <cmath>
#include <cstdint>
#include <vector>

#include "box_iou/box_iou.h"
#include "check.h"
#include "common/box.h"

namespace {

std::vector<float> random_boxes(int64_t count, uint32_t seed) {
  std::vector<float> boxes;
  for (int64_t i = 0; i < count; ++i) {
    seed = seed * 1664525u + 1013904223u;
    const float x = static_cast<float>(seed >> 24), y = static_cast<float>(seed >> 16 & 255);
    const float width = static_cast<float>(seed >> 8 & 63), height = static_cast<float>(seed & 63);
    boxes.insert(boxes.end(), {x, y, x + 1 + width, y + 1 + height});
  }
  return boxes;
}

void test_sizes(int64_t batch, int64_t n, int64_t m) {
  const std::vector<float> a = random_boxes(batch * n, 1), b = random_boxes(batch * m, 2);
  std::vector<float> iou(batch * n * m, -1), grad(batch * n * m, 1);
  std::vector<float> grad_a(a.size()), grad_b(b.size());
  pydet::cpu::box_iou(batch, n, m, a.data(), b.data(), iou.data());
  for (int64_t k = 0; k < batch; ++k) {
    for (int64_t i = 0; i < n; ++i) {
      for (int64_t j = 0; j < m; ++j) {
        const float wanted =
            pydet::iou(pydet::load_box(a.data(), k * n + i), pydet::load_box(b.data(), k * m + j));
        CHECK(iou[(k * n + i) * m + j] == wanted);
      }
    }
  }
  pydet::cpu::box_iou_backward(batch, n, m, grad.data(), a.data(), b.data(), grad_a.data(),
                               grad_b.data());
  // The CUDA kernels give the same bits; their gradients add up in another order.
  std::vector<float> cuda_iou(iou.size(), -1), cuda_grad_a(grad_a), cuda_grad_b(grad_b);
  CHECK(pydet::cuda::box_iou(batch, n, m, a.data(), b.data(), cuda_iou.data(), nullptr) == nullptr);
  CHECK(cuda_iou == iou);
  CHECK(pydet::cuda::box_iou_backward(batch, n, m, grad.data(), a.data(), b.data(),
                                      cuda_grad_a.data(), cuda_grad_b.data(), nullptr) == nullptr);
  for (size_t i = 0; i < grad_a.size(); ++i) CHECK(std::abs(cuda_grad_a[i] - grad_a[i]) < 1e-3);
  for (size_t i = 0; i < grad_b.size(); ++i) CHECK(std::abs(cuda_grad_b[i] - grad_b[i]) < 1e-3);
  // Moving all boxes by one vector changes no IoU: the gradients along x add up to nothing.
  double along_x = 0;
  for (size_t i = 0; i < grad_a.size(); i += 2) along_x += grad_a[i];
  for (size_t i = 0; i < grad_b.size(); i += 2) along_x += grad_b[i];
  CHECK(std::abs(along_x) < 1e-2);
}

}  // namespace

int main() {
  for (int64_t n : {0, 1, 3, 65}) {
    for (int64_t m : {0, 1, 1023, 1024, 1025, 2049}) test_sizes(2, n, m);
  }
  return check::result();
}
