// SPDX-License-Identifier: Apache-2.0
#include <ATen/Context.h>

#include <array>

#include "common/torch_glue.h"
#include "roi_pool/roi_pool.h"

namespace pydet {
namespace {

// A call's tensors, checked and in one layout.
struct Call {
  at::Tensor input, rois;
  bool channels_last;
  double spatial_scale;
  int64_t pooled_height, pooled_width;

  template <class A>
  RoiPoolParams<A> params() const {
    return {input.size(0),        input.size(1), input.size(2),
            input.size(3),        rois.size(0),  pooled_height,
            pooled_width,         channels_last, static_cast<A>(spatial_scale),
            pydet::input<A>(rois)};
  }

  std::array<int64_t, 4> out_shape() const {
    return {rois.size(0), input.size(1), pooled_height, pooled_width};
  }
  at::Tensor empty_out() const { return empty_map(out_shape(), channels_last, input.options()); }
};

Call check_inputs(const char* op, const at::Tensor& input, const at::Tensor& rois,
                  double spatial_scale, int64_t pooled_height, int64_t pooled_width) {
  check_roi_inputs(op, input, rois, pooled_height, pooled_width);
  TORCH_CHECK_VALUE(input.size(2) * input.size(3) <= INT32_MAX, op,
                    ": input must have maps of less than 2^31 cells, got ", input.sizes());
  const bool channels_last = prefers_channels_last(input);
  return {laid_out(input, channels_last),
          rois.contiguous(),
          channels_last,
          spatial_scale,
          pooled_height,
          pooled_width};
}

// input [B, C, H, W], rois [R, 5] -> [R, C, PH, PW]
at::Tensor roi_pool(const at::Tensor& input_, const at::Tensor& rois, double spatial_scale,
                    int64_t pooled_height, int64_t pooled_width) {
  const char* op = "roi_pool";
  const Call call = check_inputs(op, input_, rois, spatial_scale, pooled_height, pooled_width);
  at::Tensor out = call.empty_out();
  dispatch_floating(input_.scalar_type(), op, [&](auto element) {
    using T = decltype(element);
    const auto params = call.params<acc_t<T>>();
    const T* map = input<T>(call.input);
    dispatch_device(
        op, input_, [&] { cpu::roi_pool<T>(params, map, output<T>(out)); },
        [&](CUstream_st* stream) {
          return cuda::roi_pool<T>(params, map, output<T>(out), stream);
        });
  });
  return out;
}

// grad_out [R, C, PH, PW] -> the gradient of input
at::Tensor roi_pool_backward(const at::Tensor& grad_out, const at::Tensor& input_,
                             const at::Tensor& rois, double spatial_scale, int64_t pooled_height,
                             int64_t pooled_width) {
  const char* op = "roi_pool_backward";
  const Call call = check_inputs(op, input_, rois, spatial_scale, pooled_height, pooled_width);
  check_alike(op, "grad_out", grad_out, "input", input_);
  TORCH_CHECK_VALUE(grad_out.sizes() == at::IntArrayRef(call.out_shape()), op,
                    ": grad_out must have the shape of the result, got ", grad_out.sizes());
  const at::Tensor grad = laid_out(grad_out, call.channels_last);
  at::Tensor grad_input =
      empty_map(input_.sizes(), call.channels_last, input_.options().dtype(rois.scalar_type()));
  at::Tensor workspace;
  if (input_.is_cuda() && at::globalContext().deterministicAlgorithms()) {
    workspace = at::empty(grad.sizes(), grad.options().dtype(at::kInt));
  }
  dispatch_floating(input_.scalar_type(), op, [&](auto element) {
    using T = decltype(element);
    const auto params = call.params<acc_t<T>>();
    const T* map = input<T>(call.input);
    dispatch_device(
        op, input_,
        [&] {
          cpu::roi_pool_backward<T>(params, map, input<T>(grad), output<acc_t<T>>(grad_input));
        },
        [&](CUstream_st* stream) {
          return cuda::roi_pool_backward<T>(
              params, map, input<T>(grad),
              workspace.defined() ? output<int32_t>(workspace) : nullptr,
              output<acc_t<T>>(grad_input), stream);
        });
  });
  return grad_input.to(input_.scalar_type());
}

// values as input -> [R, C, PH, PW], each the value where input is the largest of its bin
at::Tensor roi_pool_gather(const at::Tensor& values, const at::Tensor& input_,
                           const at::Tensor& rois, double spatial_scale, int64_t pooled_height,
                           int64_t pooled_width) {
  const char* op = "roi_pool_gather";
  const Call call = check_inputs(op, input_, rois, spatial_scale, pooled_height, pooled_width);
  check_alike(op, "values", values, "input", input_);
  TORCH_CHECK_VALUE(values.sizes() == input_.sizes(), op, ": values must have the shape of input ",
                    input_.sizes(), ", got ", values.sizes());
  const at::Tensor from = laid_out(values, call.channels_last);
  at::Tensor out = call.empty_out();
  dispatch_floating(input_.scalar_type(), op, [&](auto element) {
    using T = decltype(element);
    const auto params = call.params<acc_t<T>>();
    const T* map = input<T>(call.input);
    dispatch_device(
        op, input_, [&] { cpu::roi_pool_gather<T>(params, map, input<T>(from), output<T>(out)); },
        [&](CUstream_st* stream) {
          return cuda::roi_pool_gather<T>(params, map, input<T>(from), output<T>(out), stream);
        });
  });
  return out;
}

}  // namespace

void bind_roi_pool(pybind11::module_& m) {
  m.def("roi_pool", &roi_pool, pybind11::call_guard<pybind11::gil_scoped_release>());
  m.def("roi_pool_backward", &roi_pool_backward,
        pybind11::call_guard<pybind11::gil_scoped_release>());
  m.def("roi_pool_gather", &roi_pool_gather, pybind11::call_guard<pybind11::gil_scoped_release>());
}

}  // namespace pydet
