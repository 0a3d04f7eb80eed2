// SPDX-License-Identifier: Apache-2.0
// The softmax focal loss on both devices, against the definition in double and its differences, at
// the edges of vectors, groups of threads, chunks of columns and pieces of rows.
#include "losses.h"
#include "softmax_focal_loss/softmax_focal_loss.h"

namespace {

using namespace losses;
using pydet::Pass;
using pydet::SoftmaxFocalCall;

// The loss of one row, NaN for a wrong label.
template <class T>
double loss_of(const SoftmaxFocalCall<T>& call, int64_t label, const std::vector<double>& x) {
  if (label == call.ignored) return 0;
  const int64_t column = label == pydet::kBackground ? call.background : label;
  if (column < 0 || column >= call.classes) return NAN;
  double others = 0;
  for (int64_t j = 0; j < call.classes; ++j) others += j == column ? 0 : std::exp(x[j]);
  const double all = others + std::exp(x[column]);
  double weight = column == call.background ? 1 - call.alpha : call.alpha;
  if (call.alpha < 0) weight = 1;
  if (call.class_weights != nullptr) weight = call.class_weights[column];
  return -weight * std::pow(others / all, call.gamma) * (x[column] - std::log(all));
}

// loss(x + a v + b w) of a row by central differences: along v once, and along v and w.
template <class F>
double along(const F& f, const std::vector<double>& x, const std::vector<double>& v) {
  const double h = 1e-5;
  std::vector<double> up(x), down(x);
  for (size_t j = 0; j < x.size(); ++j) {
    up[j] += h * v[j];
    down[j] -= h * v[j];
  }
  return (f(up) - f(down)) / (2 * h);
}

template <class T>
void run_on_cuda(SoftmaxFocalCall<T> call) {
  const int64_t count = call.rows * call.classes;
  const auto inputs = device::in(call.inputs, count), grad_grad = device::in(call.grad_grad, count);
  const auto labels = device::in(call.labels, call.rows);
  const auto class_weights = device::in(call.class_weights, call.classes);
  const auto grad_loss = device::in(call.grad_loss, call.rows);
  const auto grad_sums = device::in(call.grad_sums, call.segments);
  const auto losses = device::out(call.losses, call.rows);
  const auto sums = device::out(call.sums, call.segments);
  const auto grad_inputs = device::out(call.grad_inputs, count);
  const auto partials = device::scratch(
      call.partials, pydet::softmax_focal_pieces(call.rows, call.classes, call.segments));
  call.inputs = inputs.data();
  call.grad_grad = grad_grad.data();
  call.labels = labels.data();
  call.class_weights = class_weights.data();
  call.grad_loss = grad_loss.data();
  call.grad_sums = grad_sums.data();
  call.losses = losses.data();
  call.sums = sums.data();
  call.grad_inputs = grad_inputs.data();
  call.partials = partials.data();
  CHECK(pydet::cuda::softmax_focal_loss(call, nullptr) == nullptr);
}

template <class T>
void run(const SoftmaxFocalCall<T>& call, int device) {
  if (device == 0) {
    pydet::cpu::softmax_focal_loss(call);
  } else {
    run_on_cuda(call);
  }
}

// All passes of a call; the backwards along a few columns.
template <class T>
void check_call(SoftmaxFocalCall<T> call, double tolerance) {
  using A = acc_t<T>;
  const int64_t rows = call.rows, classes = call.classes, count = rows * classes;
  const double rough = std::max(tolerance, 3e-4);
  const std::vector<T> grads = random_numbers<T>(rows, 0.5, 1);
  const std::vector<A> grad_sums = random_numbers<A>(call.segments, 0.5, 1);
  const std::vector<T> grad_grad = random_numbers<T>(count, -1, 1);
  std::vector<std::vector<double>> x(rows), v(rows);
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t j = 0; j < classes; ++j) {
      x[row].push_back(pydet::load(call.inputs + row * classes + j));
      v[row].push_back(pydet::load(&grad_grad[row * classes + j]));
    }
  }
  for (int device = 0; device < 2; ++device) {
    std::vector<T> losses(rows), first(count), second(count), of_grad(rows);
    call.pass = Pass::kForward;
    call.losses = losses.data();
    run(call, device);
    std::vector<A> sums(call.segments);
    std::vector<double> partials(pydet::softmax_focal_pieces(rows, classes, call.segments));
    SoftmaxFocalCall<T> summed = call;
    summed.losses = nullptr;
    summed.sums = sums.data();
    summed.partials = partials.data();
    run(summed, device);
    SoftmaxFocalCall<T> backward = call;
    backward.pass = Pass::kBackward;
    backward.losses = nullptr;
    backward.grad_loss = grads.data();
    backward.grad_inputs = first.data();
    run(backward, device);
    backward.pass = Pass::kDoubleBackward;
    backward.losses = of_grad.data();
    backward.grad_grad = grad_grad.data();
    backward.grad_inputs = second.data();
    run(backward, device);
    std::vector<double> wanted_sums(call.segments);
    for (int64_t row = 0; row < rows; ++row) {
      const auto f = [&](const std::vector<double>& logits) {
        return loss_of(call, call.labels[row], logits);
      };
      const double wanted = f(x[row]), grad = pydet::load(&grads[row]);
      CHECK(close(losses[row], wanted, tolerance));
      CHECK(close(of_grad[row], along(f, x[row], v[row]), rough));
      wanted_sums[row / (rows / call.segments)] += wanted;
      for (int64_t j = row % 3; j < classes; j += 1 + classes / 3) {
        std::vector<double> unit(classes);
        unit[j] = 1;
        const auto slope = [&](const std::vector<double>& logits) {
          return along(f, logits, unit);
        };
        CHECK(close(first[row * classes + j], grad * slope(x[row]), rough));
        CHECK(close(second[row * classes + j], grad * along(slope, x[row], v[row]), 3 * rough));
      }
    }
    for (int64_t segment = 0; segment < call.segments; ++segment)
      CHECK(close(sums[segment], wanted_sums[segment] * call.scale, 1e-4));
    // One gradient for a segment is the same as one for each of its rows.
    std::vector<T> again(count), alike(rows);
    for (int64_t row = 0; row < rows; ++row) {
      const int64_t segment = row / (rows / call.segments);
      pydet::store(&alike[row], static_cast<A>(grad_sums[segment] * call.scale));
    }
    backward.pass = Pass::kBackward;
    backward.losses = nullptr;
    backward.grad_loss = alike.data();
    backward.grad_inputs = first.data();
    run(backward, device);
    backward.grad_loss = nullptr;
    backward.grad_sums = grad_sums.data();
    backward.grad_inputs = again.data();
    run(backward, device);
    for (int64_t i = 0; i < count; ++i)
      CHECK(close(again[i], pydet::load(&first[i]), std::max(tolerance, 1e-6) * 4));
  }
}

