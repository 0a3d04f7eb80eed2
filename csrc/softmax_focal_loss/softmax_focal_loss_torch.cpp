// SPDX-License-Identifier: Apache-2.0
#include <optional>
#include <string>
#include <tuple>

#include "common/loss_glue.h"
#include "softmax_focal_loss/softmax_focal_loss.h"

namespace pydet {
namespace {

// A call's tensors, checked and contiguous.
struct Tensors {
  std::string op;
  at::Tensor inputs, labels, class_weights, grad_grad, grad_loss;
  int64_t rows, classes, background, ignored;
  double alpha, gamma, scale;
  Reduction reduction;

  Tensors(const char* op, const at::Tensor& inputs_, const at::Tensor& labels_, double alpha,
          const std::optional<at::Tensor>& weights, double gamma, const std::string& reduction_name,
          std::optional<int64_t> background_index, int64_t ignored)
      : op(op),
        ignored(ignored),
        alpha(alpha),
        gamma(gamma),
        reduction(op, reduction_name, labels_.sizes()) {
    TORCH_CHECK_TYPE(labels_.scalar_type() == at::kLong, op, ": targets must be int64, got ",
                     labels_.scalar_type());
    TORCH_CHECK_VALUE(
        inputs_.dim() >= 1 && labels_.sizes() == inputs_.sizes().slice(0, inputs_.dim() - 1), op,
        ": targets must have the shape of inputs ", inputs_.sizes(),
        " without its last dimension, got ", labels_.sizes());
    TORCH_CHECK_VALUE(labels_.device() == inputs_.device(), op,
                      ": targets must be on the device of inputs (", inputs_.device(), "), got ",
                      labels_.device());
    inputs = inputs_.contiguous();
    labels = labels_.contiguous();
    rows = labels.numel();
    classes = inputs.size(-1);
    scale = Reduction::scale(reduction_name, rows);
    background = background_index.value_or(-1);
    if (background_index.has_value() && background < 0) background += classes;
    if (!weights.has_value()) return;
    TORCH_CHECK_TYPE(weights->scalar_type() == sum_dtype(inputs), op,
                     ": class_weights must have the dtype ", sum_dtype(inputs), ", got ",
                     weights->scalar_type());
    TORCH_CHECK_VALUE(
        weights->device() == inputs.device() && weights->dim() == 1 && weights->size(0) == classes,
        op, ": class_weights must be on the device of inputs and have shape [", classes, "], got ",
        weights->sizes(), " on ", weights->device());
    class_weights = weights->contiguous();
  }

  void take_grad_loss(const at::Tensor& grad) {
    check_grad_loss(op.c_str(), grad, inputs, reduction, rows);
    grad_loss = grad.contiguous();
  }

  void take_grad_grad(const at::Tensor& grad) {
    check_alike(op.c_str(), "grad_grad", grad, "inputs", inputs);
    TORCH_CHECK_VALUE(grad.sizes() == inputs.sizes(), op,
                      ": grad_grad must have the shape of inputs ", inputs.sizes(), ", got ",
                      grad.sizes());
    grad_grad = grad.contiguous();
  }

