// SPDX-License-Identifier: Apache-2.0
// How many CPU threads a call on regions of interest is worth.
#pragma once

#include <algorithm>
#include <cstdint>

#include "common/parallel_for.h"

namespace pydet {
namespace cpu {

// `cells` are those of an image on all levels: a gradient or large RoIs may visit all of them. To
// wake a thread takes as long as some ten thousand steps.
template <class Params>
int64_t roi_threads(const Params& params, int64_t cells) {
  constexpr int64_t kSteps = 16384;
  const int64_t bins = params.num_rois * params.pooled_height * params.pooled_width;
  const int64_t steps = params.channels * (4 * bins + params.batch * cells);
  return std::min(num_threads(), std::max<int64_t>(1, steps / kSteps));
}

}  // namespace cpu
}  // namespace pydet
