// SPDX-License-Identifier: Apache-2.0
#include <cstdint>
#include <limits>
#include <optional>
#include <tuple>

#include "common/torch_glue.h"
#include "match_anchors/match_anchors.h"

namespace pydet {
namespace {

constexpr const char* kOp = "match_anchors";

void check_inputs(const at::Tensor& anchors, const at::Tensor& gt_boxes,
                  const std::optional<at::Tensor>& gt_ignored,
                  const std::optional<at::Tensor>& offsets) {
  TORCH_CHECK_VALUE((anchors.dim() == 2 || anchors.dim() == 3) && anchors.size(-1) == 4, kOp,
                    ": anchors must have shape [A, 4] or [B, A, 4], got ", anchors.sizes());
  TORCH_CHECK_VALUE(
      anchors.dim() == 2 ||
          (offsets.has_value() && offsets->dim() == 1 && offsets->size(0) == anchors.size(0) + 1),
      kOp, ": anchors [B, A, 4] must come with offsets [B + 1], got ", anchors.sizes());
  TORCH_CHECK_VALUE(gt_boxes.dim() == 2 && gt_boxes.size(1) == 4, kOp,
                    ": gt_boxes must have shape [G, 4], got ", gt_boxes.sizes());
  check_alike(kOp, "gt_boxes", gt_boxes, "anchors", anchors);
  TORCH_CHECK_VALUE(gt_boxes.size(0) <= std::numeric_limits<int32_t>::max(), kOp,
                    ": gt_boxes must hold at most 2147483647 boxes, got ", gt_boxes.size(0));
  if (gt_ignored.has_value()) {
    TORCH_CHECK_TYPE(gt_ignored->scalar_type() == at::kBool, kOp,
                     ": gt_ignored must have a dtype of bool, got ", gt_ignored->scalar_type());
    TORCH_CHECK_VALUE(gt_ignored->dim() == 1 && gt_ignored->size(0) == gt_boxes.size(0), kOp,
                      ": gt_ignored must have shape [", gt_boxes.size(0), "], got ",
                      gt_ignored->sizes());
    TORCH_CHECK_VALUE(gt_ignored->device() == anchors.device(), kOp,
                      ": gt_ignored must be on the device of anchors (", anchors.device(),
                      "), got ", gt_ignored->device());
  }
  if (offsets.has_value()) {
    TORCH_CHECK_TYPE(offsets->scalar_type() == at::kLong, kOp,
                     ": offsets must have a dtype of int64, got ", offsets->scalar_type());
    TORCH_CHECK_VALUE(offsets->dim() == 1 && offsets->size(0) >= 1, kOp,
                      ": offsets must have shape [B + 1], got ", offsets->sizes());
    TORCH_CHECK_VALUE(offsets->device() == anchors.device(), kOp,
                      ": offsets must be on the device of anchors (", anchors.device(), "), got ",
                      offsets->device());
  }
}

// On the CPU the values are at hand and are checked; on a device the kernel clamps them.
void check_offsets(const int64_t* offsets, int64_t num_images, int64_t num_gt) {
  bool fits = offsets[0] == 0 && offsets[num_images] == num_gt;
  for (int64_t b = 0; b < num_images; ++b) fits = fits && offsets[b] <= offsets[b + 1];
  TORCH_CHECK_VALUE(fits, kOp, ": offsets must rise from 0 to the number of ground truths (",
                    num_gt, "), got ", at::IntArrayRef(offsets, num_images + 1));
}

// anchors [A, 4] or [B, A, 4], gt_boxes [G, 4], gt_ignored [G], offsets [B + 1]
// -> matched_idxs and matched_ious [A], or [B, A] with offsets
std::tuple<at::Tensor, at::Tensor> match_anchors(
    const at::Tensor& anchors, const at::Tensor& gt_boxes, double fg_iou_threshold,
    double bg_iou_threshold, bool allow_low_quality_matches, bool best_anchor_for_each_gt,
    const std::optional<at::Tensor>& gt_ignored, const std::optional<at::Tensor>& offsets) {
  check_inputs(anchors, gt_boxes, gt_ignored, offsets);
  const MatchParams params{fg_iou_threshold, bg_iou_threshold, allow_low_quality_matches,
                           best_anchor_for_each_gt, anchors.dim() == 3};
  const int64_t num_anchors = anchors.size(-2), num_gt = gt_boxes.size(0);
  const int64_t num_images = offsets.has_value() ? offsets->size(0) - 1 : 1;
  const at::Tensor a = anchors.contiguous(), gt = gt_boxes.contiguous();
  const at::Tensor ignored = gt_ignored.has_value() ? gt_ignored->contiguous() : at::Tensor();
  const at::Tensor starts = offsets.has_value() ? offsets->contiguous() : at::Tensor();
  const bool* ignored_data = ignored.defined() ? input<bool>(ignored) : nullptr;
  const int64_t* starts_data = starts.defined() ? input<int64_t>(starts) : nullptr;
  if (starts.defined() && starts.is_cpu()) check_offsets(starts_data, num_images, num_gt);
  std::vector<int64_t> shape{num_anchors};
  if (offsets.has_value()) shape = {num_images, num_anchors};
  const bool wide = anchors.scalar_type() == at::kDouble;
  at::Tensor idxs = empty_large(shape, anchors.options().dtype(at::kLong));
  at::Tensor ious = empty_large(shape, anchors.options().dtype(wide ? at::kDouble : at::kFloat));
  dispatch_floating(anchors.scalar_type(), kOp, [&](auto element) {
    using T = decltype(element);
    dispatch_device(
        kOp, anchors,
        [&] {
          cpu::match_anchors<T>(num_images, num_anchors, num_gt, input<T>(a), input<T>(gt),
                                ignored_data, starts_data, params, output<int64_t>(idxs),
                                output<acc_t<T>>(ious));
        },
        [&](CUstream_st* stream) {
          at::Tensor workspace = at::empty({cuda::match_anchors_workspace_bytes(num_gt, params)},
                                           anchors.options().dtype(at::kByte));
          return cuda::match_anchors<T>(num_images, num_anchors, num_gt, input<T>(a), input<T>(gt),
                                        ignored_data, starts_data, params,
                                        output<uint8_t>(workspace), output<int64_t>(idxs),
                                        output<acc_t<T>>(ious), stream);
        });
  });
  return {idxs, ious};
}

}  // namespace

void bind_match_anchors(pybind11::module_& m) {
  m.def("match_anchors", &match_anchors, pybind11::call_guard<pybind11::gil_scoped_release>());
}

}  // namespace pydet
