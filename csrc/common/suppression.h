// SPDX-License-Identifier: Apache-2.0
// What every suppression op decides, once for host and device: which score comes first, and when
// one box hides another.
#pragma once

#include <cmath>
#include <cstdint>

#include "common/box.h"
#include "common/host_device.h"
#include "common/scalar.h"

namespace pydet {

// Keys of scores: a smaller key is a larger score. -0 and 0 have one key; NaN has the largest, so
// it ranks last, behind -infinity. Sorted by a stable sort, ties stand in the order of their
// indices.
PYDET_HOST_DEVICE uint32_t score_key(float score) {
  const uint32_t bits = bits_from_float(score + 0.0f);
  const uint32_t ascending = bits ^ ((bits >> 31) != 0u ? 0xffffffffu : 0x80000000u);
  return score == score ? ~ascending : 0xffffffffu;
}

PYDET_HOST_DEVICE uint64_t score_key(double score) {
  const uint64_t bits = bits_from_double(score + 0.0);
  const uint64_t ascending = bits ^ ((bits >> 63) != 0u ? ~uint64_t{0} : uint64_t{1} << 63);
  return score == score ? ~ascending : ~uint64_t{0};
}

// Whether a box can hide another or be hidden at all. False for a box with a NaN coordinate,
// without any area, inverted, or of an area that is infinite: its IoU with every box is 0 or NaN.
template <class A>
PYDET_HOST_DEVICE bool can_overlap(const Box<A>& box, A box_area) {
  return box.x2 > box.x1 && box.y2 > box.y1 && box_area > A(0) && box_area - box_area == A(0);
}

// Necessary for IoU > threshold, and cheap: no division. Rounding keeps the order of numbers and
// the intersection is such a number itself, so intersection > threshold * union leaves
// intersection >= round(threshold * union): no case is lost, and only few pass that are not.
template <class A>
PYDET_HOST_DEVICE bool may_exceed(A intersection, A area_a, A area_b, A threshold) {
  return (intersection > A(0)) & (intersection >= threshold * (area_a + area_b - intersection));
}

// The largest A that is not above `threshold`. An A exceeds the one exactly where it exceeds the
// other, so an IoU in float is compared with a double threshold without leaving float.
template <class A>
A threshold_below(double threshold) {
  const A rounded = static_cast<A>(threshold);
  return static_cast<double>(rounded) > threshold ? std::nextafter(rounded, A(-1)) : rounded;
}

// The smallest A that is not below `threshold`: an A is at least the one exactly where it is at
// least the other.
template <class A>
A threshold_above(double threshold) {
  const A rounded = static_cast<A>(threshold);
  return static_cast<double>(rounded) < threshold ? std::nextafter(rounded, A(2)) : rounded;
}

// An IoU above t takes an intersection that is t times as wide as either box, and t times as high:
// the share of a side that a box has to have in common with one that hides it. With a margin for
// rounding; 0 where the margin is not relative any more.
template <class A>
PYDET_HOST_DEVICE A share_of_side(A threshold, A box_area) {
  constexpr A kTiny = static_cast<A>(1e-30), kLeast = static_cast<A>(1e-6);
  return box_area < kTiny || !(threshold > kLeast) ? A(0) : threshold * (A(1) - A(1) / A(1024));
}

// By what measure a box hides another.
enum class SuppressionOverlap : int64_t { kIou = 0, kDiou = 1 };

// DIoU > threshold (Zheng et al. 2020, equation 7: IoU less the squared distance of the centres
// over the squared diagonal of the box around both). In double and without a division, so that it
// is exact wherever the products are: on integers below 1024 always.
template <class A>
PYDET_HOST_DEVICE bool diou_exceeds(const Box<A>& a, const Box<A>& b, double threshold) {
  const Box<double> s{a.x1, a.y1, a.x2, a.y2}, t{b.x1, b.y1, b.x2, b.y2};
  const double inter = intersection(s, t);
  const double union_area = area(s) + area(t) - inter;
  const double width = max_of(s.x2, t.x2) - min_of(s.x1, t.x1);
  const double height = max_of(s.y2, t.y2) - min_of(s.y1, t.y1);
  const double dx = (s.x1 + s.x2) - (t.x1 + t.x2), dy = (s.y1 + s.y2) - (t.y1 + t.y2);
  const double diagonal = 4.0 * (width * width + height * height);  // as dx, dy are twice as long
  const double distance = dx * dx + dy * dy;
  return inter * diagonal - distance * union_area > threshold * (union_area * diagonal);
}

// When a box hides another, for any overlap.
template <class A>
struct SuppressionRule {
  SuppressionOverlap overlap;
  A threshold;             // of the IoU; for others a bit less, for what is necessary and cheap
  A tiny;                  // unions below are decided by the exact test alone
  double exact_threshold;  // as the user gave it

  SuppressionRule(SuppressionOverlap overlap, double threshold)
      : overlap(overlap),
        threshold(overlap == SuppressionOverlap::kIou ? threshold_below<A>(threshold)
                                                      : static_cast<A>(threshold * (1 - 0x1p-16))),
        tiny(overlap == SuppressionOverlap::kIou ? A(-1) : static_cast<A>(1e-30)),
        exact_threshold(threshold) {}

  // Necessary and cheap. DIoU is never above IoU, whose rounding the threshold's margin covers.
  PYDET_HOST_DEVICE bool may_hide(A intersection, A area_a, A area_b) const {
    const A union_area = area_a + area_b - intersection;
    return ((intersection > A(0)) & (intersection >= threshold * union_area)) | (union_area < tiny);
  }

  PYDET_HOST_DEVICE bool hides(const Box<A>& a, A area_a, const Box<A>& b, A area_b) const {
    const A inter = intersection(a, b);
    if (!may_hide(inter, area_a, area_b)) return false;
    return overlap == SuppressionOverlap::kIou ? iou(inter, area_a, area_b) > threshold
                                               : diou_exceeds(a, b, exact_threshold);
  }
};

// `score_threshold` in the precision of T, as torch compares a tensor of T with a number.
template <class T>
acc_t<T> rounded_to(double score_threshold) {
  T rounded;
  store(&rounded, static_cast<acc_t<T>>(score_threshold));
  return load(&rounded);
}

}  // namespace pydet
