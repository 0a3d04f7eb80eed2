// SPDX-License-Identifier: Apache-2.0
// The glue of the losses of single logits (common/loss.h): a call, its gradient and that of the
// gradient, for any `Kernels` with a name, on_cpu(call) and on_cuda(call, stream). Only
// <op>_torch.cpp files include it.
#pragma once

#include <string>
#include <tuple>
#include <vector>

#include "common/loss.h"
#include "common/torch_glue.h"

namespace pydet {

// The dtype of sums: float32 for the 16-bit types.
inline at::ScalarType sum_dtype(const at::Tensor& inputs) {
  return inputs.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
}

// How losses become one number or one an image.
struct Reduction {
  bool reduce;
  int64_t segments;
  std::vector<int64_t> shape;  // of the sums

  // `count` losses, of inputs with the shape `sizes`.
  Reduction(const char* op, const std::string& name, at::IntArrayRef sizes) {
    reduce = name != "none";
    segments = 1;
    if (name == "sum_per_image") {
      TORCH_CHECK_VALUE(!sizes.empty(), op, ": inputs must have shape [B, ..], got []");
      segments = sizes[0];
      shape = {segments};
    } else {
      TORCH_CHECK_VALUE(name == "none" || name == "sum" || name == "mean", op,
                        ": reduction must be none, mean, sum or sum_per_image, got ", name);
    }
  }

  static double scale(const std::string& name, int64_t count) {
    return name == "mean" ? 1 / static_cast<double>(count) : 1;
  }
};

// What an incoming gradient of the loss must be.
inline void check_grad_loss(const char* op, const at::Tensor& grad_loss, const at::Tensor& inputs,
                            const Reduction& reduction, int64_t count) {
  const at::ScalarType dtype = reduction.reduce ? sum_dtype(inputs) : inputs.scalar_type();
  TORCH_CHECK_TYPE(grad_loss.scalar_type() == dtype, op, ": grad_loss must have the dtype ", dtype,
                   ", got ", grad_loss.scalar_type());
  TORCH_CHECK_VALUE(grad_loss.device() == inputs.device() &&
                        grad_loss.numel() == (reduction.reduce ? reduction.segments : count),
                    op, ": grad_loss must be on the device of inputs and have the shape of the ",
                    "loss, got ", grad_loss.sizes(), " on ", grad_loss.device());
}

// One call of a loss with dense targets or, where `takes_labels`, int64 labels.
struct LossTensors {
  std::string op;
  at::Tensor inputs, targets, grad_loss, factor;
  double alpha, gamma, scale;
  Reduction reduction;

  LossTensors(const std::string& op, bool takes_labels, const at::Tensor& inputs_,
              const at::Tensor& targets_, double alpha, double gamma,
              const std::string& reduction_name)
      : op(op),
        alpha(alpha),
        gamma(gamma),
        scale(Reduction::scale(reduction_name, inputs_.numel())),
        reduction(op.c_str(), reduction_name, inputs_.sizes()) {
    if (takes_labels && targets_.scalar_type() == at::kLong) {
      TORCH_CHECK_VALUE(
          inputs_.dim() >= 1 && targets_.sizes() == inputs_.sizes().slice(0, inputs_.dim() - 1), op,
          ": targets must be labels of the shape of inputs ", inputs_.sizes(),
          " without its last dimension, got ", targets_.sizes());
      TORCH_CHECK_VALUE(inputs_.size(-1) <= INT32_MAX, op,
                        ": inputs must have less than 2^31 classes, got ", inputs_.size(-1));
      TORCH_CHECK_VALUE(targets_.device() == inputs_.device(), op,
                        ": targets must be on the device of inputs (", inputs_.device(), "), got ",
                        targets_.device());
    } else {
      check_alike(op.c_str(), "targets", targets_, "inputs", inputs_);
      TORCH_CHECK_VALUE(targets_.sizes() == inputs_.sizes(), op,
                        ": targets must have the shape of inputs ", inputs_.sizes(), ", got ",
                        targets_.sizes());
    }
    inputs = inputs_.contiguous();
    targets = targets_.contiguous();
  }

  bool labels() const { return targets.scalar_type() == at::kLong; }

  void take_grad_loss(const at::Tensor& grad) {
    check_grad_loss(op.c_str(), grad, inputs, reduction, inputs.numel());
    grad_loss = grad.contiguous();
  }

  void check_target(const char* what) const {
    TORCH_CHECK_TYPE(!labels(), op, ": targets must be floating where ", what, ", got ",
                     targets.scalar_type());
  }

