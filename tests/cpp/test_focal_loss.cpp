// SPDX-License-Identifier: Apache-2.0
// The sigmoid focal loss on both devices, at the edges of chunks, pieces, tiles and packs.
#include "focal_loss/focal_loss.h"
#include "losses.h"

namespace {

using namespace losses;

const auto on_cpu = [](const auto& call) { pydet::cpu::focal_loss(call); };
const auto on_cuda = [](const auto& call) { return pydet::cuda::focal_loss(call, nullptr); };

// The definition, with none of the kernels' tricks.
Formula formula(double alpha, double gamma) {
  return [=](double x, double t) {
    const double p = 1 / (1 + std::exp(-x));
    const double ce = -t * std::log(p) - (1 - t) * std::log(1 - p);
    const double weight = alpha < 0 ? 1 : alpha * t + (1 - alpha) * (1 - t);
    return weight * std::pow(p * (1 - t) + (1 - p) * t, gamma) * ce;
  };
}

template <class T>
void test_type(double tolerance) {
  for (double gamma : {2.0, 1.5, 0.0}) {
    // Labels: rows that do and do not end where chunks, tiles and packs do.
    for (int64_t classes : {1, 3, 8, 80, 5000}) {
      const int64_t rows = (classes == 80 || classes == 5000 ? 17000 : 5000) / classes;
      const std::vector<T> inputs = random_numbers<T>(rows * classes, -9, 9);
      const std::vector<int64_t> labels = random_labels(rows, classes);
      LossCall<T> call{};
      call.count = rows * classes;
      call.segments = 1;
      call.alpha = 0.25;
      call.gamma = gamma;
      call.scale = 1;
      call.inputs = inputs.data();
      call.labels = labels.data();
      call.num_classes = classes;
      for (auto derivative : {Derivative::kNone, Derivative::kInput, Derivative::kInputInput}) {
        call.derivative = derivative;
        check_derivative(call, on_cpu, on_cuda, formula(0.25, gamma), tolerance);
      }
      if (gamma != 2) break;
    }
    const double alpha = gamma == 2 ? 0.25 : -1;
    check_dense<T>(alpha, gamma, on_cpu, on_cuda, formula(alpha, gamma), tolerance);
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
