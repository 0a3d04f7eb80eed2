// SPDX-License-Identifier: Apache-2.0
#include <tuple>
#include <vector>

#include "box_iou/box_iou.h"
#include "common/torch_glue.h"

namespace pydet {
namespace {

// The sizes of a call: leading dimensions are one batch.
struct Sizes {
  int64_t batch, num_boxes1, num_boxes2;
};

Sizes check_inputs(const char* op, const at::Tensor& boxes1, const at::Tensor& boxes2) {
  check_boxes(op, "boxes1", boxes1);
  check_boxes(op, "boxes2", boxes2);
  check_alike(op, "boxes2", boxes2, "boxes1", boxes1);
  TORCH_CHECK_VALUE(
      boxes1.sizes().slice(0, boxes1.dim() - 2) == boxes2.sizes().slice(0, boxes2.dim() - 2), op,
      ": boxes2 must have the leading dimensions of boxes1 ", boxes1.sizes(), ", got ",
      boxes2.sizes());
  Sizes sizes{1, boxes1.size(-2), boxes2.size(-2)};
  for (int64_t size : boxes1.sizes().slice(0, boxes1.dim() - 2)) sizes.batch *= size;
  return sizes;
}

// boxes1 [.., N, 4], boxes2 [.., M, 4] -> [.., N, M]
at::Tensor box_iou(const at::Tensor& boxes1, const at::Tensor& boxes2) {
  const Sizes s = check_inputs("box_iou", boxes1, boxes2);
  const at::Tensor a = boxes1.contiguous(), b = boxes2.contiguous();
  std::vector<int64_t> shape = boxes1.sizes().vec();
  shape.back() = s.num_boxes2;
  at::Tensor iou = empty_large(shape, boxes1.options());
  dispatch_floating(boxes1.scalar_type(), "box_iou", [&](auto element) {
    using T = decltype(element);
    dispatch_device(
        "box_iou", boxes1,
        [&] {
          cpu::box_iou<T>(s.batch, s.num_boxes1, s.num_boxes2, input<T>(a), input<T>(b),
                          output<T>(iou));
        },
        [&](CUstream_st* stream) {
          return cuda::box_iou<T>(s.batch, s.num_boxes1, s.num_boxes2, input<T>(a), input<T>(b),
                                  output<T>(iou), stream);
        });
  });
  return iou;
}

// grad_iou [.., N, M] -> gradients of boxes1 and boxes2
std::tuple<at::Tensor, at::Tensor> box_iou_backward(const at::Tensor& grad_iou,
                                                    const at::Tensor& boxes1,
                                                    const at::Tensor& boxes2) {
  const char* op = "box_iou_backward";
  const Sizes s = check_inputs(op, boxes1, boxes2);
  check_alike(op, "grad_iou", grad_iou, "boxes1", boxes1);
  TORCH_CHECK_VALUE(grad_iou.numel() == s.batch * s.num_boxes1 * s.num_boxes2, op,
                    ": grad_iou must have one element a pair, got ", grad_iou.sizes());
  const at::Tensor a = boxes1.contiguous(), b = boxes2.contiguous(), grad = grad_iou.contiguous();
  at::Tensor grad_a = at::empty(a.sizes(), a.options()), grad_b = at::empty(b.sizes(), b.options());
  dispatch_floating(boxes1.scalar_type(), op, [&](auto element) {
    using T = decltype(element);
    dispatch_device(
        op, boxes1,
        [&] {
          cpu::box_iou_backward<T>(s.batch, s.num_boxes1, s.num_boxes2, input<T>(grad), input<T>(a),
                                   input<T>(b), output<T>(grad_a), output<T>(grad_b));
        },
        [&](CUstream_st* stream) {
          return cuda::box_iou_backward<T>(s.batch, s.num_boxes1, s.num_boxes2, input<T>(grad),
                                           input<T>(a), input<T>(b), output<T>(grad_a),
                                           output<T>(grad_b), stream);
        });
  });
  return {grad_a, grad_b};
}

}  // namespace

void bind_box_iou(pybind11::module_& m) {
  m.def("box_iou", &box_iou, pybind11::call_guard<pybind11::gil_scoped_release>());
  m.def("box_iou_backward", &box_iou_backward,
        pybind11::call_guard<pybind11::gil_scoped_release>());
}

}  // namespace pydet