  // The results of all elements, multiplied by what came in, or their sums.
  template <class Kernels>
  at::Tensor run(Derivative derivative, bool sum, bool with_grad) const {
    at::Tensor result = sum ? at::empty(reduction.shape, inputs.options().dtype(sum_dtype(inputs)))
                            : empty_large(inputs.sizes(), inputs.options());
    at::Tensor partials;
    if (sum) {
      partials = at::empty({loss_pieces(inputs.numel(), reduction.segments)},
                           inputs.options().dtype(at::kDouble));
    }
    const bool by_sum = with_grad && reduction.reduce;
    dispatch_floating(inputs.scalar_type(), op.c_str(), [&](auto element) {
      using T = decltype(element);
      const LossCall<T> call{
          inputs.numel(),
          reduction.segments,
          alpha,
          gamma,
          scale,
          input<T>(inputs),
          labels() ? nullptr : input<T>(targets),
          labels() ? input<int64_t>(targets) : nullptr,
          labels() ? inputs.size(-1) : 0,
          derivative,
          factor.defined() ? input<T>(factor) : nullptr,
          with_grad && !reduction.reduce ? input<T>(grad_loss) : nullptr,
          by_sum ? input<acc_t<T>>(grad_loss) : nullptr,
          sum ? nullptr : output<T>(result),
          sum ? output<acc_t<T>>(result) : nullptr,
          sum ? output<double>(partials) : nullptr,
      };
      dispatch_device(
          op.c_str(), inputs, [&] { Kernels::on_cpu(call); },
          [&](CUstream_st* stream) { return Kernels::on_cuda(call, stream); });
    });
    return result;
  }
};

// inputs [.., K], targets [.., K] or labels [..] -> [.., K], [] or [B]
template <class Kernels>
at::Tensor loss(const at::Tensor& inputs, const at::Tensor& targets, double alpha, double gamma,
                const std::string& reduction) {
  const LossTensors call(Kernels::kName, Kernels::kLabels, inputs, targets, alpha, gamma,
                         reduction);
  return call.run<Kernels>(Derivative::kNone, call.reduction.reduce, false);
}

// grad_loss as the loss -> the gradient of inputs, or of (floating) targets
template <class Kernels>
at::Tensor loss_backward(const at::Tensor& grad_loss, const at::Tensor& inputs,
                         const at::Tensor& targets, double alpha, double gamma,
                         const std::string& reduction, bool wrt_targets) {
  LossTensors call(std::string(Kernels::kName) + "_backward", Kernels::kLabels, inputs, targets,
                   alpha, gamma, reduction);
  if (wrt_targets) call.check_target("their gradient is asked for");
  call.take_grad_loss(grad_loss);
  return call.run<Kernels>(wrt_targets ? Derivative::kTarget : Derivative::kInput, false, true);
}

// grad_grad [.., K], the gradient of what loss_backward gave -> the gradients of its grad_loss, of
// inputs and, where `with_targets`, of targets (else an empty tensor)
template <class Kernels>
std::tuple<at::Tensor, at::Tensor, at::Tensor> loss_double_backward(
    const at::Tensor& grad_grad, const at::Tensor& grad_loss, const at::Tensor& inputs,
    const at::Tensor& targets, double alpha, double gamma, const std::string& reduction,
    bool wrt_targets, bool with_targets) {
  LossTensors call(std::string(Kernels::kName) + "_double_backward", Kernels::kLabels, inputs,
                   targets, alpha, gamma, reduction);
  if (wrt_targets || with_targets) call.check_target("their gradient is asked for");
  call.take_grad_loss(grad_loss);
  check_alike(call.op.c_str(), "grad_grad", grad_grad, "inputs", inputs);
  TORCH_CHECK_VALUE(grad_grad.sizes() == inputs.sizes(), call.op,
                    ": grad_grad must have the shape of inputs ", inputs.sizes(), ", got ",
                    grad_grad.sizes());
  call.factor = grad_grad.contiguous();
  const auto first = wrt_targets ? Derivative::kTarget : Derivative::kInput;
  const auto by_input = wrt_targets ? Derivative::kInputTarget : Derivative::kInputInput;
  const auto by_target = wrt_targets ? Derivative::kTargetTarget : Derivative::kInputTarget;
  return {
      call.run<Kernels>(first, call.reduction.reduce, false),
      call.run<Kernels>(by_input, false, true),
      with_targets ? call.run<Kernels>(by_target, false, true) : at::empty({0}, inputs.options())};
}

}  // namespace pydet
