// SPDX-License-Identifier: Apache-2.0
#include <optional>
#include <tuple>
#include <vector>

#include "common/torch_glue.h"
#include "soft_nms/soft_nms.h"

namespace pydet {
namespace {

using Result = std::tuple<at::Tensor, at::Tensor, at::Tensor>;

Result run(const char* op, const at::Tensor& boxes, const at::Tensor& scores,
           const std::optional<at::Tensor>& idxs, int64_t method, double iou_threshold,
           double sigma, double score_threshold, int64_t max_output) {
  check_suppression_inputs(op, boxes, scores, idxs);
  check_iou_threshold(op, iou_threshold);
  TORCH_CHECK_VALUE(max_output >= 0, op, ": max_output must be at least 0, got ", max_output);
  TORCH_CHECK_VALUE(method == 0 || method == 1, op, ": method must be 0 or 1, got ", method);
  TORCH_CHECK_VALUE(sigma > 0, op, ": sigma must be positive, got ", sigma);
  TORCH_CHECK_VALUE(score_threshold >= 0, op, ": score_threshold must be at least 0, got ",
                    score_threshold);
  std::vector<int64_t> shape = boxes.sizes().slice(0, boxes.dim() - 2).vec();
  at::Tensor counts = at::empty(shape, boxes.options().dtype(at::kLong));
  shape.push_back(max_output);
  at::Tensor keep = at::empty(shape, counts.options());
  at::Tensor decayed = at::empty(shape, scores.options());
  const SoftNmsParams params{
      counts.numel(), boxes.size(-2), max_output,     static_cast<Decay>(method),
      iou_threshold,  sigma,          score_threshold};
  const at::Tensor b = boxes.contiguous(), s = scores.contiguous();
  const at::Tensor i = idxs.has_value() ? idxs->contiguous() : at::Tensor();
  const int64_t* classes = i.defined() ? input<int64_t>(i) : nullptr;
  dispatch_floating(boxes.scalar_type(), op, [&](auto element) {
    using T = decltype(element);
    dispatch_device(
        op, boxes,
        [&] {
          cpu::soft_nms<T>(params, input<T>(b), input<T>(s), classes, output<int64_t>(keep),
                           output<T>(decayed), output<int64_t>(counts));
        },
        [&](CUstream_st* stream) -> const char* {
          size_t bytes = 0;
          if (const char* error = cuda::soft_nms_workspace_bytes<T>(params, &bytes)) return error;
          at::Tensor workspace =
              at::empty({static_cast<int64_t>(bytes)}, boxes.options().dtype(at::kByte));
          return cuda::soft_nms<T>(params, input<T>(b), input<T>(s), classes, output<int64_t>(keep),
                                   output<T>(decayed), output<int64_t>(counts),
                                   output<uint8_t>(workspace), stream);
        });
  });
  return {keep, decayed, counts};
}

// boxes [N, 4], scores [N], idxs [N] -> keep [D], decayed scores [D]
std::tuple<at::Tensor, at::Tensor> soft_nms(const at::Tensor& boxes, const at::Tensor& scores,
                                            const std::optional<at::Tensor>& idxs, int64_t method,
                                            double iou_threshold, double sigma,
                                            double score_threshold) {
  TORCH_CHECK_VALUE(boxes.dim() == 2, "soft_nms: boxes must have shape [N, 4], got ",
                    boxes.sizes());
  const auto [keep, decayed, counts] = run("soft_nms", boxes, scores, idxs, method, iou_threshold,
                                           sigma, score_threshold, boxes.size(0));
  const int64_t count = counts.item<int64_t>();
  if (count == boxes.size(0)) return {keep, decayed};
  return {keep.narrow(0, 0, count).clone(), decayed.narrow(0, 0, count).clone()};
}

// boxes [.., N, 4], scores [.., N], idxs [.., N]
//   -> keep [.., max_output], decayed scores [.., max_output], counts [..]
Result soft_nms_padded(const at::Tensor& boxes, const at::Tensor& scores,
                       const std::optional<at::Tensor>& idxs, int64_t method, double iou_threshold,
                       double sigma, double score_threshold, int64_t max_output) {
  return run("soft_nms_padded", boxes, scores, idxs, method, iou_threshold, sigma, score_threshold,
             max_output);
}

}  // namespace

void bind_soft_nms(pybind11::module_& m) {
  m.def("soft_nms", &soft_nms, pybind11::call_guard<pybind11::gil_scoped_release>());
  m.def("soft_nms_padded", &soft_nms_padded, pybind11::call_guard<pybind11::gil_scoped_release>());
}

}  // namespace pydet
