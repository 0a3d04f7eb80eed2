// SPDX-License-Identifier: Apache-2.0
// The CPU kernels and the emulated CUDA kernels against the formula in double, at the edges of
// chunks, pieces, tiles and packs, for the sanitizers.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "check.h"
#include "common/focal.h"
#include "focal_loss/focal_loss.h"

namespace {

using pydet::acc_t;
using pydet::BFloat16;
using pydet::FocalLossArgs;
using pydet::Half;

uint32_t seed = 1;
double uniform() {
  seed = seed * 1664525u + 1013904223u;
  return static_cast<double>(seed >> 8) / (1 << 24);
}

template <class T>
std::vector<T> random_numbers(int64_t count, double low, double high) {
  std::vector<T> numbers(count);
  for (T& number : numbers)
    pydet::store(&number, static_cast<acc_t<T>>(low + (high - low) * uniform()));
  return numbers;
}

std::vector<int64_t> random_labels(int64_t count, int64_t classes) {
  std::vector<int64_t> labels(count);
  for (int64_t& label : labels) label = static_cast<int64_t>((classes + 4) * uniform()) - 3;
  return labels;
}

// The definition, with none of the kernels' tricks.
double loss_of(double x, double t, double alpha, double gamma) {
  const double p = 1 / (1 + std::exp(-x));
  const double ce = -t * std::log(p) - (1 - t) * std::log(1 - p);
  const double weight = alpha < 0 ? 1 : alpha * t + (1 - alpha) * (1 - t);
  return weight * std::pow(p * (1 - t) + (1 - p) * t, gamma) * ce;
}

template <class T>
bool close(T value, double wanted, double tolerance) {
  const double v = static_cast<double>(pydet::load(&value));
  if (std::isnan(wanted)) return std::isnan(v);
  return std::abs(v - wanted) <= tolerance * (1 + std::abs(wanted));
}

// The wanted loss of every element.
template <class T>
std::vector<double> wanted_losses(const FocalLossArgs<T>& args) {
  std::vector<double> losses(args.count);
  for (int64_t i = 0; i < args.count; ++i) {
    const double x = pydet::load(args.inputs + i);
    double t = 0;
    if (args.targets != nullptr) {
      t = pydet::load(args.targets + i);
    } else {
      const int64_t label = args.labels[i / args.num_classes];
      t = label == i % args.num_classes ? 1 : 0;
      if (label < -1) t = label == pydet::kIgnored ? -1 : NAN;
      if (label >= args.num_classes) t = NAN;
    }
    losses[i] = t == -1 ? 0 : loss_of(x, t, args.alpha, args.gamma);
  }
  return losses;
}

template <class T>
void check_call(const FocalLossArgs<T>& args, double tolerance) {
  const std::vector<double> wanted = wanted_losses(args);
  const int64_t pieces = pydet::focal_loss_pieces(args.count, args.segments);
  const int64_t length = args.segments == 0 ? 0 : args.count / args.segments;
  using A = acc_t<T>;
  std::vector<A> sums_of_device[2];
  std::vector<T> grads_of_device[2];
  for (int device = 0; device < 2; ++device) {
    std::vector<T> loss(args.count), grad(args.count);
    std::vector<A> sums(args.segments), grad_sums(args.segments, A(0.5));
    std::vector<double> partials(pieces);
    if (device == 0) {
      pydet::cpu::focal_loss(args, loss.data());
      pydet::cpu::focal_loss_sums(args, partials.data(), sums.data());
      pydet::cpu::focal_loss_backward(args, false, static_cast<T*>(nullptr), grad_sums.data(),
                                      grad.data());
    } else {
      CHECK(pydet::cuda::focal_loss(args, loss.data(), nullptr) == nullptr);
      CHECK(pydet::cuda::focal_loss_sums(args, partials.data(), sums.data(), nullptr) == nullptr);
      CHECK(pydet::cuda::focal_loss_backward(args, false, static_cast<T*>(nullptr),
                                             grad_sums.data(), grad.data(), nullptr) == nullptr);
    }
    for (int64_t i = 0; i < args.count; ++i) CHECK(close(loss[i], wanted[i], tolerance));
    for (int64_t segment = 0; segment < args.segments; ++segment) {
      double sum = 0;
      for (int64_t i = 0; i < length; ++i) sum += wanted[segment * length + i];
      CHECK(close(sums[segment], sum * args.scale, 1e-5));
    }
    sums_of_device[device] = sums;
    grads_of_device[device] = grad;
    // One gradient for each element is the same as one for all.
    std::vector<T> ones(args.count), again(args.count);
    for (T& one : ones) pydet::store(&one, static_cast<A>(0.5 * args.scale));
    if (device == 0) {
      pydet::cpu::focal_loss_backward(args, false, ones.data(), static_cast<A*>(nullptr),
                                      again.data());
    } else {
      pydet::cuda::focal_loss_backward(args, false, ones.data(), static_cast<A*>(nullptr),
                                       again.data(), nullptr);
    }
    for (int64_t i = 0; i < args.count; ++i)
      CHECK(close(again[i], pydet::load(&grad[i]), tolerance));
    if (args.targets == nullptr) continue;
    // Moving a target moves its loss.
    std::vector<T> grad_targets(args.count);
    if (device == 0) {
      pydet::cpu::focal_loss_backward(args, true, ones.data(), static_cast<A*>(nullptr),
                                      grad_targets.data());
    } else {
      pydet::cuda::focal_loss_backward(args, true, ones.data(), static_cast<A*>(nullptr),
                                       grad_targets.data(), nullptr);
    }
    for (int64_t i = 0; i < args.count; ++i) {
      const double x = pydet::load(args.inputs + i), t = pydet::load(args.targets + i), h = 1e-4;
      const double slope =
          (loss_of(x, t + h, args.alpha, args.gamma) - loss_of(x, t - h, args.alpha, args.gamma)) /
          (2 * h);
      CHECK(close(grad_targets[i], 0.5 * args.scale * slope, std::max(tolerance, 1e-4)));
    }
  }
  for (int64_t i = 0; i < args.count; ++i) {
    CHECK(close(grads_of_device[1][i], pydet::load(&grads_of_device[0][i]), tolerance));
  }
}

template <class T>
void test_type(double tolerance) {
  for (double gamma : {2.0, 1.0, 0.0, 1.5}) {
    // Labels: rows that do and do not end where chunks, tiles and packs do.
    for (int64_t classes : {1, 3, 8, 80, 5000}) {
      const int64_t rows = classes == 5000 ? 4 : 17000 / classes;
      const std::vector<T> inputs = random_numbers<T>(rows * classes, -12, 12);
      const std::vector<int64_t> labels = random_labels(rows, classes);
      check_call(FocalLossArgs<T>{rows * classes, 1, classes, 0.25, gamma, 1, inputs.data(),
                                  nullptr, labels.data()},
                 tolerance);
      if (gamma != 2) break;
    }
    // Dense, in segments of any length, aligned and not.
    for (int64_t length : {0, 1, 5, 1024, 8193}) {
      const int64_t segments = 3, count = segments * length;
      const std::vector<T> inputs = random_numbers<T>(count + 1, -12, 12);
      const std::vector<T> targets = random_numbers<T>(count + 1, 0.1, 0.9);
      for (int64_t shift : {0, 1}) {
        check_call(FocalLossArgs<T>{count, segments, 0, shift == 0 ? -1.0 : 0.25, gamma, 0.125,
                                    inputs.data() + shift, targets.data() + shift, nullptr},
                   tolerance);
      }
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
