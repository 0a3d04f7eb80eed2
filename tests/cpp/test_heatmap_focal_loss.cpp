// SPDX-License-Identifier: Apache-2.0
// The focal loss of heatmaps on both devices.
#include "heatmap_focal_loss/heatmap_focal_loss.h"
#include "losses.h"

namespace {

using namespace losses;

const auto on_cpu = [](const auto& call) { pydet::cpu::heatmap_focal_loss(call); };
const auto on_cuda = [](const auto& call) {
  return pydet::cuda::heatmap_focal_loss(call, nullptr);
};

Formula formula(double alpha, double beta) {
  return [=](double x, double t) {
    const double p = 1 / (1 + std::exp(-x));
    if (t == 1) return -std::pow(1 - p, alpha) * std::log(p);
    return -std::pow(1 - t, beta) * std::pow(p, alpha) * std::log(1 - p);
  };
}

template <class T>
void test_type(double tolerance) {
  for (double beta : {4.0, 2.5}) {
    check_dense<T>(2, beta, on_cpu, on_cuda, formula(2, beta), tolerance);
    // Peaks: the loss has a step there, so only the derivatives by the logit are compared.
    const std::vector<T> inputs = random_numbers<T>(2000, -9, 9);
    std::vector<T> ones(2000);
    for (T& one : ones) pydet::store(&one, acc_t<T>(1));
    for (auto derivative : {Derivative::kNone, Derivative::kInput, Derivative::kInputInput}) {
      LossCall<T> call{};
      call.count = 2000;
      call.segments = 1;
      call.alpha = 2;
      call.gamma = beta;
      call.scale = 1;
      call.inputs = inputs.data();
      call.targets = ones.data();
      call.derivative = derivative;
      check_derivative(call, on_cpu, on_cuda, formula(2, beta), tolerance);
    }
  }
}

}  // namespace

int main() {
  test_type<float>(3e-6);
  test_type<double>(1e-9);
  test_type<Half>(1e-3);
  test_type<BFloat16>(8e-3);
  return check::result();
}
