// SPDX-License-Identifier: Apache-2.0
// What decides a match, for host and device. Both passes over the pairs and both devices call these
// functions, so an IoU has the same bits wherever it is computed.
#pragma once

#include <cstdint>

#include "common/box.h"
#include "common/host_device.h"
#include "common/labels.h"

namespace pydet {

template <class A>
PYDET_HOST_DEVICE bool has_nan(const Box<A>& box) {
  return !(box.x1 == box.x1 && box.y1 == box.y1 && box.x2 == box.x2 && box.y2 == box.y2);
}

// The IoU as matching sees it: what is not a positive number (no overlap, two boxes without any
// area, infinite areas) counts as no overlap.
template <class A>
PYDET_HOST_DEVICE A match_quality(A intersection, A area_anchor, A area_gt) {
  const A quality = intersection / (area_gt + area_anchor - intersection);
  return quality > A(0) ? quality : A(0);
}

// Whether an anchor lies in a box to be ignored: at least half of the anchor's own area does. False
// where the quotient is not a number.
template <class A>
PYDET_HOST_DEVICE bool lies_in_ignored(A intersection, A area_anchor) {
  return intersection / area_anchor >= A(0.5);
}

// The result of an anchor whose best ground truth is number `argmax`, -1 where there is none.
template <class A, class Index>
PYDET_HOST_DEVICE Index decide_match(A best, Index argmax, A fg_iou_threshold, A bg_iou_threshold) {
  const Index found = best < fg_iou_threshold ? static_cast<Index>(kIgnored) : argmax;
  return (argmax < 0) | (best < bg_iou_threshold) ? static_cast<Index>(kBackground) : found;
}

}  // namespace pydet
