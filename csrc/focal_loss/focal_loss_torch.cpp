// SPDX-License-Identifier: Apache-2.0
#include <string>
#include <vector>

#include "common/torch_glue.h"
#include "focal_loss/focal_loss.h"

namespace pydet {
namespace {

// A call's tensors, checked and contiguous.
struct Call {
  at::Tensor inputs, targets;
  int64_t segments;
  double alpha, gamma, scale;

  template <class T>
  FocalLossArgs<T> args() const {
    const bool labels = targets.scalar_type() == at::kLong;
    const int64_t num_classes = labels ? inputs.size(-1) : 0;
    return {inputs.numel(),
            segments,
            num_classes,
            alpha,
            gamma,
            scale,
            input<T>(inputs),
            labels ? nullptr : input<T>(targets),
            labels ? input<int64_t>(targets) : nullptr};
  }
};

Call check_inputs(const char* op, const at::Tensor& inputs, const at::Tensor& targets, double alpha,
                  double gamma, const std::string& reduction) {
  if (targets.scalar_type() == at::kLong) {
    TORCH_CHECK_VALUE(
        inputs.dim() >= 1 && targets.sizes() == inputs.sizes().slice(0, inputs.dim() - 1), op,
        ": labels must have the leading dimensions of inputs ", inputs.sizes(), ", got ",
        targets.sizes());
    TORCH_CHECK_VALUE(inputs.size(-1) <= INT32_MAX, op,
                      ": inputs must have less than 2^31 classes, got ", inputs.size(-1));
    TORCH_CHECK_VALUE(targets.device() == inputs.device(), op,
                      ": targets must be on the device of inputs (", inputs.device(), "), got ",
                      targets.device());
  } else {
    check_alike(op, "targets", targets, "inputs", inputs);
    TORCH_CHECK_VALUE(targets.sizes() == inputs.sizes(), op,
                      ": targets must have the shape of inputs ", inputs.sizes(), ", got ",
                      targets.sizes());
  }
  Call call{inputs.contiguous(), targets.contiguous(), 1, alpha, gamma, 1};
  if (reduction == "mean") {
    call.scale = 1 / static_cast<double>(inputs.numel());
  } else if (reduction == "sum_per_image") {
    TORCH_CHECK_VALUE(inputs.dim() >= 1, op, ": inputs must have shape [B, ..], got []");
    call.segments = inputs.size(0);
  } else {
    TORCH_CHECK_VALUE(reduction == "none" || reduction == "sum", op,
                      ": reduction must be none, mean, sum or sum_per_image, got ", reduction);
  }
  return call;
}

// The dtype of sums: float32 for the 16-bit types.
at::ScalarType sum_dtype(const at::Tensor& inputs) {
  return inputs.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
}

// inputs [.., K], targets [.., K] or labels [..] -> [.., K], [] or [B]
at::Tensor sigmoid_focal_loss(const at::Tensor& inputs, const at::Tensor& targets, double alpha,
                              double gamma, const std::string& reduction) {
  const char* op = "sigmoid_focal_loss";
  const Call call = check_inputs(op, inputs, targets, alpha, gamma, reduction);
  const bool reduce = reduction != "none";
  std::vector<int64_t> shape;
  if (!reduce) shape = inputs.sizes().vec();
  if (reduction == "sum_per_image") shape = {call.segments};
  at::Tensor loss =
      empty_large(shape, inputs.options().dtype(reduce ? sum_dtype(inputs) : inputs.scalar_type()));
  at::Tensor partials;
  if (reduce) {
    partials = at::empty({focal_loss_pieces(inputs.numel(), call.segments)},
                         inputs.options().dtype(at::kDouble));
  }
  dispatch_floating(inputs.scalar_type(), op, [&](auto element) {
    using T = decltype(element);
    const FocalLossArgs<T> args = call.args<T>();
    dispatch_device(
        op, inputs,
        [&] {
          if (!reduce) return cpu::focal_loss<T>(args, output<T>(loss));
          cpu::focal_loss_sums<T>(args, output<double>(partials), output<acc_t<T>>(loss));
        },
        [&](CUstream_st* stream) {
          if (!reduce) return cuda::focal_loss<T>(args, output<T>(loss), stream);
          return cuda::focal_loss_sums<T>(args, output<double>(partials), output<acc_t<T>>(loss),
                                          stream);
        });
  });
  return loss;
}

// grad_loss as the loss -> the gradient of inputs, or of (floating) targets
at::Tensor sigmoid_focal_loss_backward(const at::Tensor& grad_loss, const at::Tensor& inputs,
                                       const at::Tensor& targets, double alpha, double gamma,
                                       const std::string& reduction, bool wrt_targets) {
  const char* op = "sigmoid_focal_loss_backward";
  const Call call = check_inputs(op, inputs, targets, alpha, gamma, reduction);
  const bool reduce = reduction != "none";
  TORCH_CHECK_TYPE(!wrt_targets || targets.scalar_type() != at::kLong, op,
                   ": targets must be floating where their gradient is asked for, got ",
                   targets.scalar_type());
  const at::ScalarType grad_dtype = reduce ? sum_dtype(inputs) : inputs.scalar_type();
  TORCH_CHECK_TYPE(grad_loss.scalar_type() == grad_dtype, op, ": grad_loss must have the dtype ",
                   grad_dtype, ", got ", grad_loss.scalar_type());
  TORCH_CHECK_VALUE(
      grad_loss.device() == inputs.device() &&
          grad_loss.numel() == (reduce ? call.segments : inputs.numel()),
      op, ": grad_loss must be on the device of inputs and have the shape of the loss, got ",
      grad_loss.sizes(), " on ", grad_loss.device());
  const at::Tensor grad_in = grad_loss.contiguous();
  at::Tensor grad = empty_large(inputs.sizes(), inputs.options());
  dispatch_floating(inputs.scalar_type(), op, [&](auto element) {
    using T = decltype(element);
    const FocalLossArgs<T> args = call.args<T>();
    const T* grad_elements = reduce ? nullptr : input<T>(grad_in);
    const acc_t<T>* grad_sums = reduce ? input<acc_t<T>>(grad_in) : nullptr;
    dispatch_device(
        op, inputs,
        [&] {
          cpu::focal_loss_backward<T>(args, wrt_targets, grad_elements, grad_sums, output<T>(grad));
        },
        [&](CUstream_st* stream) {
          return cuda::focal_loss_backward<T>(args, wrt_targets, grad_elements, grad_sums,
                                              output<T>(grad), stream);
        });
  });
  return grad;
}

}  // namespace

void bind_focal_loss(pybind11::module_& m) {
  m.def("sigmoid_focal_loss", &sigmoid_focal_loss,
        pybind11::call_guard<pybind11::gil_scoped_release>());
  m.def("sigmoid_focal_loss_backward", &sigmoid_focal_loss_backward,
        pybind11::call_guard<pybind11::gil_scoped_release>());
}

}  // namespace pydet
