// SPDX-License-Identifier: Apache-2.0
#include "common/fused.h"

#include "common/focal.h"
#include "common/loss_cpu.h"
#include "varifocal_loss/varifocal_loss.h"

namespace pydet {
namespace cpu {

template <class T>
void varifocal_loss(const LossCall<T>& call) {
  run_loss<Varifocal>(call, call.gamma == 2);
}

template void varifocal_loss(const LossCall<float>&);
template void varifocal_loss(const LossCall<double>&);
template void varifocal_loss(const LossCall<Half>&);
template void varifocal_loss(const LossCall<BFloat16>&);

}  // namespace cpu
}  // namespace pydet
