// SPDX-License-Identifier: Apache-2.0
#include <cstdint>
#include <optional>
#include <tuple>
#include <vector>

#include "box_coding/box_coding.h"
#include "common/torch_glue.h"

namespace pydet {
namespace {

// The sizes of a call: arrays are [rows, num_anchors, 4].
struct Sizes {
  int64_t rows, num_anchors;
};

// `boxes` (or deltas) [.., 4] and anchors, whose shape is the end of that of the boxes.
Sizes check_inputs(const char* op, const char* name, const at::Tensor& boxes,
                   const at::Tensor& anchors) {
  TORCH_CHECK_VALUE(boxes.dim() >= 1 && boxes.size(-1) == 4, op, ": ", name,
                    " must have shape [.., 4], got ", boxes.sizes());
  check_alike(op, "anchors", anchors, name, boxes);
  const int64_t leading = boxes.dim() - anchors.dim();
  TORCH_CHECK_VALUE(
      anchors.dim() >= 1 && leading >= 0 && boxes.sizes().slice(leading) == anchors.sizes(), op,
      ": anchors must have the last dimensions of ", name, " ", boxes.sizes(), ", got ",
      anchors.sizes());
  Sizes sizes{1, 1};
  for (int64_t size : boxes.sizes().slice(0, leading)) sizes.rows *= size;
  for (int64_t size : anchors.sizes().slice(0, anchors.dim() - 1)) sizes.num_anchors *= size;
  return sizes;
}

BoxCodingWeights check_weights(const char* op, const std::vector<double>& weights) {
  TORCH_CHECK_VALUE(weights.size() == 4, op, ": weights must be four numbers, got ",
                    weights.size());
  return {weights[0], weights[1], weights[2], weights[3]};
}

// boxes [.., 4] and anchors [A, 4] -> deltas [.., 4]
at::Tensor encode_boxes(const at::Tensor& boxes, const at::Tensor& anchors,
                        const std::vector<double>& weights) {
  const char* op = "encode_boxes";
  const Sizes s = check_inputs(op, "boxes", boxes, anchors);
  const BoxCodingWeights w = check_weights(op, weights);
  const at::Tensor b = boxes.contiguous(), a = anchors.contiguous();
  at::Tensor deltas = empty_large(b.sizes(), b.options());
  dispatch_floating(boxes.scalar_type(), op, [&](auto element) {
    using T = decltype(element);
    dispatch_device(
        op, boxes,
        [&] {
          cpu::encode_boxes<T>(s.rows, s.num_anchors, input<T>(b), input<T>(a), w,
                               output<T>(deltas));
        },
        [&](CUstream_st* stream) {
          return cuda::encode_boxes<T>(s.rows, s.num_anchors, input<T>(b), input<T>(a), w,
                                       output<T>(deltas), stream);
        });
  });
  return deltas;
}

// grad_deltas [.., 4] -> gradients of boxes and anchors
std::tuple<at::Tensor, at::Tensor> encode_boxes_backward(const at::Tensor& grad_deltas,
                                                         const at::Tensor& boxes,
                                                         const at::Tensor& anchors,
                                                         const std::vector<double>& weights) {
  const char* op = "encode_boxes_backward";
  const Sizes s = check_inputs(op, "boxes", boxes, anchors);
  const BoxCodingWeights w = check_weights(op, weights);
  check_alike(op, "grad_deltas", grad_deltas, "boxes", boxes);
  TORCH_CHECK_VALUE(grad_deltas.sizes() == boxes.sizes(), op,
                    ": grad_deltas must have the shape of boxes, got ", grad_deltas.sizes());
  const at::Tensor g = grad_deltas.contiguous(), b = boxes.contiguous(), a = anchors.contiguous();
  at::Tensor grad_b = empty_large(b.sizes(), b.options()),
             grad_a = at::empty(a.sizes(), a.options());
  dispatch_floating(boxes.scalar_type(), op, [&](auto element) {
    using T = decltype(element);
    dispatch_device(
        op, boxes,
        [&] {
          cpu::encode_boxes_backward<T>(s.rows, s.num_anchors, input<T>(g), input<T>(b),
                                        input<T>(a), w, output<T>(grad_b), output<T>(grad_a));
        },
        [&](CUstream_st* stream) {
          return cuda::encode_boxes_backward<T>(s.rows, s.num_anchors, input<T>(g), input<T>(b),
                                                input<T>(a), w, output<T>(grad_b),
                                                output<T>(grad_a), stream);
        });
  });
  return {grad_b, grad_a};
}

// Refuses v and v_anchors that are not as the tensors that they move, and a gradient that is not as
// the result.
void check_second(const char* op, const at::Tensor& v, const at::Tensor& v_anchors,
                  const at::Tensor& grad, const at::Tensor& moved, const at::Tensor& anchors) {
  check_alike(op, "v", v, "anchors", anchors);
  check_alike(op, "v_anchors", v_anchors, "anchors", anchors);
  check_alike(op, "the gradient", grad, "anchors", anchors);
  TORCH_CHECK_VALUE(v.sizes() == moved.sizes() && grad.sizes() == moved.sizes() &&
                        v_anchors.sizes() == anchors.sizes(),
                    op, ": v, v_anchors and the gradient must have the shapes ", moved.sizes(),
                    ", ", anchors.sizes(), " and ", moved.sizes(), ", got ", v.sizes(), ", ",
                    v_anchors.sizes(), " and ", grad.sizes());
}

// v and v_anchors, the gradients of what encode_boxes_backward gave -> gradients of grad_deltas,
// boxes and anchors
std::tuple<at::Tensor, at::Tensor, at::Tensor> encode_boxes_double_backward(
    const at::Tensor& v, const at::Tensor& v_anchors, const at::Tensor& grad_deltas,
    const at::Tensor& boxes, const at::Tensor& anchors, const std::vector<double>& weights) {
  const char* op = "encode_boxes_double_backward";
  const Sizes s = check_inputs(op, "boxes", boxes, anchors);
  const BoxCodingWeights w = check_weights(op, weights);
  check_second(op, v, v_anchors, grad_deltas, boxes, anchors);
  const at::Tensor t = v.contiguous(), t_a = v_anchors.contiguous(), g = grad_deltas.contiguous(),
                   b = boxes.contiguous(), a = anchors.contiguous();
  at::Tensor grad_g = empty_large(b.sizes(), b.options()),
             grad_b = empty_large(b.sizes(), b.options()),
             grad_a = at::empty(a.sizes(), a.options());
  dispatch_floating(boxes.scalar_type(), op, [&](auto element) {
    using T = decltype(element);
    const CodingSecondOrder<T> second{input<T>(t), input<T>(t_a), output<T>(grad_g)};
    dispatch_device(
        op, boxes,
        [&] {
          cpu::encode_boxes_double_backward<T>(s.rows, s.num_anchors, second, input<T>(g),
                                               input<T>(b), input<T>(a), w, output<T>(grad_b),
                                               output<T>(grad_a));
        },
        [&](CUstream_st* stream) {
          return cuda::encode_boxes_double_backward<T>(
              s.rows, s.num_anchors, second, input<T>(g), input<T>(b), input<T>(a), w,
              output<T>(grad_b), output<T>(grad_a), stream);
        });
  });
  return {grad_g, grad_b, grad_a};
}

using ImageSize = std::optional<std::vector<int64_t>>;
using ImageSizes = std::optional<at::Tensor>;

DecodeParams check_params(const char* op, const at::Tensor& deltas,
                          const std::vector<double>& weights, double scale_clamp,
                          const ImageSize& image_size, const ImageSizes& image_sizes) {
  DecodeParams params{check_weights(op, weights), scale_clamp, false, 0, 0, 1};
  if (image_size.has_value()) {
    TORCH_CHECK_VALUE(image_size->size() == 2, op, ": image_size must be (height, width), got ",
                      image_size->size(), " numbers");
    params.height = static_cast<double>((*image_size)[0]);
    params.width = static_cast<double>((*image_size)[1]);
    params.clip = true;
  }
  if (image_sizes.has_value()) {
    const bool wide = deltas.scalar_type() == at::kDouble;
    TORCH_CHECK_TYPE(image_sizes->scalar_type() == (wide ? at::kDouble : at::kFloat), op,
                     ": image_sizes must have the dtype of the arithmetic, got ",
                     image_sizes->scalar_type());
    TORCH_CHECK_VALUE(deltas.dim() == 3 && image_sizes->dim() == 2 &&
                          image_sizes->size(0) == deltas.size(0) && image_sizes->size(1) == 2,
                      op, ": image_sizes must have shape [B, 2] for deltas [B, A, 4], got ",
                      image_sizes->sizes(), " for ", deltas.sizes());
    TORCH_CHECK_VALUE(image_sizes->device() == deltas.device(), op,
                      ": image_sizes must be on the device of deltas (", deltas.device(), "), got ",
                      image_sizes->device());
    params.boxes_an_image = deltas.size(1);
    params.clip = true;
  }
  return params;
}

// deltas [.., 4] and anchors [A, 4] -> boxes [.., 4]
at::Tensor decode_boxes(const at::Tensor& deltas, const at::Tensor& anchors,
                        const std::vector<double>& weights, double scale_clamp,
                        const ImageSize& image_size, const ImageSizes& image_sizes) {
  const char* op = "decode_boxes";
  const Sizes s = check_inputs(op, "deltas", deltas, anchors);
  const DecodeParams params =
      check_params(op, deltas, weights, scale_clamp, image_size, image_sizes);
  const at::Tensor d = deltas.contiguous(), a = anchors.contiguous();
  const at::Tensor sizes = image_sizes.has_value() ? image_sizes->contiguous() : at::Tensor();
  at::Tensor boxes = empty_large(d.sizes(), d.options());
  dispatch_floating(deltas.scalar_type(), op, [&](auto element) {
    using T = decltype(element);
    const acc_t<T>* sizes_data = sizes.defined() ? input<acc_t<T>>(sizes) : nullptr;
    dispatch_device(
        op, deltas,
        [&] {
          cpu::decode_boxes<T>(s.rows, s.num_anchors, input<T>(d), input<T>(a), sizes_data, params,
                               output<T>(boxes));
        },
        [&](CUstream_st* stream) {
          return cuda::decode_boxes<T>(s.rows, s.num_anchors, input<T>(d), input<T>(a), sizes_data,
                                       params, output<T>(boxes), stream);
        });
  });
  return boxes;
}

// grad_boxes [.., 4] -> gradients of deltas and anchors
std::tuple<at::Tensor, at::Tensor> decode_boxes_backward(
    const at::Tensor& grad_boxes, const at::Tensor& deltas, const at::Tensor& anchors,
    const std::vector<double>& weights, double scale_clamp, const ImageSize& image_size,
    const ImageSizes& image_sizes) {
  const char* op = "decode_boxes_backward";
  const Sizes s = check_inputs(op, "deltas", deltas, anchors);
  const DecodeParams params =
      check_params(op, deltas, weights, scale_clamp, image_size, image_sizes);
  check_alike(op, "grad_boxes", grad_boxes, "deltas", deltas);
  TORCH_CHECK_VALUE(grad_boxes.sizes() == deltas.sizes(), op,
                    ": grad_boxes must have the shape of deltas, got ", grad_boxes.sizes());
  const at::Tensor g = grad_boxes.contiguous(), d = deltas.contiguous(), a = anchors.contiguous();
  const at::Tensor sizes = image_sizes.has_value() ? image_sizes->contiguous() : at::Tensor();
  at::Tensor grad_d = empty_large(d.sizes(), d.options()),
             grad_a = at::empty(a.sizes(), a.options());
  dispatch_floating(deltas.scalar_type(), op, [&](auto element) {
    using T = decltype(element);
    const acc_t<T>* sizes_data = sizes.defined() ? input<acc_t<T>>(sizes) : nullptr;
    dispatch_device(
        op, deltas,
        [&] {
          cpu::decode_boxes_backward<T>(s.rows, s.num_anchors, input<T>(g), input<T>(d),
                                        input<T>(a), sizes_data, params, output<T>(grad_d),
                                        output<T>(grad_a));
        },
        [&](CUstream_st* stream) {
          return cuda::decode_boxes_backward<T>(s.rows, s.num_anchors, input<T>(g), input<T>(d),
                                                input<T>(a), sizes_data, params, output<T>(grad_d),
                                                output<T>(grad_a), stream);
        });
  });
  return {grad_d, grad_a};
}

// v and v_anchors, the gradients of what decode_boxes_backward gave -> gradients of grad_boxes,
// deltas and anchors
std::tuple<at::Tensor, at::Tensor, at::Tensor> decode_boxes_double_backward(
    const at::Tensor& v, const at::Tensor& v_anchors, const at::Tensor& grad_boxes,
    const at::Tensor& deltas, const at::Tensor& anchors, const std::vector<double>& weights,
    double scale_clamp, const ImageSize& image_size, const ImageSizes& image_sizes) {
  const char* op = "decode_boxes_double_backward";
  const Sizes s = check_inputs(op, "deltas", deltas, anchors);
  const DecodeParams params =
      check_params(op, deltas, weights, scale_clamp, image_size, image_sizes);
  check_second(op, v, v_anchors, grad_boxes, deltas, anchors);
  const at::Tensor t = v.contiguous(), t_a = v_anchors.contiguous(), g = grad_boxes.contiguous(),
                   d = deltas.contiguous(), a = anchors.contiguous();
  const at::Tensor sizes = image_sizes.has_value() ? image_sizes->contiguous() : at::Tensor();
  at::Tensor grad_g = empty_large(d.sizes(), d.options()),
             grad_d = empty_large(d.sizes(), d.options()),
             grad_a = at::empty(a.sizes(), a.options());
  dispatch_floating(deltas.scalar_type(), op, [&](auto element) {
    using T = decltype(element);
    const acc_t<T>* sizes_data = sizes.defined() ? input<acc_t<T>>(sizes) : nullptr;
    const CodingSecondOrder<T> second{input<T>(t), input<T>(t_a), output<T>(grad_g)};
    dispatch_device(
        op, deltas,
        [&] {
          cpu::decode_boxes_double_backward<T>(s.rows, s.num_anchors, second, input<T>(g),
                                               input<T>(d), input<T>(a), sizes_data, params,
                                               output<T>(grad_d), output<T>(grad_a));
        },
        [&](CUstream_st* stream) {
          return cuda::decode_boxes_double_backward<T>(
              s.rows, s.num_anchors, second, input<T>(g), input<T>(d), input<T>(a), sizes_data,
              params, output<T>(grad_d), output<T>(grad_a), stream);
        });
  });
  return {grad_g, grad_d, grad_a};
}

}  // namespace

void bind_box_coding(pybind11::module_& m) {
  using guard = pybind11::call_guard<pybind11::gil_scoped_release>;
  m.def("encode_boxes", &encode_boxes, guard());
  m.def("encode_boxes_backward", &encode_boxes_backward, guard());
  m.def("encode_boxes_double_backward", &encode_boxes_double_backward, guard());
  m.def("decode_boxes", &decode_boxes, guard());
  m.def("decode_boxes_backward", &decode_boxes_backward, guard());
  m.def("decode_boxes_double_backward", &decode_boxes_double_backward, guard());
}

}  // namespace pydet
