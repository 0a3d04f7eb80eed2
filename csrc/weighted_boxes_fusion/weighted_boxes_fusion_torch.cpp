// SPDX-License-Identifier: Apache-2.0
#include <optional>
#include <tuple>
#include <vector>

#include "common/torch_glue.h"
#include "weighted_boxes_fusion/weighted_boxes_fusion.h"

namespace pydet {
namespace {

// boxes [.., N, 4], scores [.., N], idxs [.., N]
//   -> fused [.., N, 4], keep [.., max_output], scores [.., max_output], counts [..]
std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> weighted_boxes_fusion(
    const at::Tensor& boxes, const at::Tensor& scores, const std::optional<at::Tensor>& idxs,
    double iou_threshold, int64_t num_models, double total_weight, bool by_best, bool overflow,
    int64_t max_output) {
  const char* op = "weighted_boxes_fusion";
  check_suppression_inputs(op, boxes, scores, idxs);
  check_iou_threshold(op, iou_threshold);
  TORCH_CHECK_VALUE(max_output >= 0, op, ": max_output must be at least 0, got ", max_output);
  TORCH_CHECK_VALUE(num_models >= 1, op, ": num_models must be at least 1, got ", num_models);
  TORCH_CHECK_VALUE(total_weight > 0, op, ": total_weight must be positive, got ", total_weight);
  std::vector<int64_t> shape = boxes.sizes().slice(0, boxes.dim() - 2).vec();
  at::Tensor counts = at::empty(shape, boxes.options().dtype(at::kLong));
  shape.push_back(max_output);
  at::Tensor keep = at::empty(shape, counts.options());
  at::Tensor fused_scores = at::empty(shape, scores.options());
  at::Tensor fused = at::empty(boxes.sizes(), boxes.options());
  const FusionParams params{counts.numel(), boxes.size(-2), max_output, iou_threshold,
                            num_models,     total_weight,   by_best,    overflow};
  const at::Tensor b = boxes.contiguous(), s = scores.contiguous();
  const at::Tensor i = idxs.has_value() ? idxs->contiguous() : at::Tensor();
  const int64_t* classes = i.defined() ? input<int64_t>(i) : nullptr;
  dispatch_floating(boxes.scalar_type(), op, [&](auto element) {
    using T = decltype(element);
    dispatch_device(
        op, boxes,
        [&] {
          cpu::weighted_boxes_fusion<T>(params, input<T>(b), input<T>(s), classes, output<T>(fused),
                                        output<int64_t>(keep), output<T>(fused_scores),
                                        output<int64_t>(counts));
        },
        [&](CUstream_st* stream) -> const char* {
          size_t bytes = 0;
          const char* error = cuda::weighted_boxes_fusion_workspace_bytes<T>(params, &bytes);
          if (error != nullptr) return error;
          at::Tensor workspace =
              at::empty({static_cast<int64_t>(bytes)}, boxes.options().dtype(at::kByte));
          return cuda::weighted_boxes_fusion<T>(
              params, input<T>(b), input<T>(s), classes, output<T>(fused), output<int64_t>(keep),
              output<T>(fused_scores), output<int64_t>(counts), output<uint8_t>(workspace), stream);
        });
  });
  return {fused, keep, fused_scores, counts};
}

}  // namespace

void bind_weighted_boxes_fusion(pybind11::module_& m) {
  m.def("weighted_boxes_fusion", &weighted_boxes_fusion,
        pybind11::call_guard<pybind11::gil_scoped_release>());
}

}  // namespace pydet
