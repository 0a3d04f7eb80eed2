// SPDX-License-Identifier: Apache-2.0
// Round trips through the CPU kernels and the emulated CUDA kernels, and their gradients against
// differences, for the sanitizers.
#include <cmath>
#include <cstdint>
#include <vector>

#include "box_coding/box_coding.h"
#include "check.h"
#include "device.h"

namespace {

using device::in;
using device::out;

constexpr pydet::BoxCodingWeights kWeights{10, 10, 5, 5};

std::vector<double> random_boxes(int64_t count, uint32_t seed) {
  std::vector<double> boxes;
  for (int64_t i = 0; i < count; ++i) {
    seed = seed * 1664525u + 1013904223u;
    const double x = seed >> 24, y = seed >> 16 & 255;
    const double width = seed >> 8 & 63, height = seed & 63;
    boxes.insert(boxes.end(), {x, y, x + 1 + width, y + 1 + height});
  }
  return boxes;
}

bool close(const std::vector<double>& a, const std::vector<double>& b, double tolerance) {
  bool result = a.size() == b.size();
  for (size_t i = 0; i < a.size() && result; ++i) result = std::abs(a[i] - b[i]) <= tolerance;
  return result;
}

void test_round_trip(int64_t rows, int64_t num_anchors) {
  const std::vector<double> boxes = random_boxes(rows * num_anchors, 1);
  const std::vector<double> anchors = random_boxes(num_anchors, 2);
  std::vector<double> deltas(boxes.size()), again(boxes.size()), cuda(boxes.size());
  pydet::cpu::encode_boxes(rows, num_anchors, boxes.data(), anchors.data(), kWeights,
                           deltas.data());
  CHECK(pydet::cuda::encode_boxes(rows, num_anchors, in(boxes).data(), in(anchors).data(), kWeights,
                                  out(cuda).data(), nullptr) == nullptr);
  CHECK(close(deltas, cuda, 1e-12));
  std::vector<double> sizes;
  for (int64_t b = 0; b < rows; ++b) sizes.insert(sizes.end(), {100.0 + b, 90.0 + b});
  for (const bool clip : {false, true}) {
    const double* image_sizes = clip ? sizes.data() : nullptr;
    const pydet::DecodeParams params{kWeights, 1e9, clip, 0, 0, num_anchors};
    std::vector<double> wanted = boxes;
    for (size_t i = 0; clip && i < wanted.size(); ++i) {
      const size_t image = i / (4 * num_anchors);
      wanted[i] = std::min(wanted[i], sizes[2 * image + (i % 2 == 0 ? 1 : 0)]);
    }
    pydet::cpu::decode_boxes(rows, num_anchors, deltas.data(), anchors.data(), image_sizes, params,
                             again.data());
    CHECK(close(again, wanted, 1e-9));
    CHECK(pydet::cuda::decode_boxes(rows, num_anchors, in(deltas).data(), in(anchors).data(),
                                    in(image_sizes, clip ? 2 * rows : 0).data(), params,
                                    out(cuda).data(), nullptr) == nullptr);
    CHECK(close(cuda, again, 1e-12));
  }
}

// The derivative of the sum of all results along each input, by a small step.
void test_gradient(int64_t rows, int64_t num_anchors) {
  std::vector<double> boxes = random_boxes(rows * num_anchors, 3);
  std::vector<double> anchors = random_boxes(num_anchors, 4);
  const std::vector<double> ones(boxes.size(), 1);
  std::vector<double> results(boxes.size()), grad(boxes.size()), grad_anchors(anchors.size());
  std::vector<double> cuda_grad(grad), cuda_grad_anchors(grad_anchors);
  const pydet::DecodeParams params{kWeights, 0.05, true, 150, 150, 1};
  for (const bool decode : {false, true}) {
    const auto total = [&] {
      if (decode) {
        pydet::cpu::decode_boxes<double>(rows, num_anchors, boxes.data(), anchors.data(), nullptr,
                                         params, results.data());
      } else {
        pydet::cpu::encode_boxes(rows, num_anchors, boxes.data(), anchors.data(), kWeights,
                                 results.data());
      }
      double sum = 0;
      for (double value : results) sum += value;
      return sum;
    };
    if (decode) {
      for (double& delta : boxes) delta = delta / 256 - 0.4;
      pydet::cpu::decode_boxes_backward<double>(rows, num_anchors, ones.data(), boxes.data(),
                                                anchors.data(), nullptr, params, grad.data(),
                                                grad_anchors.data());
      CHECK(pydet::cuda::decode_boxes_backward<double>(
                rows, num_anchors, in(ones).data(), in(boxes).data(), in(anchors).data(), nullptr,
                params, out(cuda_grad).data(), out(cuda_grad_anchors).data(), nullptr) == nullptr);
    } else {
      pydet::cpu::encode_boxes_backward(rows, num_anchors, ones.data(), boxes.data(),
                                        anchors.data(), kWeights, grad.data(), grad_anchors.data());
      CHECK(pydet::cuda::encode_boxes_backward(rows, num_anchors, in(ones).data(), in(boxes).data(),
                                               in(anchors).data(), kWeights, out(cuda_grad).data(),
                                               out(cuda_grad_anchors).data(), nullptr) == nullptr);
    }
    CHECK(close(grad, cuda_grad, 1e-9));
    CHECK(close(grad_anchors, cuda_grad_anchors, 1e-9));
    const auto check = [&](std::vector<double>* inputs, const std::vector<double>& gradient) {
      for (size_t i = 0; i < inputs->size(); ++i) {
        constexpr double kStep = 1e-6;
        const double value = (*inputs)[i];
        (*inputs)[i] = value + kStep;
        const double above = total();
        (*inputs)[i] = value - kStep;
        const double below = total();
        (*inputs)[i] = value;
        CHECK(std::abs((above - below) / (2 * kStep) - gradient[i]) < 1e-3);
      }
    };
    check(&boxes, grad);
    check(&anchors, grad_anchors);
  }
}

// The emulated kernels give what the CPU does: along v, with a clip and a clamp.
void test_second_derivative(int64_t rows, int64_t num_anchors) {
  const int64_t count = rows * num_anchors;
  const std::vector<double> boxes = random_boxes(count, 5), v = random_boxes(count, 6);
  const std::vector<double> anchors = random_boxes(num_anchors, 7);
  const std::vector<double> v_anchors = random_boxes(num_anchors, 8), grad = random_boxes(count, 9);
  std::vector<double> deltas(boxes);
  for (double& delta : deltas) delta = delta / 256 - 0.4;
  const pydet::DecodeParams params{kWeights, 0.05, true, 150, 150, 1};
  std::vector<double> found[6];
  for (int i = 0; i < 6; ++i) found[i].resize(4 * (i % 3 == 2 ? num_anchors : count), -1);
  const auto second = [&](std::vector<double>* grad_grad) {
    return pydet::CodingSecondOrder<double>{v.data(), v_anchors.data(), grad_grad->data()};
  };
  pydet::cpu::encode_boxes_double_backward(rows, num_anchors, second(&found[0]), grad.data(),
                                           boxes.data(), anchors.data(), kWeights, found[1].data(),
                                           found[2].data());
  CHECK(pydet::cuda::encode_boxes_double_backward(
            rows, num_anchors, {in(v).data(), in(v_anchors).data(), out(found[3]).data()},
            in(grad).data(), in(boxes).data(), in(anchors).data(), kWeights, out(found[4]).data(),
            out(found[5]).data(), nullptr) == nullptr);
  for (int i = 0; i < 3; ++i) CHECK(close(found[i], found[i + 3], 1e-6));
  pydet::cpu::decode_boxes_double_backward<double>(
      rows, num_anchors, second(&found[0]), grad.data(), deltas.data(), anchors.data(), nullptr,
      params, found[1].data(), found[2].data());
  CHECK(pydet::cuda::decode_boxes_double_backward<double>(
            rows, num_anchors, {in(v).data(), in(v_anchors).data(), out(found[3]).data()},
            in(grad).data(), in(deltas).data(), in(anchors).data(), nullptr, params,
            out(found[4]).data(), out(found[5]).data(), nullptr) == nullptr);
  for (int i = 0; i < 3; ++i) CHECK(close(found[i], found[i + 3], 1e-6));
}

}  // namespace

int main() {
  for (int64_t num_anchors : {0, 1, 257}) test_second_derivative(2, num_anchors);
  for (int64_t rows : {0, 1, 3}) {
    for (int64_t num_anchors : {0, 1, 255, 256, 2049}) test_round_trip(rows, num_anchors);
  }
  test_gradient(1, 1);
  test_gradient(2, 9);
  return check::result();
}
