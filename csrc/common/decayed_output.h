// SPDX-License-Identifier: Apache-2.0
// The last step of ops that lower scores, on the CPU: rows of boxes by falling score.
#pragma once

#include <algorithm>
#include <cstdint>

#include "common/sort_items.h"
#include "common/suppression.h"

namespace pydet {

// Writes the indices and scores of the boxes whose score is greater than the threshold, best first,
// ties by index, and -1 and 0 behind them; returns how many there are, at most max_output.
template <class T>
int64_t write_by_score(int64_t num_boxes, int64_t max_output, acc_t<T> score_threshold,
                       const acc_t<T>* scores, ScoreSort<acc_t<T>>* sort, int64_t* keep,
                       T* decayed) {
  sort->clear();
  for (int64_t i = 0; i < num_boxes; ++i) {
    if (scores[i] > score_threshold) sort->add(scores[i], i);
  }
  const ScoreItem<acc_t<T>>* sorted = sort->sort();
  const int64_t count = std::min(sort->count(), max_output);
  for (int64_t k = 0; k < max_output; ++k) {
    keep[k] = k < count ? int64_t{sorted[k].index} : -1;
    store(decayed + k, k < count ? scores[sorted[k].index] : acc_t<T>(0));
  }
  return count;
}

}  // namespace pydet
