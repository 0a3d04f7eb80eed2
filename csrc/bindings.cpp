// SPDX-License-Identifier: Apache-2.0
// The module pydet._C: plain functions on tensors. pydet/ops registers them with torch's
// dispatcher.
#include <torch/csrc/utils/pybind.h>

#include <string>

#include "common/isa.h"
#include "common/parallel_for.h"

namespace pydet {

// One line an op, alphabetical.
void bind_box_iou(pybind11::module_& m);

}  // namespace pydet

PYBIND11_MODULE(_C, m) {
  m.def("cpu_isa", [] { return std::string(pydet::isa_name(pydet::active_isa())); });
  m.def("num_threads", &pydet::num_threads);
  m.attr("torch_version") = PYDET_TORCH_VERSION;
  m.attr("compiler") = __VERSION__;
  m.attr("cuda_version") = PYDET_CUDA_VERSION;
  m.attr("cuda_architectures") = PYDET_CUDA_ARCHITECTURES;

  // One line an op, alphabetical.
  pydet::bind_box_iou(m);
}
