// SPDX-License-Identifier: Apache-2.0
// The CPU kernel and the emulated CUDA kernel at the edges of their tiles, for the sanitizers.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "box_iou/box_iou.h"
#include "check.h"
#include "device.h"

namespace {

using device::in;
using device::out;

using pydet::Overlap;

constexpr Overlap kOverlaps[] = {Overlap::kIou, Overlap::kGeneralized, Overlap::kDistance,
                                 Overlap::kComplete};

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

// The last bits of the largest number: sums over pairs come in another order.
void check_close(const std::vector<float>& a, const std::vector<float>& b) {
  float largest = 1e-3f;
  for (float x : b) largest = std::max(largest, std::abs(x));
  for (size_t i = 0; i < a.size(); ++i) CHECK(std::abs(a[i] - b[i]) < 1e-4f * largest);
}

template <Overlap kOverlap>
float overlap_of(const std::vector<float>& a, int64_t i, const std::vector<float>& b, int64_t j,
                 float eps) {
  using Kind = pydet::OverlapKind<kOverlap, false>;
  return pydet::overlap<Kind>(pydet::measure<Kind>(pydet::load_box(a.data(), i)),
                              pydet::measure<Kind>(pydet::load_box(b.data(), j)),
                              pydet::OverlapEps<float>{0, eps, eps});
}

float wanted_overlap(Overlap overlap, const std::vector<float>& a, int64_t i,
                     const std::vector<float>& b, int64_t j, float eps) {
  switch (overlap) {
    case Overlap::kIou:
      return overlap_of<Overlap::kIou>(a, i, b, j, eps);
    case Overlap::kGeneralized:
      return overlap_of<Overlap::kGeneralized>(a, i, b, j, eps);
    case Overlap::kDistance:
      return overlap_of<Overlap::kDistance>(a, i, b, j, eps);
    case Overlap::kComplete:
      break;
  }
  return overlap_of<Overlap::kComplete>(a, i, b, j, eps);
}

void test_sizes(Overlap overlap, int64_t batch, int64_t n, int64_t m) {
  const pydet::BoxIouArgs args{overlap, 1e-7, batch, n, m};
  const std::vector<float> a = random_boxes(batch * n, 1), b = random_boxes(batch * m, 2);
  std::vector<float> iou(batch * n * m, -9), cuda_iou(iou), grad(batch * n * m, 1);
  pydet::cpu::box_iou(args, a.data(), b.data(), iou.data());
  for (int64_t k = 0; k < batch; ++k) {
    for (int64_t i = 0; i < n; ++i) {
      for (int64_t j = 0; j < m; ++j) {
        CHECK(iou[(k * n + i) * m + j] ==
              wanted_overlap(overlap, a, k * n + i, b, k * m + j, 1e-7f));
      }
    }
  }
  // The CUDA kernels give the same bits; their gradients add up in another order.
  CHECK(pydet::cuda::box_iou(args, in(a).data(), in(b).data(), out(cuda_iou).data(), nullptr) ==
        nullptr);
  CHECK(cuda_iou == iou);

  std::vector<float> grad_a(a.size()), grad_b(b.size()), cuda_grad_a(grad_a), cuda_grad_b(grad_b);
  pydet::cpu::box_iou_backward(args, grad.data(), a.data(), b.data(), grad_a.data(), grad_b.data());
  CHECK(pydet::cuda::box_iou_backward(args, in(grad).data(), in(a).data(), in(b).data(),
                                      out(cuda_grad_a).data(), out(cuda_grad_b).data(),
                                      nullptr) == nullptr);
  check_close(cuda_grad_a, grad_a);
  check_close(cuda_grad_b, grad_b);
  // Moving all boxes by one vector changes no overlap: the gradients along x add up to nothing.
  double along_x = 0;
  for (size_t i = 0; i < grad_a.size(); i += 2) along_x += grad_a[i];
  for (size_t i = 0; i < grad_b.size(); i += 2) along_x += grad_b[i];
  CHECK(std::abs(along_x) < 1e-2);

  std::vector<float> second(iou.size(), -9), cuda_second(second);
  const std::vector<float> v1 = random_boxes(batch * n, 3), v2 = random_boxes(batch * m, 4);
  pydet::cpu::box_iou_double_backward(args, {v1.data(), v2.data(), second.data()}, grad.data(),
                                      a.data(), b.data(), grad_a.data(), grad_b.data());
  CHECK(pydet::cuda::box_iou_double_backward(
            args, {in(v1).data(), in(v2).data(), out(cuda_second).data()}, in(grad).data(),
            in(a).data(), in(b).data(), out(cuda_grad_a).data(), out(cuda_grad_b).data(),
            nullptr) == nullptr);
  check_close(cuda_second, second);
  check_close(cuda_grad_a, grad_a);
  check_close(cuda_grad_b, grad_b);
}

// Along v = boxes - centre, which scales all boxes alike, no IoU changes: grad f . v is 0.
void test_second_derivative_along_a_scaling() {
  const int64_t n = 7, m = 19;
  const std::vector<float> a = random_boxes(n, 5), b = random_boxes(m, 6);
  std::vector<float> grad(n * m, 1), second(n * m), grad_a(a.size()), grad_b(b.size());
  for (Overlap overlap : {Overlap::kIou, Overlap::kGeneralized}) {
    pydet::cpu::box_iou_double_backward({overlap, 0, 1, n, m}, {a.data(), b.data(), second.data()},
                                        grad.data(), a.data(), b.data(), grad_a.data(),
                                        grad_b.data());
    for (float x : second) CHECK(std::abs(x) < 1e-4);
  }
}

void test_angles() {
  const float infinity = HUGE_VALF;
  CHECK(pydet::angle_of(0.0f, 5.0f) == 0 && pydet::angle_of(0.0f, 0.0f) == 0);
  CHECK(std::abs(pydet::angle_of(5.0f, 0.0f) - 1.5707963f) < 1e-6f);
  CHECK(std::abs(pydet::angle_of(infinity, 1.0f) - 1.5707963f) < 1e-6f);
  for (float w : {-3.0f, -0.5f, 0.25f, 1.0f, 7.0f}) {
    for (float h : {-2.0f, -1.0f, 0.5f, 1.0f, 9.0f})
      CHECK(std::abs(pydet::angle_of(w, h) - std::atan(w / h)) < 2e-7f);
  }
}

}  // namespace

int main() {
  for (Overlap overlap : kOverlaps) {
    for (int64_t n : {0, 1, 34}) {
      for (int64_t m : {0, 9, 33}) test_sizes(overlap, 2, n, m);
    }
  }
  for (int64_t m : {495, 496, 497, 1023, 1024, 1025}) test_sizes(Overlap::kIou, 1, 3, m);
  test_sizes(Overlap::kComplete, 1, 258, 3);
  test_second_derivative_along_a_scaling();
  test_angles();
  return check::result();
}
