// SPDX-License-Identifier: Apache-2.0
#include <string>
#include <type_traits>

#include "boxes/boxes.h"
#include "common/torch_glue.h"

namespace pydet {
namespace {

// Refuses what is not [.., 4]; returns the number of boxes.
int64_t check_rows(const char* op, const at::Tensor& boxes) {
  TORCH_CHECK_VALUE(boxes.dim() >= 1 && boxes.size(-1) == 4, op,
                    ": boxes must have shape [.., 4], got ", boxes.sizes());
  return boxes.numel() / 4;
}

// Refuses a gradient that does not have one element for each of `like`, or another device.
void check_gradient(const char* op, const at::Tensor& grad, at::IntArrayRef shape,
                    const at::Tensor& boxes, at::ScalarType dtype) {
  TORCH_CHECK_TYPE(grad.scalar_type() == dtype, op, ": the gradient must have the dtype ", dtype,
                   ", got ", grad.scalar_type());
  TORCH_CHECK_VALUE(grad.sizes() == shape && grad.device() == boxes.device(), op,
                    ": the gradient must have the shape ", shape, " and the device of boxes, got ",
                    grad.sizes(), " on ", grad.device());
}

BoxFormat format_of(const char* op, const std::string& name, at::ScalarType dtype) {
  if (name == "xyxy") return BoxFormat::kXyxy;
  if (name == "xywh") return BoxFormat::kXywh;
  TORCH_CHECK_VALUE(name == "cxcywh", op, ": a format must be xyxy, xywh or cxcywh, got ", name);
  TORCH_CHECK_TYPE(c10::isFloatingType(dtype), op, ": boxes must be floating for cxcywh, got ",
                   dtype);
  return BoxFormat::kCxcywh;
}

// Calls body(T{}) for the four floating dtypes, or with Integer for the one that integers are
// computed in.
template <class Integer, class Body>
void dispatch_numbers(const at::Tensor& tensor, const char* op, const Body& body) {
  if (tensor.scalar_type() == at::kLong) return body(Integer{});
  dispatch_floating(tensor.scalar_type(), op, body);
}

template <class Operation>
void run(const char* op, const at::Tensor& boxes, const Operation& operation) {
  const int64_t count = boxes.numel() / 4;
  dispatch_device(
      op, boxes, [&] { cpu::for_each_box(count, operation); },
      [&](CUstream_st* stream) { return cuda::for_each_box(count, operation, stream); });
}

// Contiguous, all integers as int64: results are cast back, which wraps as torch's integers do.
at::Tensor prepared(const at::Tensor& boxes) {
  const bool integral = c10::isIntegralType(boxes.scalar_type(), /*includeBool=*/false);
  return (integral ? boxes.to(at::kLong) : boxes).contiguous();
}

at::ScalarType area_dtype(at::ScalarType dtype) {
  if (dtype == at::kHalf || dtype == at::kBFloat16) return at::kFloat;
  return c10::isFloatingType(dtype) || dtype == at::kLong ? dtype : at::kInt;
}

// boxes [.., 4] -> [..]
at::Tensor box_area(const at::Tensor& boxes, const std::string& fmt) {
  const char* op = "box_area";
  check_rows(op, boxes);
  const at::Tensor in = prepared(boxes);
  // The area of a centre-size box needs no centre, so integers are welcome.
  const BoxFormat format = fmt == "cxcywh" ? BoxFormat::kXywh : format_of(op, fmt, at::kFloat);
  at::Tensor areas = at::empty(boxes.sizes().slice(0, boxes.dim() - 1),
                               in.options().dtype(area_dtype(in.scalar_type())));
  dispatch_numbers<uint64_t>(in, op, [&](auto element) {
    using T = decltype(element);
    run(op, in, BoxArea<T>{format, input<T>(in), output<box_number_t<T>>(areas)});
  });
  return areas.to(area_dtype(boxes.scalar_type()));
}

at::Tensor box_area_backward(const at::Tensor& grad_area, const at::Tensor& boxes,
                             const std::string& fmt) {
  const char* op = "box_area_backward";
  check_rows(op, boxes);
  check_gradient(op, grad_area, boxes.sizes().slice(0, boxes.dim() - 1), boxes,
                 area_dtype(boxes.scalar_type()));
  const BoxFormat format = format_of(op, fmt, boxes.scalar_type());
  const at::Tensor in = boxes.contiguous(), grad = grad_area.contiguous();
  at::Tensor grad_boxes = at::empty(in.sizes(), in.options());
  dispatch_floating(in.scalar_type(), op, [&](auto element) {
    using T = decltype(element);
    run(op, in,
        BoxAreaBackward<T>{format, input<acc_t<T>>(grad), input<T>(in), output<T>(grad_boxes)});
  });
  return grad_boxes;
}

// boxes [.., 4] -> [.., 4]
at::Tensor box_convert(const at::Tensor& boxes, const std::string& in_fmt,
                       const std::string& out_fmt) {
  const char* op = "box_convert";
  check_rows(op, boxes);
  const BoxFormat from = format_of(op, in_fmt, boxes.scalar_type());
  const BoxFormat to = format_of(op, out_fmt, boxes.scalar_type());
  const at::Tensor in = prepared(boxes);
  at::Tensor converted = at::empty(in.sizes(), in.options());
  dispatch_numbers<uint64_t>(in, op, [&](auto element) {
    using T = decltype(element);
    run(op, in, BoxConvert<T>{from, to, input<T>(in), output<T>(converted)});
  });
  return converted.to(boxes.scalar_type());
}

at::Tensor box_convert_backward(const at::Tensor& grad_converted, const std::string& in_fmt,
                                const std::string& out_fmt) {
  const char* op = "box_convert_backward";
  check_rows(op, grad_converted);
  const BoxFormat from = format_of(op, in_fmt, grad_converted.scalar_type());
  const BoxFormat to = format_of(op, out_fmt, grad_converted.scalar_type());
  const at::Tensor grad = grad_converted.contiguous();
  at::Tensor grad_boxes = at::empty(grad.sizes(), grad.options());
  dispatch_floating(grad.scalar_type(), op, [&](auto element) {
    using T = decltype(element);
    run(op, grad, BoxConvertBackward<T>{from, to, input<T>(grad), output<T>(grad_boxes)});
  });
  return grad_boxes;
}

// boxes [.., 4] -> [.., 4]
at::Tensor clip_boxes_to_image(const at::Tensor& boxes, double height, double width) {
  const char* op = "clip_boxes_to_image";
  check_rows(op, boxes);
  const at::Tensor in = prepared(boxes);
  at::Tensor clipped = at::empty(in.sizes(), in.options());
  dispatch_numbers<int64_t>(in, op, [&](auto element) {
    using T = decltype(element);
    using A = box_number_t<T>;
    run(op, in,
        ClipBoxes<T>{static_cast<A>(height), static_cast<A>(width), input<T>(in),
                     output<T>(clipped)});
  });
  return clipped.to(boxes.scalar_type());
}

at::Tensor clip_boxes_to_image_backward(const at::Tensor& grad_clipped, const at::Tensor& boxes,
                                        double height, double width) {
  const char* op = "clip_boxes_to_image_backward";
  check_rows(op, boxes);
  check_gradient(op, grad_clipped, boxes.sizes(), boxes, boxes.scalar_type());
  const at::Tensor in = boxes.contiguous(), grad = grad_clipped.contiguous();
  at::Tensor grad_boxes = at::empty(in.sizes(), in.options());
  dispatch_floating(in.scalar_type(), op, [&](auto element) {
    using T = decltype(element);
    using A = acc_t<T>;
    run(op, in,
        ClipBoxesBackward<T>{static_cast<A>(height), static_cast<A>(width), input<T>(grad),
                             input<T>(in), output<T>(grad_boxes)});
  });
  return grad_boxes;
}

// boxes [.., 4] -> bool [..]
at::Tensor large_boxes(const at::Tensor& boxes, double min_size) {
  const char* op = "large_boxes";
  check_rows(op, boxes);
  const at::Tensor in = prepared(boxes);
  at::Tensor large =
      at::empty(boxes.sizes().slice(0, boxes.dim() - 1), in.options().dtype(at::kBool));
  dispatch_numbers<int64_t>(in, op, [&](auto element) {
    using T = decltype(element);
    run(op, in, LargeBoxes<T>{min_size, input<T>(in), output<bool>(large)});
  });
  return large;
}

// Calls body(T{}) with the element type that stores `dtype`, where the kernels have one.
template <class Body>
void dispatch_masks(const at::Tensor& masks, const char* op, const Body& body) {
  switch (masks.scalar_type()) {
    case at::kBool:
    case at::kByte:
    case at::kChar:
      return body(uint8_t{});
    case at::kShort:
      return body(int16_t{});
    case at::kInt:
      return body(int32_t{});
    case at::kLong:
      return body(int64_t{});
    default:
      dispatch_floating(masks.scalar_type(), op, body);
  }
}

// masks [N, H, W] -> float32 [N, 4]
at::Tensor masks_to_boxes(const at::Tensor& masks) {
  const char* op = "masks_to_boxes";
  TORCH_CHECK_VALUE(masks.dim() == 3, op, ": masks must have shape [N, H, W], got ", masks.sizes());
  const int64_t count = masks.size(0), height = masks.size(1), width = masks.size(2);
  TORCH_CHECK_VALUE(height <= INT32_MAX && width <= INT32_MAX, op,
                    ": masks must have less than 2^31 rows and columns, got ", masks.sizes());
  const at::Tensor in = masks.contiguous();
  at::Tensor boxes = at::empty({count, 4}, masks.options().dtype(at::kFloat));
  if (height * width == 0) return boxes.zero_();
  dispatch_masks(in, op, [&](auto element) {
    using T = decltype(element);
    dispatch_device(
        op, in,
        [&] { cpu::masks_to_boxes<T>(count, height, width, input<T>(in), output<float>(boxes)); },
        [&](CUstream_st* stream) {
          return cuda::masks_to_boxes<T>(count, height, width, input<T>(in), output<float>(boxes),
                                         stream);
        });
  });
  return boxes;
}

}  // namespace

void bind_boxes(pybind11::module_& m) {
  const auto without_gil = pybind11::call_guard<pybind11::gil_scoped_release>();
  m.def("box_area", &box_area, without_gil);
  m.def("box_area_backward", &box_area_backward, without_gil);
  m.def("box_convert", &box_convert, without_gil);
  m.def("box_convert_backward", &box_convert_backward, without_gil);
  m.def("clip_boxes_to_image", &clip_boxes_to_image, without_gil);
  m.def("clip_boxes_to_image_backward", &clip_boxes_to_image_backward, without_gil);
  m.def("large_boxes", &large_boxes, without_gil);
  m.def("masks_to_boxes", &masks_to_boxes, without_gil);
}

}  // namespace pydet
