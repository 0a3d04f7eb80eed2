// SPDX-License-Identifier: Apache-2.0
// The module pydet._C: plain functions on tensors. pydet/ops registers them with torch's
// dispatcher.
#include <torch/csrc/utils/pybind.h>

#include <string>

#include "common/isa.h"
#include "common/parallel_for.h"

namespace pydet {

// One line an op, alphabetical.
void bind_box_coding(pybind11::module_& m);
void bind_box_iou(pybind11::module_& m);
void bind_box_loss(pybind11::module_& m);
void bind_boxes(pybind11::module_& m);
void bind_deform_conv2d(pybind11::module_& m);
void bind_focal_loss(pybind11::module_& m);
void bind_heatmap_focal_loss(pybind11::module_& m);
void bind_match_anchors(pybind11::module_& m);
void bind_matrix_nms(pybind11::module_& m);
void bind_nms(pybind11::module_& m);
void bind_ps_roi(pybind11::module_& m);
void bind_roi_align(pybind11::module_& m);
void bind_roi_pool(pybind11::module_& m);
void bind_soft_nms(pybind11::module_& m);
void bind_softmax_focal_loss(pybind11::module_& m);
void bind_varifocal_loss(pybind11::module_& m);
void bind_weighted_boxes_fusion(pybind11::module_& m);

}  // namespace pydet

// pydet/_build_info.py reads this from the file, before it dares to load the module. "used" keeps
// it there whole: code that copied it would let the compiler take it apart.
[[gnu::used]] static const char kBuildInfo[] =
    "pydet-build|torch=" PYDET_TORCH_VERSION "|python=" PY_VERSION "|compiler=" __VERSION__
    "|cuda=" PYDET_CUDA_VERSION "|cuda_architectures=" PYDET_CUDA_ARCHITECTURES;

PYBIND11_MODULE(_C, m) {
  m.def("cpu_isa", [] { return std::string(pydet::isa_name(pydet::active_isa())); });
  m.def("num_threads", &pydet::num_threads);

  // One line an op, alphabetical.
  pydet::bind_box_coding(m);
  pydet::bind_box_iou(m);
  pydet::bind_box_loss(m);
  pydet::bind_boxes(m);
  pydet::bind_deform_conv2d(m);
  pydet::bind_focal_loss(m);
  pydet::bind_heatmap_focal_loss(m);
  pydet::bind_match_anchors(m);
  pydet::bind_matrix_nms(m);
  pydet::bind_nms(m);
  pydet::bind_ps_roi(m);
  pydet::bind_roi_align(m);
  pydet::bind_roi_pool(m);
  pydet::bind_soft_nms(m);
  pydet::bind_softmax_focal_loss(m);
  pydet::bind_varifocal_loss(m);
  pydet::bind_weighted_boxes_fusion(m);
}
