// SPDX-License-Identifier: Apache-2.0
// What the tests of losses share: the CPU kernels and the emulated CUDA kernels, every derivative,
// against a formula in double and its differences.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <functional>
#include <vector>

#include "check.h"
#include "common/labels.h"
#include "common/loss.h"
#include "device.h"

namespace losses {

using pydet::acc_t;
using pydet::BFloat16;
using pydet::Derivative;
using pydet::Half;
using pydet::LossCall;

inline uint32_t seed = 1;
inline double uniform() {
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

inline std::vector<int64_t> random_labels(int64_t count, int64_t classes) {
  std::vector<int64_t> labels(count);
  for (int64_t& label : labels) label = static_cast<int64_t>((classes + 4) * uniform()) - 3;
  return labels;
}

template <class T>
bool close(T value, double wanted, double tolerance) {
  const double v = static_cast<double>(pydet::load(&value));
  if (std::isnan(wanted)) return std::isnan(v);
  return std::abs(v - wanted) <= tolerance * (1 + std::abs(wanted));
}

using Formula = std::function<double(double x, double t)>;

inline double derivative_of(const Formula& f, Derivative derivative, double x, double t) {
  const double h = 1e-5, k = 1e-3;
  switch (derivative) {
    case Derivative::kNone:
      return f(x, t);
    case Derivative::kInput:
      return (f(x + h, t) - f(x - h, t)) / (2 * h);
    case Derivative::kTarget:
      return (f(x, t + h) - f(x, t - h)) / (2 * h);
    case Derivative::kInputInput:
      return (f(x + k, t) - 2 * f(x, t) + f(x - k, t)) / (k * k);
    case Derivative::kInputTarget:
      return (f(x + k, t + k) - f(x + k, t - k) - f(x - k, t + k) + f(x - k, t - k)) / (4 * k * k);
    default:
      return (f(x, t + k) - 2 * f(x, t) + f(x, t - k)) / (k * k);
  }
}

// The wanted result of every element, without the factors.
template <class T>
std::vector<double> wanted_results(const LossCall<T>& call, const Formula& f) {
  std::vector<double> results(call.count);
  for (int64_t i = 0; i < call.count; ++i) {
    const double x = pydet::load(call.inputs + i);
    if (call.targets != nullptr) {
      results[i] = derivative_of(f, call.derivative, x, pydet::load(call.targets + i));
      continue;
    }
    const int64_t label = call.labels[i / call.num_classes];
    if (label == pydet::kIgnored) {
      results[i] = 0;
    } else if (label < pydet::kBackground || label >= call.num_classes) {
      results[i] = NAN;
    } else {
      const double t = label == i % call.num_classes ? 1 : 0;
      results[i] = derivative_of(f, call.derivative, x, t);
    }
  }
  return results;
}

// Runs a call on arrays of the device; the second of two devices is the GPU, or its emulation.
template <class T, class OnCuda>
const char* run_on_cuda(LossCall<T> call, const OnCuda& on_cuda) {
  const auto inputs = device::in(call.inputs, call.count);
  const auto targets = device::in(call.targets, call.count);
  const auto labels =
      device::in(call.labels, call.labels == nullptr ? 0 : call.count / call.num_classes);
  const auto factor = device::in(call.factor, call.count);
  const auto grad = device::in(call.grad, call.count);
  const auto grad_sums = device::in(call.grad_sums, call.segments);
  const auto result = device::out(call.result, call.count);
  const auto sums = device::out(call.sums, call.segments);
  const auto partials =
      device::scratch(call.partials, pydet::loss_pieces(call.count, call.segments));
  call.inputs = inputs.data();
  call.targets = targets.data();
  call.labels = labels.data();
  call.factor = factor.data();
  call.grad = grad.data();
  call.grad_sums = grad_sums.data();
  call.result = result.data();
  call.sums = sums.data();
  call.partials = partials.data();
  return on_cuda(call);
}

// One derivative on both devices: element by element with all factors, and the sums.
template <class T, class OnCpu, class OnCuda>
void check_derivative(LossCall<T> call, const OnCpu& on_cpu, const OnCuda& on_cuda,
                      const Formula& f, double tolerance) {
  using A = acc_t<T>;
  if (call.derivative != Derivative::kNone) tolerance = std::max(tolerance, 2e-4);
  const std::vector<double> wanted = wanted_results(call, f);
  const std::vector<T> factor = random_numbers<T>(call.count, -1, 1);
  const std::vector<T> grad = random_numbers<T>(call.count, -1, 1);
  const std::vector<A> grad_sums = random_numbers<A>(call.segments, 0.5, 1);
  std::vector<double> partials(pydet::loss_pieces(call.count, call.segments));
  const int64_t length = call.segments == 0 ? 0 : call.count / call.segments;
  for (int device = 0; device < 2; ++device) {
    const auto run = [&](const LossCall<T>& now) {
      if (device == 0) {
        on_cpu(now);
      } else {
        CHECK(run_on_cuda(now, on_cuda) == nullptr);
      }
    };
    std::vector<T> results(call.count);
    LossCall<T> now = call;
    now.result = results.data();
    run(now);
    for (int64_t i = 0; i < call.count; ++i) CHECK(close(results[i], wanted[i], tolerance));
    now.factor = factor.data();
    now.grad = grad.data();
    run(now);
    for (int64_t i = 0; i < call.count; ++i) {
      const double both = static_cast<double>(pydet::load(&factor[i])) * pydet::load(&grad[i]);
      CHECK(close(results[i], both * wanted[i], tolerance));
    }
    now.grad = nullptr;
    now.grad_sums = grad_sums.data();
    run(now);
    for (int64_t i = 0; i < call.count; ++i) {
      const double both = pydet::load(&factor[i]) * grad_sums[i / length] * call.scale;
      CHECK(close(results[i], both * wanted[i], tolerance));
    }
    std::vector<A> sums(call.segments);
    now.grad_sums = nullptr;
    now.result = nullptr;
    now.sums = sums.data();
    now.partials = partials.data();
    run(now);
    for (int64_t segment = 0; segment < call.segments; ++segment) {
      double sum = 0, size = 0;
      for (int64_t i = segment * length; i < (segment + 1) * length; ++i) {
        sum += wanted[i] * pydet::load(&factor[i]);
        size += std::abs(wanted[i]);
      }
      const double v = static_cast<double>(sums[segment]);
      if (std::isnan(sum)) {
        CHECK(std::isnan(v));
      } else {
        CHECK(std::abs(v - sum * call.scale) <= (1 + size * call.scale) * 2e-4);
      }
    }
  }
}

// Dense targets in segments of any length, at multiples of 16 bytes and not; all derivatives.
template <class T, class OnCpu, class OnCuda>
void check_dense(double alpha, double gamma, const OnCpu& on_cpu, const OnCuda& on_cuda,
                 const Formula& f, double tolerance) {
  for (int64_t length : {0, 1, 5, 1024, 8193}) {
    const int64_t segments = 3, count = segments * length;
    const std::vector<T> inputs = random_numbers<T>(count + 1, -9, 9);
    const std::vector<T> targets = random_numbers<T>(count + 1, 0.1, 0.9);
    for (int64_t shift : {0, 1}) {
      for (int derivative = 0; derivative < 6; ++derivative) {
        if (length > 1024 && (derivative > 1 || shift > 0)) continue;
        LossCall<T> call{};
        call.count = count;
        call.segments = segments;
        call.alpha = alpha;
        call.gamma = gamma;
        call.scale = 0.125;
        call.inputs = inputs.data() + shift;
        call.targets = targets.data() + shift;
        call.derivative = static_cast<Derivative>(derivative);
        check_derivative(call, on_cpu, on_cuda, f, tolerance);
      }
    }
  }
}

}  // namespace losses
