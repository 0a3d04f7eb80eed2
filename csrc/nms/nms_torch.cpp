// SPDX-License-Identifier: Apache-2.0
#include <optional>
#include <tuple>
#include <vector>

#include "common/torch_glue.h"
#include "nms/nms.h"

namespace pydet {
namespace {

void check_overlap(const char* op, int64_t overlap) {
  TORCH_CHECK_VALUE(overlap == 0 || overlap == 1, op, ": overlap must be 0 or 1, got ", overlap);
}

// Fills keep and counts for the batch that `params` describes.
void run(const char* op, const NmsParams& params, const at::Tensor& boxes, const at::Tensor& scores,
         const std::optional<at::Tensor>& idxs, at::Tensor& keep, at::Tensor& counts) {
  const at::Tensor b = boxes.contiguous(), s = scores.contiguous();
  const at::Tensor i = idxs.has_value() ? idxs->contiguous() : at::Tensor();
  const int64_t* classes = i.defined() ? input<int64_t>(i) : nullptr;
  dispatch_floating(boxes.scalar_type(), op, [&](auto element) {
    using T = decltype(element);
    dispatch_device(
        op, boxes,
        [&] {
          cpu::nms<T>(params, input<T>(b), input<T>(s), classes, output<int64_t>(keep),
                      output<int64_t>(counts));
        },
        [&](CUstream_st* stream) -> const char* {
          size_t bytes = 0;
          if (const char* error = cuda::nms_workspace_bytes(params, &bytes)) return error;
          at::Tensor workspace =
              at::empty({static_cast<int64_t>(bytes)}, boxes.options().dtype(at::kByte));
          return cuda::nms<T>(params, input<T>(b), input<T>(s), classes, output<int64_t>(keep),
                              output<int64_t>(counts), output<uint8_t>(workspace), stream);
        });
  });
}

// boxes [N, 4], scores [N], idxs [N] -> indices of the kept boxes, as many as there are
at::Tensor nms(const at::Tensor& boxes, const at::Tensor& scores,
               const std::optional<at::Tensor>& idxs, double iou_threshold, int64_t overlap) {
  check_suppression_inputs("nms", boxes, scores, idxs);
  check_iou_threshold("nms", iou_threshold);
  check_overlap("nms", overlap);
  TORCH_CHECK_VALUE(boxes.dim() == 2, "nms: boxes must have shape [N, 4], got ", boxes.sizes());
  const int64_t n = boxes.size(0);
  at::Tensor keep = at::empty({n}, boxes.options().dtype(at::kLong));
  at::Tensor counts = at::empty({1}, keep.options());
  run("nms",
      NmsParams{1, n, n, iou_threshold, static_cast<SuppressionOverlap>(overlap), 0.0, false},
      boxes, scores, idxs, keep, counts);
  const int64_t count = counts.item<int64_t>();
  return count == n ? keep : keep.narrow(0, 0, count).clone();
}

// boxes [.., N, 4], scores [.., N], idxs [.., N] -> keep [.., max_output], counts [..]
std::tuple<at::Tensor, at::Tensor> nms_padded(const at::Tensor& boxes, const at::Tensor& scores,
                                              const std::optional<at::Tensor>& idxs,
                                              double iou_threshold, int64_t max_output,
                                              double score_threshold, int64_t overlap) {
  check_suppression_inputs("nms_padded", boxes, scores, idxs);
  check_iou_threshold("nms_padded", iou_threshold);
  check_overlap("nms_padded", overlap);
  TORCH_CHECK_VALUE(max_output >= 0, "nms_padded: max_output must be at least 0, got ", max_output);
  std::vector<int64_t> shape = boxes.sizes().slice(0, boxes.dim() - 2).vec();
  at::Tensor counts = at::empty(shape, boxes.options().dtype(at::kLong));
  shape.push_back(max_output);
  at::Tensor keep = at::empty(shape, counts.options());
  run("nms_padded",
      NmsParams{counts.numel(), boxes.size(-2), max_output, iou_threshold,
                static_cast<SuppressionOverlap>(overlap), score_threshold, true},
      boxes, scores, idxs, keep, counts);
  return {keep, counts};
}

}  // namespace

void bind_nms(pybind11::module_& m) {
  m.def("nms", &nms, pybind11::call_guard<pybind11::gil_scoped_release>());
  m.def("nms_padded", &nms_padded, pybind11::call_guard<pybind11::gil_scoped_release>());
}

}  // namespace pydet
