// SPDX-License-Identifier: Apache-2.0
#include <string>
#include <tuple>
#include <vector>

#include "box_iou/box_iou.h"
#include "common/overlap_glue.h"
#include "common/torch_glue.h"

namespace pydet {
namespace {

// Computed in, and the dtype of the overlaps: float32 for 16-bit boxes.
at::ScalarType wide_dtype(const char* op, at::ScalarType dtype) {
  TORCH_CHECK_TYPE(
      dtype == at::kFloat || dtype == at::kDouble || dtype == at::kHalf || dtype == at::kBFloat16,
      op, ": boxes must be float16, bfloat16, float32 or float64, got ", dtype);
  return dtype == at::kDouble ? at::kDouble : at::kFloat;
}

// A call's tensors, checked, contiguous and in the dtype of the arithmetic; leading dimensions are
// one batch.
struct Call {
  const char* op;
  BoxIouArgs args;
  at::Tensor boxes1, boxes2;

  // Refuses what is not one number for each pair.
  void check_pairs(const at::Tensor& grad_iou) const {
    TORCH_CHECK_TYPE(grad_iou.scalar_type() == boxes1.scalar_type(), op,
                     ": grad_iou must have the dtype of the overlaps (", boxes1.scalar_type(),
                     "), got ", grad_iou.scalar_type());
    TORCH_CHECK_VALUE(grad_iou.device() == boxes1.device() &&
                          grad_iou.numel() == args.batch * args.num_boxes1 * args.num_boxes2,
                      op, ": grad_iou must be on the device of boxes1 and have one element a pair",
                      ", got ", grad_iou.sizes(), " on ", grad_iou.device());
  }

