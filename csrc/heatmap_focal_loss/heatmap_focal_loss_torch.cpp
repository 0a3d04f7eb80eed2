// SPDX-License-Identifier: Apache-2.0
#include "common/loss_glue.h"
#include "heatmap_focal_loss/heatmap_focal_loss.h"

namespace pydet {
namespace {

struct Kernels {
  static constexpr const char* kName = "heatmap_focal_loss";
  static constexpr bool kLabels = false;

  template <class T>
  static void on_cpu(const LossCall<T>& call) {
    cpu::heatmap_focal_loss(call);
  }
  template <class T>
  static const char* on_cuda(const LossCall<T>& call, CUstream_st* stream) {
    return cuda::heatmap_focal_loss(call, stream);
  }
};

}  // namespace

void bind_heatmap_focal_loss(pybind11::module_& m) {
  using Unlocked = pybind11::call_guard<pybind11::gil_scoped_release>;
  m.def("heatmap_focal_loss", &loss<Kernels>, Unlocked());
  m.def("heatmap_focal_loss_backward", &loss_backward<Kernels>, Unlocked());
  m.def("heatmap_focal_loss_double_backward", &loss_double_backward<Kernels>, Unlocked());
}

}  // namespace pydet
