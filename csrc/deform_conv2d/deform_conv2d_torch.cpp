// SPDX-License-Identifier: Apache-2.0
#include <ATen/Context.h>
#include <ATen/ops/addmm.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/zeros.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <optional>
#include <tuple>
#include <utility>

#include "common/torch_glue.h"
#include "deform_conv2d/deform_conv2d.h"

namespace pydet {
namespace {

using Pair = std::pair<int64_t, int64_t>;  // (height, width)

// A call's tensors, checked and contiguous, and its sizes.
struct Call {
  const char* op;
  at::Tensor input, offset, weight, mask;  // mask may be undefined
  Pair stride, padding, dilation;
  int64_t groups, offset_groups, out_height, out_width;

  int64_t batch() const { return input.size(0); }
  int64_t taps() const { return weight.size(2) * weight.size(3); }
  int64_t positions() const { return out_height * out_width; }

  // Output positions at a time: the columns take at most 8 MiB on the CPU, where they stay in the
  // cache, and 128 MiB on a GPU, but never less than 64 positions.
  int64_t chunk() const {
    const int64_t bytes = int64_t{input.is_cpu() ? 8 : 128} << 20;
    const int64_t row = input.size(1) * taps() * static_cast<int64_t>(input.element_size());
    return std::min(positions(), std::max<int64_t>(64, bytes / std::max<int64_t>(1, row)));
  }

  template <class T>
  DeformConvParams<T> params(int64_t image, int64_t begin, int64_t count) const {
    const int64_t offsets = offset_groups * taps() * positions();
    return {input.size(1),
            input.size(2),
            input.size(3),
            weight.size(2),
            weight.size(3),
            stride.first,
            stride.second,
            padding.first,
            padding.second,
            dilation.first,
            dilation.second,
            offset_groups,
            out_height,
            out_width,
            begin,
            count,
            pydet::input<T>(input) + image * input.size(1) * input.size(2) * input.size(3),
            pydet::input<T>(offset) + image * 2 * offsets,
            mask.defined() ? pydet::input<T>(mask) + image * offsets : nullptr};
  }