  // Calls on_cpu(A{}) or on_cuda(A{}, stream).
  template <class OnCpu, class OnCuda>
  void dispatch(const OnCpu& on_cpu, const OnCuda& on_cuda) const {
    const auto with = [&](auto element) {
      dispatch_device(
          op, boxes1, [&] { on_cpu(element); },
          [&](CUstream_st* stream) { return on_cuda(element, stream); });
    };
    if (boxes1.scalar_type() == at::kDouble) return with(double{});
    with(float{});
  }
};

Call check_inputs(const char* op, const at::Tensor& boxes1, const at::Tensor& boxes2,
                  const std::string& overlap, double eps) {
  check_boxes(op, "boxes1", boxes1);
  check_boxes(op, "boxes2", boxes2);
  check_alike(op, "boxes2", boxes2, "boxes1", boxes1);
  TORCH_CHECK_VALUE(
      boxes1.sizes().slice(0, boxes1.dim() - 2) == boxes2.sizes().slice(0, boxes2.dim() - 2), op,
      ": boxes2 must have the leading dimensions of boxes1 ", boxes1.sizes(), ", got ",
      boxes2.sizes());
  const at::ScalarType dtype = wide_dtype(op, boxes1.scalar_type());
  BoxIouArgs args{overlap_of(op, overlap), eps, 1, boxes1.size(-2), boxes2.size(-2)};
  for (int64_t size : boxes1.sizes().slice(0, boxes1.dim() - 2)) args.batch *= size;
  return {op, args, boxes1.to(dtype).contiguous(), boxes2.to(dtype).contiguous()};
}

// boxes1 [.., N, 4], boxes2 [.., M, 4] -> [.., N, M]
at::Tensor box_iou(const at::Tensor& boxes1, const at::Tensor& boxes2, const std::string& overlap,
                   double eps) {
  const Call call = check_inputs("box_iou", boxes1, boxes2, overlap, eps);
  std::vector<int64_t> shape = boxes1.sizes().vec();
  shape.back() = call.args.num_boxes2;
  at::Tensor iou = empty_large(shape, call.boxes1.options());
  call.dispatch(
      [&](auto element) {
        using A = decltype(element);
        cpu::box_iou<A>(call.args, input<A>(call.boxes1), input<A>(call.boxes2), output<A>(iou));
      },
      [&](auto element, CUstream_st* stream) {
        using A = decltype(element);
        return cuda::box_iou<A>(call.args, input<A>(call.boxes1), input<A>(call.boxes2),
                                output<A>(iou), stream);
      });
  return iou;
}

// grad_iou [.., N, M] -> gradients of boxes1 and boxes2
std::tuple<at::Tensor, at::Tensor> box_iou_backward(const at::Tensor& grad_iou,
                                                    const at::Tensor& boxes1,
                                                    const at::Tensor& boxes2,
                                                    const std::string& overlap, double eps) {
  const Call call = check_inputs("box_iou_backward", boxes1, boxes2, overlap, eps);
  call.check_pairs(grad_iou);
  const at::Tensor grad = grad_iou.contiguous();
  at::Tensor grad1 = at::empty(call.boxes1.sizes(), call.boxes1.options());
  at::Tensor grad2 = at::empty(call.boxes2.sizes(), call.boxes2.options());
  call.dispatch(
      [&](auto element) {
        using A = decltype(element);
        cpu::box_iou_backward<A>(call.args, input<A>(grad), input<A>(call.boxes1),
                                 input<A>(call.boxes2), output<A>(grad1), output<A>(grad2));
      },
      [&](auto element, CUstream_st* stream) {
        using A = decltype(element);
        return cuda::box_iou_backward<A>(call.args, input<A>(grad), input<A>(call.boxes1),
                                         input<A>(call.boxes2), output<A>(grad1), output<A>(grad2),
                                         stream);
      });
  return {grad1.to(boxes1.scalar_type()), grad2.to(boxes2.scalar_type())};
}

// v1 and v2, the gradients of what box_iou_backward gave -> gradients of grad_iou, boxes1, boxes2
std::tuple<at::Tensor, at::Tensor, at::Tensor> box_iou_double_backward(
    const at::Tensor& v1, const at::Tensor& v2, const at::Tensor& grad_iou,
    const at::Tensor& boxes1, const at::Tensor& boxes2, const std::string& overlap, double eps) {
  const Call call = check_inputs("box_iou_double_backward", boxes1, boxes2, overlap, eps);
  call.check_pairs(grad_iou);
  check_alike(call.op, "v1", v1, "boxes1", boxes1);
  check_alike(call.op, "v2", v2, "boxes2", boxes2);
  TORCH_CHECK_VALUE(v1.sizes() == boxes1.sizes() && v2.sizes() == boxes2.sizes(), call.op,
                    ": v1 and v2 must have the shapes of boxes1 and boxes2, got ", v1.sizes(),
                    " and ", v2.sizes());
  const at::Tensor grad = grad_iou.contiguous();
  const at::ScalarType dtype = call.boxes1.scalar_type();
  const at::Tensor t1 = v1.to(dtype).contiguous(), t2 = v2.to(dtype).contiguous();
  at::Tensor grad_grad = empty_large(grad_iou.sizes(), grad.options());
  at::Tensor grad1 = at::empty(call.boxes1.sizes(), call.boxes1.options());
  at::Tensor grad2 = at::empty(call.boxes2.sizes(), call.boxes2.options());
  call.dispatch(
      [&](auto element) {
        using A = decltype(element);
        const SecondOrder<A> second{input<A>(t1), input<A>(t2), output<A>(grad_grad)};
        cpu::box_iou_double_backward<A>(call.args, second, input<A>(grad), input<A>(call.boxes1),
                                        input<A>(call.boxes2), output<A>(grad1), output<A>(grad2));
      },
      [&](auto element, CUstream_st* stream) {
        using A = decltype(element);
        const SecondOrder<A> second{input<A>(t1), input<A>(t2), output<A>(grad_grad)};
        return cuda::box_iou_double_backward<A>(call.args, second, input<A>(grad),
                                                input<A>(call.boxes1), input<A>(call.boxes2),
                                                output<A>(grad1), output<A>(grad2), stream);
      });
  return {grad_grad, grad1.to(boxes1.scalar_type()), grad2.to(boxes2.scalar_type())};
}

}  // namespace

void bind_box_iou(pybind11::module_& m) {
  const auto without_gil = pybind11::call_guard<pybind11::gil_scoped_release>();
  m.def("box_iou", &box_iou, without_gil);
  m.def("box_iou_backward", &box_iou_backward, without_gil);
  m.def("box_iou_double_backward", &box_iou_double_backward, without_gil);
}

}  // namespace pydet
