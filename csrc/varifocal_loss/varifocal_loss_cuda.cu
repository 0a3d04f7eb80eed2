// SPDX-License-Identifier: Apache-2.0
#include "common/focal.h"
#include "common/loss.cuh"
#include "varifocal_loss/varifocal_loss.h"

namespace pydet {
namespace cuda {

template <class T>
const char* varifocal_loss(const LossCall<T>& call, CUstream_st* stream) {
  return run_loss<Varifocal>(call, call.gamma == 2, stream);
}

template const char* varifocal_loss(const LossCall<float>&, CUstream_st*);
template const char* varifocal_loss(const LossCall<double>&, CUstream_st*);
template const char* varifocal_loss(const LossCall<Half>&, CUstream_st*);
template const char* varifocal_loss(const LossCall<BFloat16>&, CUstream_st*);

}  // namespace cuda
}  // namespace pydet