  // The rows of `tensor` [n, ..] that belong to group g, as a matrix.
  at::Tensor group(const at::Tensor& tensor, int64_t g) const {
    const int64_t rows = tensor.size(0) / groups;
    return tensor.narrow(0, g * rows, rows).flatten(1);
  }
};

int64_t out_size(int64_t size, int64_t kernel, int64_t stride, int64_t padding, int64_t dilation) {
  const int64_t reach = size + 2 * padding - dilation * (kernel - 1) - 1;
  return reach < 0 ? 0 : reach / stride + 1;
}

Call check_inputs(const char* op, const at::Tensor& input, const at::Tensor& offset,
                  const at::Tensor& weight, const std::optional<at::Tensor>& mask, Pair stride,
                  Pair padding, Pair dilation) {
  for (const auto& [name, tensor] : {std::pair{"offset", offset}, std::pair{"weight", weight},
                                     std::pair{"mask", mask.value_or(input)}}) {
    check_alike(op, name, tensor, "input", input);
    TORCH_CHECK_VALUE(tensor.dim() == 4 && input.dim() == 4, op, ": ", name,
                      " and input must have 4 dimensions, got ", tensor.sizes(), " and ",
                      input.sizes());
  }
  TORCH_CHECK_VALUE(std::min({stride.first, stride.second, dilation.first, dilation.second}) >= 1 &&
                        std::min(padding.first, padding.second) >= 0,
                    op, ": stride and dilation must be positive and padding not negative");
  TORCH_CHECK_VALUE(input.size(2) * input.size(3) <= INT32_MAX, op,
                    ": input must have maps of less than 2^31 cells, got ", input.sizes());
  const int64_t kernel = weight.size(2) * weight.size(3), channels = input.size(1);
  TORCH_CHECK_VALUE(kernel >= 1 && weight.size(1) >= 1 && channels >= 1 &&
                        channels % weight.size(1) == 0 &&
                        weight.size(0) % (channels / weight.size(1)) == 0,
                    op, ": weight must have shape [O, C / groups, kh, kw], got ", weight.sizes(),
                    " for input ", input.sizes());
  const int64_t offset_groups = offset.size(1) / (2 * kernel);
  const int64_t height =
      out_size(input.size(2), weight.size(2), stride.first, padding.first, dilation.first);
  const int64_t width =
      out_size(input.size(3), weight.size(3), stride.second, padding.second, dilation.second);
  TORCH_CHECK_VALUE(
      offset_groups >= 1 && channels % offset_groups == 0 &&
          offset.sizes() ==
              at::IntArrayRef({input.size(0), 2 * offset_groups * kernel, height, width}),
      op, ": offset must have shape [B, 2 * offset_groups * kh * kw, OH, OW], got ",
      offset.sizes());
  TORCH_CHECK_VALUE(
      !mask.has_value() ||
          mask->sizes() == at::IntArrayRef({input.size(0), offset_groups * kernel, height, width}),
      op, ": mask must have shape [B, offset_groups * kh * kw, OH, OW]");
  return {op,
          input.contiguous(),
          offset.contiguous(),
          weight.contiguous(),
          mask.has_value() ? mask->contiguous() : at::Tensor(),
          stride,
          padding,
          dilation,
          channels / weight.size(1),
          offset_groups,
          height,
          width};
}

// Calls body(image, begin, count, columns) with the columns [C * K, count] of each chunk.
template <class T, class Body>
void for_each_chunk(const Call& call, const Body& body) {
  const int64_t chunk = call.chunk(), rows = call.input.size(1) * call.taps();
  if (chunk == 0) return;
  at::Tensor workspace = at::empty({rows * chunk}, call.input.options());
  for (int64_t image = 0; image < call.batch(); ++image) {
    for (int64_t begin = 0; begin < call.positions(); begin += chunk) {
      const int64_t count = std::min(chunk, call.positions() - begin);
      at::Tensor columns = workspace.narrow(0, 0, rows * count).view({rows, count});
      const auto params = call.params<T>(image, begin, count);
      dispatch_device(
          call.op, call.input, [&] { cpu::deform_im2col<T>(params, output<T>(columns)); },
          [&](CUstream_st* stream) {
            return cuda::deform_im2col<T>(params, output<T>(columns), stream);
          });
      body(image, begin, count, columns);
    }
  }
}

// -> [B, O, OH, OW]
at::Tensor deform_conv2d(const at::Tensor& input, const at::Tensor& offset,
                         const at::Tensor& weight, const std::optional<at::Tensor>& bias,
                         const std::optional<at::Tensor>& mask, Pair stride, Pair padding,
                         Pair dilation) {
  const char* op = "deform_conv2d";
  const Call call = check_inputs(op, input, offset, weight, mask, stride, padding, dilation);
  const int64_t out_channels = weight.size(0);
  if (bias.has_value()) {
    check_alike(op, "bias", *bias, "input", input);
    TORCH_CHECK_VALUE(bias->sizes() == at::IntArrayRef({out_channels}), op,
                      ": bias must have shape [", out_channels, "], got ", bias->sizes());
  }
  at::Tensor out =
      empty_large({call.batch(), out_channels, call.out_height, call.out_width}, input.options());
  dispatch_floating(input.scalar_type(), op, [&](auto element) {
    for_each_chunk<decltype(element)>(
        call, [&](int64_t image, int64_t begin, int64_t count, const at::Tensor& columns) {
          const at::Tensor image_out = out.select(0, image).flatten(1).narrow(1, begin, count);
          for (int64_t g = 0; g < call.groups; ++g) {
            at::Tensor group_out = call.group(image_out, g);
            const at::Tensor w = call.group(call.weight, g), x = call.group(columns, g);
            if (bias.has_value()) {
              at::addmm_out(group_out, call.group(bias->unsqueeze(1), g), w, x);
            } else {
              at::mm_out(group_out, w, x);
            }
          }
        });
  });
  return out;
}

// The gradients of input, offset, weight and mask; those not wanted are empty.
std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> deform_conv2d_backward(
    const at::Tensor& grad_out, const at::Tensor& input, const at::Tensor& offset,
    const at::Tensor& weight, const std::optional<at::Tensor>& mask, Pair stride, Pair padding,
    Pair dilation, bool want_input, bool want_points, bool want_weight) {
  const char* op = "deform_conv2d_backward";
  const Call call = check_inputs(op, input, offset, weight, mask, stride, padding, dilation);
  check_alike(op, "grad_out", grad_out, "input", input);
  TORCH_CHECK_VALUE(grad_out.sizes() == at::IntArrayRef({call.batch(), weight.size(0),
                                                         call.out_height, call.out_width}),
                    op, ": grad_out must have the shape of the result, got ", grad_out.sizes());
  const at::Tensor grad = grad_out.contiguous();
  const at::TensorOptions options = input.options();
  const auto sums = options.dtype(input.scalar_type() == at::kDouble ? at::kDouble : at::kFloat);
  at::Tensor grad_input = want_input ? at::zeros(input.sizes(), sums) : at::empty({0}, options);
  at::Tensor grad_offset =
      want_points ? at::empty(offset.sizes(), options) : at::empty({0}, options);
  at::Tensor grad_mask =
      want_points && mask.has_value() ? at::empty(mask->sizes(), options) : at::empty({0}, options);
  at::Tensor grad_weight = want_weight ? at::zeros(weight.sizes(), sums) : at::empty({0}, options);
  const bool deterministic = at::globalContext().deterministicAlgorithms();
  dispatch_floating(input.scalar_type(), op, [&](auto element) {
    using T = decltype(element);
    for_each_chunk<T>(call, [&](int64_t image, int64_t begin, int64_t count, at::Tensor& columns) {
      const at::Tensor image_grad = grad.select(0, image).flatten(1).narrow(1, begin, count);
      for (int64_t g = 0; g < call.groups; ++g) {
        const at::Tensor group_grad = call.group(image_grad, g);
        at::Tensor group_columns = call.group(columns, g);
        if (want_weight) {
          call.group(grad_weight, g).add_(at::mm(group_grad, group_columns.t()));
        }
        // The columns are not needed any more: their gradient takes their place.
        if (want_input || want_points) {
          at::mm_out(group_columns, call.group(call.weight, g).t(), group_grad);
        }
      }
      const auto params = call.params<T>(image, begin, count);
      const int64_t image_cells = input.size(1) * input.size(2) * input.size(3);
      acc_t<T>* to_input =
          want_input ? output<acc_t<T>>(grad_input) + image * image_cells : nullptr;
      const int64_t points = call.offset_groups * call.taps() * call.positions();
      T* to_offset = want_points ? output<T>(grad_offset) + image * 2 * points : nullptr;
      T* to_mask = grad_mask.numel() > 0 ? output<T>(grad_mask) + image * points : nullptr;
      const T* grad_columns = pydet::input<T>(columns);
      dispatch_device(
          op, input,
          [&] {
            if (want_input) cpu::deform_col2im<T>(params, grad_columns, to_input);
            if (want_points) cpu::deform_col2points<T>(params, grad_columns, to_offset, to_mask);
          },
          [&](CUstream_st* stream) -> const char* {
            const char* error = nullptr;
            if (want_input) {
              error = cuda::deform_col2im<T>(params, grad_columns, deterministic, to_input, stream);
            }
            if (error != nullptr || !want_points) return error;
            return cuda::deform_col2points<T>(params, grad_columns, to_offset, to_mask, stream);
          });
    });
  });
  const at::ScalarType dtype = input.scalar_type();
  return {grad_input.to(dtype), grad_offset, grad_weight.to(dtype), grad_mask};
}

}  // namespace

void bind_deform_conv2d(pybind11::module_& m) {
  using Tensor = at::Tensor;
  using Optional = std::optional<at::Tensor>;
  const pybind11::call_guard<pybind11::gil_scoped_release> unlocked;
  m.def(
      "deform_conv2d",
      [](const Tensor& input, const Tensor& offset, const Tensor& weight, const Optional& bias,
         const Optional& mask, int64_t stride_y, int64_t stride_x, int64_t pad_y, int64_t pad_x,
         int64_t dilation_y, int64_t dilation_x) {
        return deform_conv2d(input, offset, weight, bias, mask, {stride_y, stride_x},
                             {pad_y, pad_x}, {dilation_y, dilation_x});
      },
      unlocked);
  m.def(
      "deform_conv2d_backward",
      [](const Tensor& grad_out, const Tensor& input, const Tensor& offset, const Tensor& weight,
         const Optional& mask, int64_t stride_y, int64_t stride_x, int64_t pad_y, int64_t pad_x,
         int64_t dilation_y, int64_t dilation_x, bool want_input, bool want_points,
         bool want_weight) {
        return deform_conv2d_backward(grad_out, input, offset, weight, mask, {stride_y, stride_x},
                                      {pad_y, pad_x}, {dilation_y, dilation_x}, want_input,
                                      want_points, want_weight);
      },
      unlocked);
}

}  // namespace pydet
