// SPDX-License-Identifier: Apache-2.0
#include "common/focal.h"
#include "common/loss.cuh"
#include "heatmap_focal_loss/heatmap_focal_loss.h"

namespace pydet {
namespace cuda {

template <class T>
const char* heatmap_focal_loss(const LossCall<T>& call, CUstream_st* stream) {
  return run_loss<HeatmapFocal>(call, call.alpha == 2 && call.gamma == 4, stream);
}

template const char* heatmap_focal_loss(const LossCall<float>&, CUstream_st*);
template const char* heatmap_focal_loss(const LossCall<double>&, CUstream_st*);
template const char* heatmap_focal_loss(const LossCall<Half>&, CUstream_st*);
template const char* heatmap_focal_loss(const LossCall<BFloat16>&, CUstream_st*);

}  // namespace cuda
}  // namespace pydet