  // What has the shape of the loss, and the gradient of inputs; undefined where a pass has none.
  std::tuple<at::Tensor, at::Tensor> run(Pass pass) const {
    const bool reduce = reduction.reduce;
    const bool with_losses = pass != Pass::kBackward, with_sums = with_losses && reduce;
    at::Tensor losses, grad_inputs, partials;
    if (with_losses) {
      losses = reduce ? at::empty(reduction.shape, inputs.options().dtype(sum_dtype(inputs)))
                      : empty_large(labels.sizes(), inputs.options());
    }
    if (with_sums) {
      partials = at::empty({softmax_focal_pieces(rows, classes, reduction.segments)},
                           inputs.options().dtype(at::kDouble));
    }
    if (pass != Pass::kForward) grad_inputs = empty_large(inputs.sizes(), inputs.options());
    dispatch_floating(inputs.scalar_type(), op.c_str(), [&](auto element) {
      using T = decltype(element);
      using A = acc_t<T>;
      const bool by_row = grad_loss.defined() && !reduce, by_sum = grad_loss.defined() && reduce;
      const SoftmaxFocalCall<T> call{
          pass,
          rows,
          classes,
          reduction.segments,
          background,
          ignored,
          alpha,
          gamma,
          scale,
          input<T>(inputs),
          input<int64_t>(labels),
          class_weights.defined() ? input<A>(class_weights) : nullptr,
          grad_grad.defined() ? input<T>(grad_grad) : nullptr,
          by_row ? input<T>(grad_loss) : nullptr,
          by_sum ? input<A>(grad_loss) : nullptr,
          with_losses && !reduce ? output<T>(losses) : nullptr,
          with_sums ? output<A>(losses) : nullptr,
          with_sums ? output<double>(partials) : nullptr,
          grad_inputs.defined() ? output<T>(grad_inputs) : nullptr,
      };
      dispatch_device(
          op.c_str(), inputs, [&] { cpu::softmax_focal_loss(call); },
          [&](CUstream_st* stream) { return cuda::softmax_focal_loss(call, stream); });
    });
    return {losses, grad_inputs};
  }
};

// inputs [.., C], targets [..], class_weights [C] -> [..], [] or [B]
at::Tensor softmax_focal_loss(const at::Tensor& inputs, const at::Tensor& targets, double alpha,
                              const std::optional<at::Tensor>& class_weights, double gamma,
                              const std::string& reduction, std::optional<int64_t> background_index,
                              int64_t ignore_index) {
  const Tensors call("softmax_focal_loss", inputs, targets, alpha, class_weights, gamma, reduction,
                     background_index, ignore_index);
  return std::get<0>(call.run(Pass::kForward));
}

// grad_loss as the loss -> the gradient of inputs
at::Tensor softmax_focal_loss_backward(const at::Tensor& grad_loss, const at::Tensor& inputs,
                                       const at::Tensor& targets, double alpha,
                                       const std::optional<at::Tensor>& class_weights, double gamma,
                                       const std::string& reduction,
                                       std::optional<int64_t> background_index,
                                       int64_t ignore_index) {
  Tensors call("softmax_focal_loss_backward", inputs, targets, alpha, class_weights, gamma,
               reduction, background_index, ignore_index);
  call.take_grad_loss(grad_loss);
  return std::get<1>(call.run(Pass::kBackward));
}

// grad_grad [.., C], the gradient of what the backward gave -> the gradients of its grad_loss and
// of inputs
std::tuple<at::Tensor, at::Tensor> softmax_focal_loss_double_backward(
    const at::Tensor& grad_grad, const at::Tensor& grad_loss, const at::Tensor& inputs,
    const at::Tensor& targets, double alpha, const std::optional<at::Tensor>& class_weights,
    double gamma, const std::string& reduction, std::optional<int64_t> background_index,
    int64_t ignore_index) {
  Tensors call("softmax_focal_loss_double_backward", inputs, targets, alpha, class_weights, gamma,
               reduction, background_index, ignore_index);
  call.take_grad_loss(grad_loss);
  call.take_grad_grad(grad_grad);
  return call.run(Pass::kDoubleBackward);
}

}  // namespace

void bind_softmax_focal_loss(pybind11::module_& m) {
  using Unlocked = pybind11::call_guard<pybind11::gil_scoped_release>;
  m.def("softmax_focal_loss", &softmax_focal_loss, Unlocked());
  m.def("softmax_focal_loss_backward", &softmax_focal_loss_backward, Unlocked());
  m.def("softmax_focal_loss_double_backward", &softmax_focal_loss_double_backward, Unlocked());
}

}  // namespace pydet
