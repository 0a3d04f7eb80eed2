// SPDX-License-Identifier: Apache-2.0
#include "common/focal.h"
#include "common/loss.cuh"
#include "focal_loss/focal_loss.h"

namespace pydet {
namespace cuda {

template <class T>
const char* focal_loss(const LossCall<T>& call, CUstream_st* stream) {
  const bool usual = call.gamma == 2;
  return call.labels != nullptr ? run_loss<HardFocal>(call, usual, stream)
                                : run_loss<SoftFocal>(call, usual, stream);
}

template const char* focal_loss(const LossCall<float>&, CUstream_st*);
template const char* focal_loss(const LossCall<double>&, CUstream_st*);
template const char* focal_loss(const LossCall<Half>&, CUstream_st*);
template const char* focal_loss(const LossCall<BFloat16>&, CUstream_st*);

}  // namespace cuda
}  // namespace pydet
