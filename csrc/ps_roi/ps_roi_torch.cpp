// SPDX-License-Identifier: Apache-2.0
#include <ATen/Context.h>

#include "common/torch_glue.h"
#include "ps_roi/ps_roi.h"

namespace pydet {
namespace {

struct Settings {
  double spatial_scale;
  int64_t pooled_height, pooled_width, sampling_ratio;
  bool align;
};

// The parameters of a call on maps of `sizes` [B, C, H, W].
template <class A>
PsRoiParams<A> make_params(at::IntArrayRef sizes, const at::Tensor& rois, bool channels_last,
                           const Settings& s) {
  return {sizes[0],
          sizes[1],
          sizes[2],
          sizes[3],
          rois.size(0),
          s.pooled_height,
          s.pooled_width,
          s.sampling_ratio,
          s.align,
          channels_last,
          static_cast<A>(s.spatial_scale),
          input<A>(rois)};
}

void check_sizes(const char* op, at::IntArrayRef sizes, const Settings& s) {
  TORCH_CHECK_VALUE(sizes[0] >= 0 && sizes[1] >= 0 && sizes[2] >= 0 && sizes[3] >= 0 &&
                        sizes[2] <= int64_t{1} << 30 && sizes[3] <= int64_t{1} << 30,
                    op, ": input must have at most 2^30 rows and columns, got ", sizes);
  TORCH_CHECK_VALUE(sizes[1] % (s.pooled_height * s.pooled_width) == 0, op,
                    ": input must have a multiple of ", s.pooled_height, " x ", s.pooled_width,
                    " channels, got ", sizes[1]);
}

// input [B, C, H, W], rois [R, 5] -> [R, C / (PH * PW), PH, PW]
at::Tensor ps_roi(const at::Tensor& input_, const at::Tensor& rois_, double spatial_scale,
                  int64_t pooled_height, int64_t pooled_width, int64_t sampling_ratio, bool align) {
  const char* op = "ps_roi";
  const Settings s{spatial_scale, pooled_height, pooled_width, sampling_ratio, align};
  check_roi_inputs(op, input_, rois_, pooled_height, pooled_width);
  check_sizes(op, input_.sizes(), s);
  const bool channels_last = prefers_channels_last(input_);
  const at::Tensor maps = laid_out(input_, channels_last), rois = rois_.contiguous();
  at::Tensor out = empty_map(
      {rois.size(0), input_.size(1) / (pooled_height * pooled_width), pooled_height, pooled_width},
      channels_last, input_.options());
  dispatch_floating(input_.scalar_type(), op, [&](auto element) {
    using T = decltype(element);
    const auto params = make_params<acc_t<T>>(input_.sizes(), rois, channels_last, s);
    dispatch_device(
        op, input_, [&] { cpu::ps_roi<T>(params, input<T>(maps), output<T>(out)); },
        [&](CUstream_st* stream) {
          return cuda::ps_roi<T>(params, input<T>(maps), output<T>(out), stream);
        });
  });
  return out;
}

// grad_out [R, C / (PH * PW), PH, PW] -> the gradient of maps [batch, C, height, width]
at::Tensor ps_roi_backward(const at::Tensor& grad_out, const at::Tensor& rois_, int64_t batch,
                           int64_t height, int64_t width, bool channels_last, double spatial_scale,
                           int64_t pooled_height, int64_t pooled_width, int64_t sampling_ratio,
                           bool align) {
  const char* op = "ps_roi_backward";
  const Settings s{spatial_scale, pooled_height, pooled_width, sampling_ratio, align};
  check_roi_inputs(op, grad_out, rois_, pooled_height, pooled_width);
  TORCH_CHECK_VALUE(grad_out.size(0) == rois_.size(0) && grad_out.size(2) == pooled_height &&
                        grad_out.size(3) == pooled_width,
                    op, ": grad_out must have the shape of the result, got ", grad_out.sizes());
  const int64_t sizes[] = {batch, grad_out.size(1) * pooled_height * pooled_width, height, width};
  check_sizes(op, sizes, s);
  const at::Tensor grad = laid_out(grad_out, channels_last), rois = rois_.contiguous();
  at::Tensor grad_input =
      empty_map(sizes, channels_last, grad_out.options().dtype(rois.scalar_type()));
  dispatch_floating(grad_out.scalar_type(), op, [&](auto element) {
    using T = decltype(element);
    const auto params = make_params<acc_t<T>>(sizes, rois, channels_last, s);
    dispatch_device(
        op, grad_out,
        [&] { cpu::ps_roi_backward<T>(params, input<T>(grad), output<acc_t<T>>(grad_input)); },
        [&](CUstream_st* stream) {
          return cuda::ps_roi_backward<T>(params, input<T>(grad),
                                          at::globalContext().deterministicAlgorithms(),
                                          output<acc_t<T>>(grad_input), stream);
        });
  });
  return grad_input.to(grad_out.scalar_type());
}

}  // namespace

void bind_ps_roi(pybind11::module_& m) {
  m.def("ps_roi", &ps_roi, pybind11::call_guard<pybind11::gil_scoped_release>());
  m.def("ps_roi_backward", &ps_roi_backward, pybind11::call_guard<pybind11::gil_scoped_release>());
}

}  // namespace pydet
