// SPDX-License-Identifier: Apache-2.0
#include "common/loss_glue.h"
#include "varifocal_loss/varifocal_loss.h"

namespace pydet {
namespace {

struct Kernels {
  static constexpr const char* kName = "varifocal_loss";
  static constexpr bool kLabels = false;

  template <class T>
  static void on_cpu(const LossCall<T>& call) {
    cpu::varifocal_loss(call);
  }
  template <class T>
  static const char* on_cuda(const LossCall<T>& call, CUstream_st* stream) {
    return cuda::varifocal_loss(call, stream);
  }
};

}  // namespace

void bind_varifocal_loss(pybind11::module_& m) {
  using Unlocked = pybind11::call_guard<pybind11::gil_scoped_release>;
  m.def("varifocal_loss", &loss<Kernels>, Unlocked());
  m.def("varifocal_loss_backward", &loss_backward<Kernels>, Unlocked());
  m.def("varifocal_loss_double_backward", &loss_double_backward<Kernels>, Unlocked());
}

}  // namespace pydet
