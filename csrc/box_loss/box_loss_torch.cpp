// SPDX-License-Identifier: Apache-2.0
#include <ATen/ops/empty_like.h>

#include <string>
#include <tuple>
#include <vector>

#include "box_loss/box_loss.h"
#include "common/overlap_glue.h"
#include "common/torch_glue.h"

namespace pydet {
namespace {

// A call's tensors, checked and contiguous; v1 and v2 may be undefined.
struct Call {
  const char* op;
  at::Tensor boxes1, boxes2, v1, v2;
  Overlap overlap;
  bool reduce;
  double eps, scale;

  template <class T>
  BoxLossArgs<T> args() const {
    return {overlap,
            boxes1.numel() / 4,
            eps,
            scale,
            input<T>(boxes1),
            input<T>(boxes2),
            v1.defined() ? input<T>(v1) : nullptr,
            v2.defined() ? input<T>(v2) : nullptr};
  }

  // The losses, or their sum; derivatives along v1 and v2 where they are given.
  at::Tensor loss() const {
    const at::TensorOptions options =
        boxes1.options().dtype(boxes1.scalar_type() == at::kDouble ? at::kDouble : at::kFloat);
    const at::IntArrayRef shape =
        reduce ? at::IntArrayRef{} : boxes1.sizes().slice(0, boxes1.dim() - 1);
    at::Tensor loss = empty_large(shape, options), partials;
    if (reduce)
      partials = at::empty({box_loss_pieces(boxes1.numel() / 4)}, options.dtype(at::kDouble));
    dispatch_floating(boxes1.scalar_type(), op, [&](auto element) {
      using T = decltype(element);
      using A = acc_t<T>;
      dispatch_device(
          op, boxes1,
          [&] {
            if (!reduce) return cpu::box_loss<T>(args<T>(), output<A>(loss));
            cpu::box_loss_sum<T>(args<T>(), output<double>(partials), output<A>(loss));
          },
          [&](CUstream_st* stream) {
            if (!reduce) return cuda::box_loss<T>(args<T>(), output<A>(loss), stream);
            return cuda::box_loss_sum<T>(args<T>(), output<double>(partials), output<A>(loss),
                                         stream);
          });
    });
    return loss;
  }

  // The gradients of boxes1 and boxes2, or their change along v1 and v2.
  std::tuple<at::Tensor, at::Tensor> backward(const at::Tensor& grad_loss) const {
    const int64_t count = boxes1.numel() / 4;
    TORCH_CHECK_TYPE(
        grad_loss.scalar_type() == (boxes1.scalar_type() == at::kDouble ? at::kDouble : at::kFloat),
        op, ": grad_loss must be float64 for float64 boxes and float32 for others, got ",
        grad_loss.scalar_type());
    TORCH_CHECK_VALUE(
        grad_loss.device() == boxes1.device() && grad_loss.numel() == (reduce ? 1 : count), op,
        ": grad_loss must be on the device of boxes1 and have the shape of the loss, got ",
        grad_loss.sizes(), " on ", grad_loss.device());
    const at::Tensor grad = grad_loss.contiguous();
    at::Tensor grad1 = at::empty_like(boxes1), grad2 = at::empty_like(boxes2);
    dispatch_floating(boxes1.scalar_type(), op, [&](auto element) {
      using T = decltype(element);
      using A = acc_t<T>;
      dispatch_device(
          op, boxes1,
          [&] {
            cpu::box_loss_backward<T>(args<T>(), reduce, input<A>(grad), output<T>(grad1),
                                      output<T>(grad2));
          },
          [&](CUstream_st* stream) {
            return cuda::box_loss_backward<T>(args<T>(), reduce, input<A>(grad), output<T>(grad1),
                                              output<T>(grad2), stream);
          });
    });
    return {grad1, grad2};
  }
};

Call check_inputs(const char* op, const at::Tensor& boxes1, const at::Tensor& boxes2,
                  const std::string& overlap, const std::string& reduction, double eps) {
  TORCH_CHECK_VALUE(boxes1.dim() >= 1 && boxes1.size(-1) == 4, op,
                    ": boxes1 must have shape [.., 4], got ", boxes1.sizes());
  check_alike(op, "boxes2", boxes2, "boxes1", boxes1);
  TORCH_CHECK_VALUE(boxes2.sizes() == boxes1.sizes(), op, ": boxes2 must have the shape of boxes1 ",
                    boxes1.sizes(), ", got ", boxes2.sizes());
  TORCH_CHECK_VALUE(reduction == "none" || reduction == "mean" || reduction == "sum", op,
                    ": reduction must be none, mean or sum, got ", reduction);
  const double count = static_cast<double>(boxes1.numel() / 4);
  return {op,
          boxes1.contiguous(),
          boxes2.contiguous(),
          {},
          {},
          overlap_of(op, overlap),
          reduction != "none",
          eps,
          reduction == "mean" ? 1 / count : 1};
}

// boxes1, boxes2 [.., 4] -> [..], or [] where reduced
at::Tensor box_loss(const at::Tensor& boxes1, const at::Tensor& boxes2, const std::string& overlap,
                    const std::string& reduction, double eps) {
  return check_inputs("box_loss", boxes1, boxes2, overlap, reduction, eps).loss();
}

// grad_loss as the loss -> gradients of boxes1 and boxes2
std::tuple<at::Tensor, at::Tensor> box_loss_backward(const at::Tensor& grad_loss,
                                                     const at::Tensor& boxes1,
                                                     const at::Tensor& boxes2,
                                                     const std::string& overlap,
                                                     const std::string& reduction, double eps) {
  return check_inputs("box_loss_backward", boxes1, boxes2, overlap, reduction, eps)
      .backward(grad_loss);
}

// v1 and v2, the gradients of what box_loss_backward gave -> gradients of grad_loss, boxes1, boxes2
std::tuple<at::Tensor, at::Tensor, at::Tensor> box_loss_double_backward(
    const at::Tensor& v1, const at::Tensor& v2, const at::Tensor& grad_loss,
    const at::Tensor& boxes1, const at::Tensor& boxes2, const std::string& overlap,
    const std::string& reduction, double eps) {
  const char* op = "box_loss_double_backward";
  Call call = check_inputs(op, boxes1, boxes2, overlap, reduction, eps);
  check_alike(op, "v1", v1, "boxes1", boxes1);
  check_alike(op, "v2", v2, "boxes1", boxes1);
  TORCH_CHECK_VALUE(v1.sizes() == boxes1.sizes() && v2.sizes() == boxes1.sizes(), op,
                    ": v1 and v2 must have the shape of boxes1, got ", v1.sizes(), " and ",
                    v2.sizes());
  call.v1 = v1.contiguous();
  call.v2 = v2.contiguous();
  const at::Tensor slope = call.loss();
  const auto [grad1, grad2] = call.backward(grad_loss);
  return {slope, grad1, grad2};
}

}  // namespace

void bind_box_loss(pybind11::module_& m) {
  const auto without_gil = pybind11::call_guard<pybind11::gil_scoped_release>();
  m.def("box_loss", &box_loss, without_gil);
  m.def("box_loss_backward", &box_loss_backward, without_gil);
  m.def("box_loss_double_backward", &box_loss_double_backward, without_gil);
}

}  // namespace pydet
