// SPDX-License-Identifier: Apache-2.0
// What the CPU kernels know of the RoIs before they touch a map: the cells of each bin along both
// axes. It is made once a RoI and used by all channels.
#pragma once

#include <algorithm>
#include <cstdint>
#include <tuple>
#include <vector>

#include "common/parallel_for.h"
#include "roi_pool/roi_pool.h"

namespace pydet {
namespace cpu {

// The bins of a RoI along an axis. Of a RoI with fewer cells than bins, neighbours have the same
// cells; they share a slot, and what is found for it is theirs.
struct PooledAxis {
  const CellRange* slots;
  int64_t num_slots;
  const int32_t* slot_of;  // each bin's
  int64_t num_bins;

  // From the first cell of a bin to the last.
  CellRange cells() const { return {slots[0].begin, slots[num_slots - 1].end}; }
};

struct PooledRoi {
  int64_t index, image;  // image -1: it pools nothing, and no bin has a cell
  int64_t band, column;  // where it begins
  PooledAxis y, x;

  int64_t num_bins() const { return y.num_bins * x.num_bins; }
  int64_t num_slots() const { return y.num_slots * x.num_slots; }

  // Calls visit(bin, slot) for each bin in order.
  template <class Visit>
  void for_each_bin(const Visit& visit) const {
    for (int64_t ph = 0, bin = 0; ph < y.num_bins; ++ph) {
      const int64_t first = y.slot_of[ph] * x.num_slots;
      for (int64_t pw = 0; pw < x.num_bins; ++pw, ++bin) visit(bin, first + x.slot_of[pw]);
    }
  }
};

// The RoIs in an order in which neighbours in the list are neighbours on the map, so that most
// cells come from the cache: by image (none first), by bands of rows, by column. It depends on the
// RoIs alone.
template <class A>
class RoiPoolPlan {
 public:
  // Rows of a map of which RoIs that begin there follow each other.
  static constexpr int64_t kBand = 16;

  explicit RoiPoolPlan(const RoiPoolParams<A>& params)
      : slots_(params.num_rois * (params.pooled_height + params.pooled_width)),
        slot_of_(slots_.size()),
        rois_(params.num_rois) {
    parallel_for(params.num_rois, 16, [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r) rois_[r] = planned(params, r);
    });
    std::sort(rois_.begin(), rois_.end(), [](const PooledRoi& a, const PooledRoi& b) {
      return std::tie(a.image, a.band, a.column, a.index) <
             std::tie(b.image, b.band, b.column, b.index);
    });
    for (int64_t image = 0; image <= params.batch; ++image) {
      const auto first = std::partition_point(
          rois_.begin(), rois_.end(), [&](const PooledRoi& roi) { return roi.image < image; });
      firsts_.push_back(first - rois_.begin());
    }
  }

  const PooledRoi* at(int64_t i) const { return rois_.data() + i; }
  // The RoIs of an image.
  const PooledRoi* begin_of(int64_t image) const { return at(firsts_[image]); }
  const PooledRoi* end_of(int64_t image) const { return at(firsts_[image + 1]); }

 private:
  PooledRoi planned(const RoiPoolParams<A>& params, int64_t r) {
    const RoiPoolPlace<A> place = roi_pool_place(params, r);
    const int64_t at = r * (params.pooled_height + params.pooled_width);
    const bool any = place.image >= 0;
    return {
        r,
        place.image,
        place.y.start / kBand,
        place.x.start,
        planned(place.y, params.pooled_height, any ? params.height : 0, at),
        planned(place.x, params.pooled_width, any ? params.width : 0, at + params.pooled_height)};
  }

  // `at`: where the axis' part of the lists begins.
  PooledAxis planned(const PoolAxis<A>& axis, int64_t bins, int64_t cells, int64_t at) {
    CellRange* slots = slots_.data() + at;
    int32_t* slot_of = slot_of_.data() + at;
    int32_t last = -1;
    for (int64_t bin = 0; bin < bins; ++bin) {
      const CellRange range = bin_cells(axis, bin, cells);
      if (last < 0 || range.begin != slots[last].begin || range.end != slots[last].end)
        slots[++last] = range;
      slot_of[bin] = last;
    }
    return {slots, last + 1, slot_of, bins};
  }

  std::vector<CellRange> slots_;
  std::vector<int32_t> slot_of_;
  std::vector<PooledRoi> rois_;
  std::vector<int64_t> firsts_;  // of each image, and the end
};

// No RoI behind this one in the plan, of its image, begins above.
template <class A>
int64_t first_row_of_band(const RoiPoolParams<A>& params, const PooledRoi& roi) {
  return std::clamp<int64_t>(roi.band * RoiPoolPlan<A>::kBand, 0, params.height);
}

}  // namespace cpu
}  // namespace pydet
