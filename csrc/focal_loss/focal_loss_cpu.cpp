// SPDX-License-Identifier: Apache-2.0
#include "common/fused.h"

#include "common/focal.h"
#include "common/loss_cpu.h"
#include "focal_loss/focal_loss.h"

namespace pydet {
namespace cpu {

template <class T>
void focal_loss(const LossCall<T>& call) {
  if (call.labels != nullptr) {
    run_loss<HardFocal>(call, call.gamma == 2);
  } else {
    run_loss<SoftFocal>(call, call.gamma == 2);
  }
}

template void focal_loss(const LossCall<float>&);
template void focal_loss(const LossCall<double>&);
template void focal_loss(const LossCall<Half>&);
template void focal_loss(const LossCall<BFloat16>&);

}  // namespace cpu
}  // namespace pydet
