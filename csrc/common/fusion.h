// SPDX-License-Identifier: Apache-2.0
// A cluster of boxes that are fused into one (Solovyev et al. 2021), once for host and device. The
// order of the additions is that of the scores, so both give the same bits.
#pragma once

#include <cstdint>

#include "common/box.h"
#include "common/host_device.h"

namespace pydet {

template <class A>
struct Cluster {
  int64_t founder;  // the index of its first box
  int64_t count;
  A weight, best;    // sum and maximum of the scores
  A x1, y1, x2, y2;  // sums of score times coordinate
  Box<A> fused;

  // From one box, which is its own mean without any rounding.
  static PYDET_HOST_DEVICE Cluster of(int64_t index, const Box<A>& box, A score) {
    return {index,          1,  score, score, score * box.x1, score * box.y1, score * box.x2,
            score * box.y2, box};
  }

  PYDET_HOST_DEVICE void add(const Box<A>& box, A score) {
    ++count;
    weight += score;
    best = max_of(best, score);
    x1 += score * box.x1;
    y1 += score * box.y1;
    x2 += score * box.x2;
    y2 += score * box.y2;
    fused = {x1 / weight, y1 / weight, x2 / weight, y2 / weight};
  }

  // The paper's step 6: a cluster that fewer boxes confirm than there are models counts less. The
  // maximum is not lowered (the authors' code); total_weight is the greatest weight then.
  PYDET_HOST_DEVICE A score(bool by_best, bool overflow, int64_t num_models, A total_weight) const {
    if (by_best) return best / total_weight;
    const int64_t confirmed = overflow || count < num_models ? count : num_models;
    return weight / static_cast<A>(count) * (static_cast<A>(confirmed) / total_weight);
  }
};

}  // namespace pydet
