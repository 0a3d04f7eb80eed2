// SPDX-License-Identifier: Apache-2.0
// How well two boxes agree: IoU, generalised, distance and complete IoU, each beside its gradient,
// for host, device and dual numbers. With I the intersection, U the union, C the area of the
// smallest box around both, c its squared diagonal, d the squared distance of the centres:
//   iou          I / U
//   generalized  I / U - (C - U) / C      Rezatofighi et al., arXiv:1902.09630, algorithm 1
//   distance     I / U - d / c            Zheng et al., arXiv:1911.08287, equation 6
//   complete     distance - alpha v       the same, equations 8 to 11; v = (2 angle / pi)^2 of the
//                difference of the angles atan(w / h); alpha = v / (1 - iou + v), a constant for
//                the gradient
// A quotient whose denominator is 0 counts as 0, with gradient 0, and so does the angle of a box
// without width: no pair of finite boxes gives NaN. There are no branches: loops vectorise.
#pragma once

#include "common/box.h"
#include "common/dual.h"
#include "common/host_device.h"
#include "common/math.h"
#include "common/scalar.h"
#include "common/sums.h"

namespace pydet {

enum class Overlap { kIou, kGeneralized, kDistance, kComplete };

// How the losses and the pairwise functions differ (both as torchvision's). A loss adds eps to the
// areas that it divides by, gives boxes that only touch no gradient of the intersection, and does
// not hold the sides of the enclosing box (negative for inverted boxes) at 0. kProper: for pairs
// of a box that has_area with one that is not_inverted, which need no care for denominators of 0.
template <Overlap kOverlapOf, bool kLossOf, bool kProperPairs = false>
struct OverlapKind {
  static constexpr Overlap kOverlap = kOverlapOf;
  static constexpr bool kLoss = kLossOf;
  static constexpr bool kProper = kProperPairs;
  static constexpr bool kHasDistance =
      kOverlapOf == Overlap::kDistance || kOverlapOf == Overlap::kComplete;
  static constexpr bool kHasAngle = kOverlapOf == Overlap::kComplete;
  using Proper = OverlapKind<kOverlapOf, kLossOf, true>;
};

// Calls body(kind) with the kind as a type.
template <bool kLoss, class Body>
void with_kind(Overlap overlap, const Body& body) {
  switch (overlap) {
    case Overlap::kIou:
      return body(OverlapKind<Overlap::kIou, kLoss>{});
    case Overlap::kGeneralized:
      return body(OverlapKind<Overlap::kGeneralized, kLoss>{});
    case Overlap::kDistance:
      return body(OverlapKind<Overlap::kDistance, kLoss>{});
    case Overlap::kComplete:
      return body(OverlapKind<Overlap::kComplete, kLoss>{});
  }
}

// Small numbers in the denominators: of the quotients of areas (losses only), of d / c, of alpha.
template <class A>
struct OverlapEps {
  A area, distance, alpha;
};

// A box and what is computed once for all its pairs.
template <class A>
struct MeasuredBox {
  Box<A> box;
  A area, angle;
};

template <class A>
PYDET_HOST_DEVICE A quotient(A numerator, A denominator) {
  return denominator == A(0) ? A(0) : numerator / denominator;
}

template <class Kind, class A>
PYDET_HOST_DEVICE A pair_quotient(A numerator, A denominator) {
  if constexpr (Kind::kProper) return numerator / denominator;
  return quotient(numerator, denominator);
}

// 1 / x, or 0 where x is so near 0 that the inverse is not finite.
PYDET_HOST_DEVICE float inverse(float x) {
  return x < 0x1p-125f && x > -0x1p-125f ? 0.0f : 1.0f / x;
}
PYDET_HOST_DEVICE double inverse(double x) {
  return x < 0x1p-1021 && x > -0x1p-1021 ? 0.0 : 1.0 / x;
}
template <class A>
PYDET_HOST_DEVICE Dual<A> inverse(const Dual<A>& x) {
  const A value = inverse(x.value);
  return {value, -value * value * x.tangent};
}

// atan(width / height), 0 for width 0.
template <class A>
PYDET_HOST_DEVICE A angle_of(A width, A height) {
  const A w = width < A(0) ? -width : width, h = height < A(0) ? -height : height;
  const A acute = atan_of_fraction(quotient(min_of(w, h), max_of(w, h)));
  const A angle = w > h ? A(1.57079632679489662) - acute : acute;
  return (width < A(0)) != (height < A(0)) ? -angle : angle;
}

// The two derivatives of the angle.
template <class A>
PYDET_HOST_DEVICE void angle_backward(A width, A height, A grad, A* grad_width, A* grad_height) {
  const A scaled = grad * inverse(width * width + height * height);
  *grad_width = scaled * height;
  *grad_height = -scaled * width;
}

template <class A>
PYDET_HOST_DEVICE Dual<A> angle_of(const Dual<A>& width, const Dual<A>& height) {
  A by_width, by_height;
  angle_backward(width.value, height.value, A(1), &by_width, &by_height);
  return {angle_of(width.value, height.value),
          by_width * width.tangent + by_height * height.tangent};
}

template <class Kind, class A>
PYDET_HOST_DEVICE MeasuredBox<A> measure(const Box<A>& box) {
  A angle = A(0);
  if constexpr (Kind::kHasAngle) angle = angle_of(box.x2 - box.x1, box.y2 - box.y1);
  return {box, area(box), angle};
}

// Where the first box of a pair has an area and the second is not inverted, no denominator is 0 and
// no side of the box around them negative: rounding keeps the order of numbers, so the intersection
// is at most either area, while union, enclosing box and squared diagonal are at least the first's
// area. (The denominator of alpha takes an eps above 0.) NaN is neither.
template <class A>
PYDET_HOST_DEVICE bool has_area(const MeasuredBox<A>& a) {
  return a.box.x2 > a.box.x1 && a.box.y2 > a.box.y1 && a.area > A(0);
}
template <class A>
PYDET_HOST_DEVICE bool not_inverted(const Box<A>& box) {
  return (box.x2 >= box.x1) & (box.y2 >= box.y1);
}

// A side of the intersection, 0 where there is none. It passes a gradient where boxes overlap and,
// but for a loss, where they touch.
template <class Kind, class A, class Sums = PlainSums>
PYDET_HOST_DEVICE A overlap_side(A side, const Sums& sums = {}) {
  if constexpr (Kind::kLoss) return side > A(0) ? side : A(0);
  return sums.positive_part(side);
}

// Width and height of the intersection and of the enclosing box, as they come (negative, too).
template <class A>
struct PairSides {
  A width, height, outer_width, outer_height;
};

template <class Kind, class A, class Sums = PlainSums>
PYDET_HOST_DEVICE PairSides<A> pair_sides(const Box<A>& a, const Box<A>& b, const Sums& sums = {}) {
  PairSides<A> s{sums.minus(shared_min_of(a.x2, b.x2), shared_max_of(a.x1, b.x1)),
                 sums.minus(shared_min_of(a.y2, b.y2), shared_max_of(a.y1, b.y1)), A(0), A(0)};
  if constexpr (Kind::kOverlap != Overlap::kIou) {
    s.outer_width = sums.minus(shared_max_of(a.x2, b.x2), shared_min_of(a.x1, b.x1));
    s.outer_height = sums.minus(shared_max_of(a.y2, b.y2), shared_min_of(a.y1, b.y1));
    if constexpr (!Kind::kLoss && !Kind::kProper) {
      s.outer_width = sums.positive_part(s.outer_width);
      s.outer_height = sums.positive_part(s.outer_height);
    }
  }
  return s;
}

// Twice the distance of the centres along an axis is the sum of that of the ends.
template <class A>
PYDET_HOST_DEVICE A centre_offset(A low_a, A high_a, A low_b, A high_b) {
  return A(0.5) * (low_a + high_a) - A(0.5) * (low_b + high_b);
}

constexpr double kFourOverPiSquared = 0.405284734569351085775517852838911;

// `sums` adds ends and areas (common/sums.h); with all other sums, too, the products would wait.
template <class Kind, class A, class Sums = PlainSums>
PYDET_HOST_DEVICE A overlap(const MeasuredBox<A>& a, const MeasuredBox<A>& b,
                            const OverlapEps<A>& eps, const Sums& sums = {}) {
  const PairSides<A> s = pair_sides<Kind>(a.box, b.box, sums);
  const A inter = overlap_side<Kind>(s.width, sums) * overlap_side<Kind>(s.height, sums);
  const A union_area = sums.minus(sums.plus(a.area, b.area), inter);
  const A iou = pair_quotient<Kind>(inter, Kind::kLoss ? union_area + eps.area : union_area);
  if constexpr (Kind::kOverlap == Overlap::kIou) return iou;
  if constexpr (Kind::kOverlap == Overlap::kGeneralized) {
    const A outer = s.outer_width * s.outer_height;
    return iou - pair_quotient<Kind>(sums.minus(outer, union_area),
                                     Kind::kLoss ? outer + eps.area : outer);
  }
  const A dx = centre_offset(a.box.x1, a.box.x2, b.box.x1, b.box.x2);
  const A dy = centre_offset(a.box.y1, a.box.y2, b.box.y1, b.box.y2);
  const A diagonal = s.outer_width * s.outer_width + s.outer_height * s.outer_height;
  A result = iou - pair_quotient<Kind>(dx * dx + dy * dy, diagonal + eps.distance);
  if constexpr (Kind::kHasAngle) {
    const A angle = a.angle - b.angle;
    const A v = A(kFourOverPiSquared) * (angle * angle);
    const A alpha = constant_of(pair_quotient<Kind>(v, A(1) - iou + v + eps.alpha));
    result = result - alpha * v;
  }
  return result;
}

// What a pair adds to the gradients of its boxes: to the ends of each, to the area of both alike,
// and to centre and angle of the first, the negative of which goes to the second.
template <class A>
struct PairGrads {
  Box<A> ends_a, ends_b;
  A area, centre_x, centre_y, angle;
};

// Share of the gradient of min(a, b) that goes to a: all, nothing, or half where they are equal. It
// is that of max(b, a), too.
template <class A>
PYDET_HOST_DEVICE A share_of_min(A a, A b) {
  return a < b ? A(1) : (a == b ? A(0.5) : A(0));
}

// Gradient of the ends along one axis from those of the inner and the outer side.
template <bool kHasOuter, class A>
PYDET_HOST_DEVICE void sides_backward(A low_a, A high_a, A low_b, A high_b, A inner, A outer,
                                      A* grad_low_a, A* grad_high_a, A* grad_low_b,
                                      A* grad_high_b) {
  const A low = share_of_min(low_b, low_a), high = share_of_min(high_a, high_b);
  *grad_low_a = -(low * inner);
  *grad_low_b = -((A(1) - low) * inner);
  *grad_high_a = high * inner;
  *grad_high_b = (A(1) - high) * inner;
  if constexpr (kHasOuter) {
    *grad_low_a -= (A(1) - low) * outer;
    *grad_low_b -= low * outer;
    *grad_high_a += (A(1) - high) * outer;
    *grad_high_b += high * outer;
  }
}

// With respect to I and U: d(I / U) = dI / U - I / U^2 dU; and U = A + B - I.
template <class Kind, class A>
PYDET_HOST_DEVICE PairGrads<A> overlap_backward(const MeasuredBox<A>& a, const MeasuredBox<A>& b,
                                                const OverlapEps<A>& eps, A grad) {
  constexpr bool kHasOuter = Kind::kOverlap != Overlap::kIou;
  const PairSides<A> s = pair_sides<Kind>(a.box, b.box);
  const A width = overlap_side<Kind>(s.width), height = overlap_side<Kind>(s.height);
  const A inter = width * height;
  const A union_area = a.area + b.area - inter;
  const A per_union = inverse(Kind::kLoss ? union_area + eps.area : union_area);
  const A iou = inter * per_union;
  PairGrads<A> grads{};
  A grad_union = -(grad * per_union) * iou, grad_outer_width = A(0), grad_outer_height = A(0);
  if constexpr (Kind::kOverlap == Overlap::kGeneralized) {
    const A outer = s.outer_width * s.outer_height;
    const A per_outer = inverse(Kind::kLoss ? outer + eps.area : outer);
    const A ratio = Kind::kLoss ? (union_area + eps.area) * per_outer : union_area * per_outer;
    grad_union = grad_union + grad * per_outer;
    const A grad_outer = -(grad * per_outer) * ratio;
    grad_outer_width = grad_outer * s.outer_height;
    grad_outer_height = grad_outer * s.outer_width;
  }
  if constexpr (Kind::kHasDistance) {
    const A dx = centre_offset(a.box.x1, a.box.x2, b.box.x1, b.box.x2);
    const A dy = centre_offset(a.box.y1, a.box.y2, b.box.y1, b.box.y2);
    const A diagonal = s.outer_width * s.outer_width + s.outer_height * s.outer_height;
    const A per_diagonal = inverse(diagonal + eps.distance);
    const A grad_distance = A(-2) * grad * per_diagonal;
    const A grad_diagonal = -grad_distance * ((dx * dx + dy * dy) * per_diagonal);
    grads.centre_x = grad_distance * dx;
    grads.centre_y = grad_distance * dy;
    grad_outer_width = grad_diagonal * s.outer_width;
    grad_outer_height = grad_diagonal * s.outer_height;
  }
  if constexpr (Kind::kHasAngle) {
    const A angle = a.angle - b.angle;
    const A v = A(kFourOverPiSquared) * (angle * angle);
    const A alpha = constant_of(quotient(v, A(1) - iou + v + eps.alpha));
    grads.angle = A(-2 * kFourOverPiSquared) * grad * alpha * angle;
  }
  const A grad_inter = grad * per_union - grad_union;
  const bool has_width = Kind::kLoss ? s.width > A(0) : s.width >= A(0);
  const bool has_height = Kind::kLoss ? s.height > A(0) : s.height >= A(0);
  grads.area = grad_union;
  sides_backward<kHasOuter>(a.box.x1, a.box.x2, b.box.x1, b.box.x2,
                            has_width ? grad_inter * height : A(0), grad_outer_width,
                            &grads.ends_a.x1, &grads.ends_a.x2, &grads.ends_b.x1, &grads.ends_b.x2);
  sides_backward<kHasOuter>(a.box.y1, a.box.y2, b.box.y1, b.box.y2,
                            has_height ? grad_inter * width : A(0), grad_outer_height,
                            &grads.ends_a.y1, &grads.ends_a.y2, &grads.ends_b.y1, &grads.ends_b.y2);
  return grads;
}

// The sum over the pairs of a box of what is its own in PairGrads.
template <class A>
struct OverlapSums {
  Box<A> ends;
  A area, centre_x, centre_y, angle;
};

// The gradient of a box from its sums.
template <class Kind, class A>
PYDET_HOST_DEVICE Box<A> finish_backward(const Box<A>& box, const OverlapSums<A>& sums) {
  const A width = box.x2 - box.x1, height = box.y2 - box.y1;
  A by_width = sums.area * height, by_height = sums.area * width;
  Box<A> grad = sums.ends;
  if constexpr (Kind::kHasAngle) {
    A angle_width, angle_height;
    angle_backward(width, height, sums.angle, &angle_width, &angle_height);
    by_width = by_width + angle_width;
    by_height = by_height + angle_height;
  }
  A centre_x = A(0), centre_y = A(0);
  if constexpr (Kind::kHasDistance) {
    centre_x = A(0.5) * sums.centre_x;
    centre_y = A(0.5) * sums.centre_y;
  }
  return {grad.x1 - by_width + centre_x, grad.y1 - by_height + centre_y,
          grad.x2 + by_width + centre_x, grad.y2 + by_height + centre_y};
}

// The loss of a pair: 1 - overlap, and -ln IoU (UnitBox, arXiv:1608.01471, equation 2) with the IoU
// held at eps from below. complete_box_iou_loss of torchvision has eps in alpha alone.
template <class Kind, class A>
PYDET_HOST_DEVICE OverlapEps<A> loss_eps(A eps) {
  if constexpr (Kind::kOverlap == Overlap::kIou) return {A(0), A(0), A(0)};
  if constexpr (Kind::kOverlap == Overlap::kComplete) return {A(1e-7), A(1e-7), eps};
  return {eps, eps, eps};
}

template <class Kind, class A>
PYDET_HOST_DEVICE A pair_loss(const Box<A>& a, const Box<A>& b, A eps) {
  const A value = overlap<Kind>(measure<Kind>(a), measure<Kind>(b), loss_eps<Kind>(eps));
  if constexpr (Kind::kOverlap == Overlap::kIou)
    return A(0) - log_of_fraction(value < eps ? eps : value);  // a NaN stays
  return A(1) - value;
}

template <class Kind, class A>
PYDET_HOST_DEVICE void pair_loss_backward(const Box<A>& a, const Box<A>& b, A eps, A grad,
                                          Box<A>* grad_a, Box<A>* grad_b) {
  const MeasuredBox<A> measured_a = measure<Kind>(a), measured_b = measure<Kind>(b);
  const OverlapEps<A> all_eps = loss_eps<Kind>(eps);
  A grad_overlap = -grad;
  if constexpr (Kind::kOverlap == Overlap::kIou) {
    const A value = overlap<Kind>(measured_a, measured_b, all_eps);
    grad_overlap = value < eps ? A(0) : grad_overlap / value;
  }
  const PairGrads<A> g = overlap_backward<Kind>(measured_a, measured_b, all_eps, grad_overlap);
  *grad_a = finish_backward<Kind, A>(a, {g.ends_a, g.area, g.centre_x, g.centre_y, g.angle});
  *grad_b = finish_backward<Kind, A>(b, {g.ends_b, g.area, -g.centre_x, -g.centre_y, -g.angle});
}

}  // namespace pydet
