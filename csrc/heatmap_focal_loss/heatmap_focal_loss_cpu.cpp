// SPDX-License-Identifier: Apache-2.0
#include "common/fused.h"

#include "common/focal.h"
#include "common/loss_cpu.h"
#include "heatmap_focal_loss/heatmap_focal_loss.h"

namespace pydet {
namespace cpu {

template <class T>
void heatmap_focal_loss(const LossCall<T>& call) {
  run_loss<HeatmapFocal>(call, call.alpha == 2 && call.gamma == 4);
}

template void heatmap_focal_loss(const LossCall<float>&);
template void heatmap_focal_loss(const LossCall<double>&);
template void heatmap_focal_loss(const LossCall<Half>&);
template void heatmap_focal_loss(const LossCall<BFloat16>&);

}  // namespace cpu
}  // namespace pydet