template <class T>
void test_type(double tolerance) {
  for (int64_t classes : {1, 2, 8, 21, 40, 1030, 2052, 16500}) {
    const int64_t segments = 2, rows = classes > 1000 ? 4 : (classes == 8 ? 600 : 20);
    const std::vector<T> inputs = random_numbers<T>(rows * classes + 1, -4, 4);
    const std::vector<int64_t> labels = random_labels(rows, classes);
    const std::vector<acc_t<T>> weights = random_numbers<acc_t<T>>(classes, 0, 2);
    for (int variant = 0; variant < 3; ++variant) {
      SoftmaxFocalCall<T> call{};
      call.rows = rows;
      call.classes = classes;
      call.segments = segments;
      call.background = variant == 2 ? -1 : classes - 1;
      call.ignored = pydet::kIgnored;
      call.alpha = variant == 1 ? -1 : 0.25;
      call.gamma = variant == 0 ? 2 : 1.5;
      call.scale = 0.5;
      call.inputs = inputs.data() + variant % 2;  // at a multiple of 16 bytes and not
      call.labels = labels.data();
      call.class_weights = variant == 2 ? weights.data() : nullptr;
      check_call(call, tolerance);
    }
  }
}

}  // namespace

int main() {
  test_type<float>(5e-6);
  test_type<double>(1e-9);
  test_type<Half>(1e-3);
  test_type<BFloat16>(8e-3);
  return check::result();
}
