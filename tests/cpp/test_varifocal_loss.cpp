// SPDX-License-Identifier: Apache-2.0
// The varifocal loss on both devices.
#include "losses.h"
#include "varifocal_loss/varifocal_loss.h"

namespace {

using namespace losses;

const auto on_cpu = [](const auto& call) { pydet::cpu::varifocal_loss(call); };
const auto on_cuda = [](const auto& call) { return pydet::cuda::varifocal_loss(call, nullptr); };

Formula formula(double alpha, double gamma) {
  return [=](double x, double q) {
    const double p = 1 / (1 + std::exp(-x));
    if (q == 0) return -alpha * std::pow(p, gamma) * std::log(1 - p);
    return -q * (q * std::log(p) + (1 - q) * std::log(1 - p));
  };
}

template <class T>
void test_type(double tolerance) {
  for (double gamma : {2.0, 1.5}) {
    check_dense<T>(0.75, gamma, on_cpu, on_cuda, formula(0.75, gamma), tolerance);
    // Negatives: the loss has a step there, so only the derivatives by the logit are compared.
    const std::vector<T> inputs = random_numbers<T>(2000, -9, 9), zeros(2000);
    for (auto derivative : {Derivative::kNone, Derivative::kInput, Derivative::kInputInput}) {
      LossCall<T> call{};
      call.count = 2000;
      call.segments = 1;
      call.alpha = 0.75;
      call.gamma = gamma;
      call.scale = 1;
      call.inputs = inputs.data();
      call.targets = zeros.data();
      call.derivative = derivative;
      check_derivative(call, on_cpu, on_cuda, formula(0.75, gamma), tolerance);
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
