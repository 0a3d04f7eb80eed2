// SPDX-License-Identifier: Apache-2.0
#include <ATen/Context.h>
#include <pybind11/stl.h>

#include <cmath>
#include <optional>
#include <tuple>
#include <utility>
#include <vector>

#include "common/torch_glue.h"
#include "roi_align/roi_align.h"

namespace pydet {
namespace {

using Tensors = std::vector<at::Tensor>;

// What all functions here are told beside tensors.
struct Settings {
  std::vector<double> spatial_scales;
  int64_t pooled_height, pooled_width, sampling_ratio;
  bool aligned;
  double canonical_scale, canonical_level;
};

// How maps lie, and results and their gradients.
struct Layout {
  bool maps_last, out_last;

  // Whether kernels take results as planes though maps are not: those of a CPU can. For the others
  // results lie as the maps do.
  bool planar_out(const at::Tensor& tensor) const {
    return maps_last && !out_last && runs_on_cpu(tensor);
  }
};

// The least side, in units of the canonical scale, of the boxes of level k: equation 1 of the paper
// on feature pyramids, floor(k0 + log2(side) + 1e-6) >= k, as it rounds when it is evaluated in A.
template <class A>
A least_side(double k, double k0) {
  const auto reaches = [&](A side) {
    const A level = static_cast<A>(k0) + std::log2(side);
    return std::floor(level + static_cast<A>(1e-6)) >= static_cast<A>(k);
  };
  A below = static_cast<A>(0.99 * std::exp2(k - k0)), least = below / A(0.99) * A(1.01);
  while (true) {
    const A middle = below + (least - below) / 2;
    if (middle <= below || middle >= least) return least;
    (reaches(middle) ? least : below) = middle;
  }
}

// Sizes [B, C, H, W] of each feature map.
std::vector<int64_t> sizes_of(const char* op, const Tensors& features) {
  TORCH_CHECK_VALUE(!features.empty(), op, ": features must have at least one map, got none");
  std::vector<int64_t> sizes;
  for (const at::Tensor& map : features) {
    TORCH_CHECK_VALUE(map.dim() == 4, op, ": features must have shape [B, C, H, W], got ",
                      map.sizes());
    check_alike(op, "each feature map", map, "the first", features[0]);
    sizes.insert(sizes.end(), map.sizes().begin(), map.sizes().end());
  }
  return sizes;
}

void check_sizes(const char* op, const std::vector<int64_t>& sizes, const at::Tensor& boxes,
                 const Settings& s) {
  const size_t levels = s.spatial_scales.size();
  TORCH_CHECK_VALUE(levels >= 1 && levels <= kMaxRoiLevels && sizes.size() == 4 * levels, op,
                    ": spatial_scales must have one number for each of 1 to ", kMaxRoiLevels,
                    " feature maps, got ", levels);
  for (size_t i = 0; i < sizes.size(); ++i) {
    const bool along_the_map = i % 4 >= 2;
    TORCH_CHECK_VALUE(
        sizes[i] >= 0 && (along_the_map ? sizes[i] <= int64_t{1} << 30 : sizes[i] == sizes[i % 4]),
        op,
        ": features must be [B, C, H, W] with the same B and C and at most 2^30 "
        "rows and columns, got ",
        sizes);
  }
  TORCH_CHECK_VALUE(boxes.dim() == 2 && boxes.size(1) == 5, op,
                    ": boxes must have shape [R, 5], got ", boxes.sizes());
  TORCH_CHECK_VALUE(s.pooled_height >= 1 && s.pooled_width >= 1, op,
                    ": output_size must be positive, got ", s.pooled_height, " x ", s.pooled_width);
}

template <class A>
RoiAlignParams<A> make_params(const std::vector<int64_t>& sizes, const at::Tensor& rois,
                              const Layout& layout, const Settings& s) {
  RoiAlignParams<A> params{};
  params.batch = sizes[0];
  params.channels = sizes[1];
  params.num_rois = rois.size(0);
  params.pooled_height = s.pooled_height;
  params.pooled_width = s.pooled_width;
  params.sampling_ratio = s.sampling_ratio;
  params.aligned = s.aligned;
  params.channels_last = layout.maps_last;
  params.planar_out = layout.planar_out(rois);
  params.rois = input<A>(rois);
  params.num_levels = static_cast<int>(s.spatial_scales.size());
  params.canonical_scale = static_cast<A>(s.canonical_scale);
  for (int i = 0; i < params.num_levels; ++i) {
    const double scale = s.spatial_scales[i], k = std::round(-std::log2(scale));
    params.levels[i] = {sizes[4 * i + 2], sizes[4 * i + 3], static_cast<A>(scale),
                        i == 0 ? A(0) : least_side<A>(k, s.canonical_level)};
  }
  return params;
}

// rois in the dtype that the kernels for T compute in.
template <class T>
at::Tensor rois_for(const at::Tensor& boxes) {
  return boxes.to(std::is_same_v<T, double> ? at::kDouble : at::kFloat).contiguous();
}

// The directions in which weights are replaced by their derivatives; none by default.
struct Tangents {
  at::Tensor along;  // [R, 4] like rois_for, or undefined
  bool y = false, x = false;
  template <class A>
  void put(RoiAlignParams<A>& params) const {
    params.tangents = along.defined() ? input<A>(along) : nullptr;
    params.tangent_y = y;
    params.tangent_x = x;
  }
};

template <class T>
RoiLevelData<const T> inputs(const Tensors& features) {
  RoiLevelData<const T> data{};
  for (size_t i = 0; i < features.size(); ++i) data.data[i] = input<T>(features[i]);
  return data;
}

void check_grad(const char* op, const at::Tensor& grad, const at::Tensor& boxes,
                const std::vector<int64_t>& sizes, const Settings& s) {
  const std::vector<int64_t> wanted{boxes.size(0), sizes[1], s.pooled_height, s.pooled_width};
  TORCH_CHECK_VALUE(grad.sizes() == at::IntArrayRef(wanted), op, ": grad must have shape ", wanted,
                    ", got ", grad.sizes());
}

void check_device(const char* op, const at::Tensor& boxes, const at::Tensor& other) {
  TORCH_CHECK_VALUE(boxes.device() == other.device(), op, ": boxes must be on the device of ",
                    "the feature maps (", other.device(), "), got ", boxes.device());
}

// features L x [B, C, Hl, Wl], boxes [R, 5] -> [R, C, h, w], laid out as the maps unless it is said
at::Tensor align(const char* op, const Tensors& features, const at::Tensor& boxes,
                 const Settings& s, std::optional<bool> channels_last = {},
                 const Tangents& tangents = {}) {
  const std::vector<int64_t> sizes = sizes_of(op, features);
  check_sizes(op, sizes, boxes, s);
  check_device(op, boxes, features[0]);
  const bool maps_last = prefers_channels_last(features[0]);
  const Layout layout{maps_last, channels_last.value_or(maps_last)};
  Tensors maps;
  for (const at::Tensor& map : features) maps.push_back(laid_out(map, maps_last));
  at::Tensor out = empty_map({boxes.size(0), sizes[1], s.pooled_height, s.pooled_width},
                             maps_last && !layout.planar_out(boxes), features[0].options());
  dispatch_floating(out.scalar_type(), op, [&](auto element) {
    using T = decltype(element);
    const at::Tensor rois = rois_for<T>(boxes);
    auto params = make_params<acc_t<T>>(sizes, rois, layout, s);
    tangents.put(params);
    dispatch_device(
        op, out, [&] { cpu::roi_align<T>(params, inputs<T>(maps), output<T>(out)); },
        [&](CUstream_st* stream) {
          return cuda::roi_align<T>(params, inputs<T>(maps), output<T>(out), stream);
        });
  });
  return laid_out(out, layout.out_last);
}

// grad [R, C, h, w] -> the gradients of feature maps of the given sizes
Tensors align_backward(const char* op, const at::Tensor& grad, const at::Tensor& boxes,
                       const std::vector<int64_t>& sizes, bool maps_last, const Settings& s,
                       const Tangents& tangents = {}) {
  check_sizes(op, sizes, boxes, s);
  check_grad(op, grad, boxes, sizes, s);
  check_device(op, boxes, grad);
  const Layout layout{maps_last, maps_last && !grad.is_contiguous()};
  const at::Tensor grad_out = laid_out(grad, maps_last && !layout.planar_out(grad));
  Tensors grads;
  dispatch_floating(grad.scalar_type(), op, [&](auto element) {
    using T = decltype(element);
    const at::Tensor rois = rois_for<T>(boxes);
    auto params = make_params<acc_t<T>>(sizes, rois, layout, s);
    tangents.put(params);
    RoiLevelData<acc_t<T>> data{};
    for (size_t i = 0; i < sizes.size() / 4; ++i) {
      const int64_t* size = sizes.data() + 4 * i;
      grads.push_back(empty_map({size[0], size[1], size[2], size[3]}, maps_last,
                                grad.options().dtype(rois.scalar_type())));
      data.data[i] = output<acc_t<T>>(grads.back());
    }
    dispatch_device(
        op, grad, [&] { cpu::roi_align_backward<T>(params, input<T>(grad_out), data); },
        [&](CUstream_st* stream) {
          return cuda::roi_align_backward<T>(params, input<T>(grad_out), data,
                                             at::globalContext().deterministicAlgorithms(), stream);
        });
  });
  for (at::Tensor& map : grads) map = map.to(grad.scalar_type());
  return grads;
}

// grad [R, C, h, w] -> the gradient of boxes [R, 5]
at::Tensor align_boxes_backward(const char* op, const at::Tensor& grad, const Tensors& features,
                                const at::Tensor& boxes, const Settings& s,
                                const Tangents& tangents = {}) {
  const std::vector<int64_t> sizes = sizes_of(op, features);
  check_sizes(op, sizes, boxes, s);
  check_grad(op, grad, boxes, sizes, s);
  check_alike(op, "grad", grad, "the feature maps", features[0]);
  check_device(op, boxes, grad);
  const bool maps_last = prefers_channels_last(features[0]);
  const Layout layout{maps_last, maps_last && !grad.is_contiguous()};
  Tensors maps;
  for (const at::Tensor& map : features) maps.push_back(laid_out(map, maps_last));
  const at::Tensor grad_out = laid_out(grad, maps_last && !layout.planar_out(grad));
  at::Tensor grad_rois;
  dispatch_floating(grad.scalar_type(), op, [&](auto element) {
    using T = decltype(element);
    const at::Tensor rois = rois_for<T>(boxes);
    auto params = make_params<acc_t<T>>(sizes, rois, layout, s);
    tangents.put(params);
    grad_rois = at::empty(rois.sizes(), rois.options());
    dispatch_device(
        op, grad,
        [&] {
          cpu::roi_align_boxes_backward<T>(params, input<T>(grad_out), inputs<T>(maps),
                                           output<acc_t<T>>(grad_rois));
        },
        [&](CUstream_st* stream) {
          return cuda::roi_align_boxes_backward<T>(params, input<T>(grad_out), inputs<T>(maps),
                                                   output<acc_t<T>>(grad_rois), stream);
        });
  });
  return grad_rois.to(boxes.scalar_type());
}

// How roi_align_boxes_backward changes along `tangent` [R, 5] of the boxes: the gradients of grad,
// the feature maps and the boxes. Each is one of the linear maps above with an axis' weights
// replaced by their derivative; the weights have no second derivative along one axis.
std::tuple<at::Tensor, Tensors, at::Tensor> align_second(const at::Tensor& tangent,
                                                         const at::Tensor& grad,
                                                         const Tensors& features,
                                                         const at::Tensor& boxes,
                                                         const Settings& s) {
  const char* op = "roi_align_boxes_backward_backward";
  TORCH_CHECK_VALUE(tangent.sizes() == boxes.sizes() && tangent.device() == boxes.device() &&
                        boxes.dim() == 2 && boxes.size(1) == 5,
                    op, ": tangent must be like boxes [R, 5], got ", tangent.sizes());
  const std::vector<int64_t> sizes = sizes_of(op, features);
  const auto dtype = grad.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  const at::Tensor along = tangent.narrow(1, 1, 4).to(dtype).contiguous();
  const bool maps_last = prefers_channels_last(features[0]);
  const Tangents y{along, true, false}, x{along, false, true}, both{along, true, true};
  at::Tensor grad_grad = align(op, features, boxes, s, maps_last, y);
  grad_grad.add_(align(op, features, boxes, s, maps_last, x));
  Tensors grads = align_backward(op, grad, boxes, sizes, maps_last, s, y);
  const Tensors more = align_backward(op, grad, boxes, sizes, maps_last, s, x);
  for (size_t i = 0; i < grads.size(); ++i) grads[i].add_(more[i]);
  return {grad_grad, grads, align_boxes_backward(op, grad, features, boxes, s, both)};
}

}  // namespace

void bind_roi_align(pybind11::module_& m) {
  using Scales = std::vector<double>;
  const pybind11::call_guard<pybind11::gil_scoped_release> unlocked;
  m.def(
      "roi_align",
      [](const Tensors& features, const at::Tensor& boxes, Scales scales, int64_t height,
         int64_t width, int64_t sampling_ratio, bool aligned, double canonical_scale,
         double canonical_level, std::optional<bool> channels_last) {
        return align("roi_align", features, boxes,
                     {std::move(scales), height, width, sampling_ratio, aligned, canonical_scale,
                      canonical_level},
                     channels_last);
      },
      unlocked);
  m.def(
      "roi_align_backward",
      [](const at::Tensor& grad, const at::Tensor& boxes, const std::vector<int64_t>& sizes,
         bool channels_last, Scales scales, int64_t height, int64_t width, int64_t sampling_ratio,
         bool aligned, double canonical_scale, double canonical_level) {
        return align_backward("roi_align_backward", grad, boxes, sizes, channels_last,
                              {std::move(scales), height, width, sampling_ratio, aligned,
                               canonical_scale, canonical_level});
      },
      unlocked);
  m.def(
      "roi_align_boxes_backward",
      [](const at::Tensor& grad, const Tensors& features, const at::Tensor& boxes, Scales scales,
         int64_t height, int64_t width, int64_t sampling_ratio, bool aligned,
         double canonical_scale, double canonical_level) {
        return align_boxes_backward("roi_align_boxes_backward", grad, features, boxes,
                                    {std::move(scales), height, width, sampling_ratio, aligned,
                                     canonical_scale, canonical_level});
      },
      unlocked);
  m.def(
      "roi_align_boxes_backward_backward",
      [](const at::Tensor& tangent, const at::Tensor& grad, const Tensors& features,
         const at::Tensor& boxes, Scales scales, int64_t height, int64_t width,
         int64_t sampling_ratio, bool aligned, double canonical_scale, double canonical_level) {
        return align_second(tangent, grad, features, boxes,
                            {std::move(scales), height, width, sampling_ratio, aligned,
                             canonical_scale, canonical_level});
      },
      unlocked);
}

}  // namespace pydet
