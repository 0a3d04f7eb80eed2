// SPDX-License-Identifier: Apache-2.0
// The sigmoid focal loss (Lin et al., Focal Loss for Dense Object Detection, arXiv:1708.02002,
// equations 4 and 5) of one logit, each function beside its gradient. All are evaluated by e =
// exp(-|x|) <= 1, so nothing overflows: with r = 1 / (1 + e) the two sides of the sigmoid are r and
// e r, and log(1 + exp(-|x|)) = log1p(e).
//
// A loss is written once, as a struct with a formula over any number type: its value and its first
// derivatives by the logit and by the target. On dual numbers these give the second derivatives.
#pragma once

#include "common/dual.h"
#include "common/host_device.h"
#include "common/math.h"
#include "common/scalar.h"

namespace pydet {

// The exponent gamma at compile time: 0, 1 or 2, which need no power, or any other number.
constexpr int kAnyGamma = -1;

// base^gamma and base^(gamma - 1) for base in [0, 1].
template <class A>
struct Power {
  A value, less_one;
};

// `log_base` is only read where gamma is none of the special ones. 0^0 is 1; what is infinite at
// base 0, the slope of gamma < 1, is taken as 0.
template <int kGamma, class A>
PYDET_HOST_DEVICE Power<A> power(A base, A log_base, A gamma) {
  if (kGamma == 0) return {A(1), A(0)};
  if (kGamma == 1) return {base, A(1)};
  if (kGamma == 2) return {base * base, base};
  // Bounded, so that 0 times it is not 0 * infinity.
  const A value = exp_of_negative(gamma * max_of(A(-1e30), log_base));
  return {value, base > A(0) ? value / base : A(gamma == A(1) ? 1 : 0)};
}

// The tangents come from that of the base alone: the logarithm may be that of a hard target, where
// it is known without the base. base' / base stays in range where base^(gamma - 2) does not.
template <int kGamma, class A>
PYDET_HOST_DEVICE Power<Dual<A>> power(Dual<A> base, Dual<A> log_base, Dual<A> gamma) {
  const A exponent = kGamma == kAnyGamma ? gamma.value : A(kGamma);
  const Power<A> p = power<kGamma>(base.value, log_base.value, gamma.value);
  const A at_zero = exponent == A(2) ? base.tangent : A(0);
  const A slope =
      base.value > A(0) ? (exponent - A(1)) * p.less_one * (base.tangent / base.value) : at_zero;
  return {{p.value, exponent * p.less_one * base.tangent}, {p.less_one, slope}};
}

template <class A>
struct Sigmoid {
  A magnitude;  // |x|
  A large;      // sigmoid(|x|)
  A small;      // sigmoid(-|x|)
  A log1p_e;    // log(1 + exp(-|x|)) = -log(large)
};

template <class A>
PYDET_HOST_DEVICE Sigmoid<A> sigmoid(A x) {
  const A magnitude = x < A(0) ? -x : x;
  const A e = exp_of_negative(-magnitude);
  const A large = A(1) / (A(1) + e);
  return {magnitude, large, e * large, log1p_of_fraction(e)};
}

// A logit whose magnitude stands beside a factor exp(-|x|) that is 0 long before: bounded, so that
// their product is 0 there and not 0 * infinity.
template <class A>
PYDET_HOST_DEVICE A bounded(A magnitude) {
  return min_of(A(1000), magnitude);  // in this order a NaN stays
}

// |x| times the share of it that counts, where a share of 0 of an infinite |x| is 0.
template <class A>
PYDET_HOST_DEVICE A share_of(A magnitude, A share) {
  return share == A(0) ? A(0) : magnitude * share;
}
template <class A>
PYDET_HOST_DEVICE Dual<A> share_of(Dual<A> magnitude, Dual<A> share) {
  return {share_of(magnitude.value, share.value),
          magnitude.tangent * share.value + share_of(magnitude.value, share.tangent)};
}

// The loss of a negative: sigmoid(x)^gamma softplus(x), without alpha. That of a positive is the
// same function of -x.
template <int kGamma, class A>
PYDET_HOST_DEVICE A focal_negative(A x, A gamma) {
  const Sigmoid<A> s = sigmoid(x);
  const A p = x < A(0) ? s.small : s.large;
  const A log_p = -(max_of(A(0), -x) + s.log1p_e);
  return power<kGamma>(p, log_p, gamma).value * (max_of(A(0), x) + s.log1p_e);
}

// Its derivative: p^gamma (gamma (1 - p) softplus(x) + p), p = sigmoid(x).
template <int kGamma, class A>
PYDET_HOST_DEVICE A focal_negative_backward(A x, A gamma) {
  const Sigmoid<A> s = sigmoid(x);
  const bool below = x < A(0);
  const A p = below ? s.small : s.large, q = below ? s.large : s.small;
  const A log_p = -(max_of(A(0), -x) + s.log1p_e);
  const A softplus = bounded(max_of(A(0), x)) + s.log1p_e;
  return power<kGamma>(p, log_p, gamma).value * (gamma * q * softplus + p);
}

// The weights of the two classes: alpha and 1 - alpha, or 1 and 1 where alpha < 0.
template <class A>
struct FocalWeights {
  A positive, negative;
};

template <class A>
PYDET_HOST_DEVICE FocalWeights<A> focal_weights(double alpha) {
  if (alpha < 0) return {A(1), A(1)};
  return {A(alpha), A(1 - alpha)};
}

// What value and gradients of a soft target t in [0, 1] share. `wrong` is the weight of the side
// that the logit's sign speaks for and t does not: 1 - t where x >= 0, t where x < 0. Then
//   cross entropy  ce = |x| wrong + log1p(e)
//   1 - p_t        q  = large wrong + small (1 - wrong)
template <class A>
struct FocalTerms {
  Sigmoid<A> s;
  bool below;
  A wrong, base, ce, alpha_t;
  Power<A> power_of_base;
};

template <int kGamma, class A>
PYDET_HOST_DEVICE FocalTerms<A> focal_terms(A x, A t, A gamma, const FocalWeights<A>& weights) {
  FocalTerms<A> f;
  f.s = sigmoid(x);
  f.below = x < A(0);
  const A other = A(1) - t;
  f.wrong = f.below ? t : other;
  const A right = f.below ? other : t;
  f.base = f.s.large * f.wrong + f.s.small * right;
  f.ce = share_of(f.s.magnitude, f.wrong) + f.s.log1p_e;
  f.alpha_t = weights.negative + t * (weights.positive - weights.negative);
  A log_base = A(0);
  if (kGamma == kAnyGamma) {
    // base = large (wrong + e right); where the target is hard no logarithm is needed.
    log_base = log_of_fraction(f.base);
    log_base = f.wrong == A(0) ? -(f.s.magnitude + f.s.log1p_e) : log_base;
    log_base = f.wrong == A(1) ? -f.s.log1p_e : log_base;
  }
  f.power_of_base = power<kGamma>(f.base, log_base, gamma);
  return f;
}

template <int kGamma, class A>
PYDET_HOST_DEVICE A focal_soft(A x, A t, A gamma, const FocalWeights<A>& weights) {
  const FocalTerms<A> f = focal_terms<kGamma>(x, t, gamma, weights);
  return f.alpha_t * (f.power_of_base.value * f.ce);
}

// Its derivative by x: with respect to |x|, d ce = wrong - small and d base = large small (2 wrong
// - 1).
template <int kGamma, class A>
PYDET_HOST_DEVICE A focal_soft_backward(A x, A t, A gamma, const FocalWeights<A>& weights) {
  const FocalTerms<A> f = focal_terms<kGamma>(x, t, gamma, weights);
  const A slope = f.s.large * f.s.small * (f.wrong - (A(1) - f.wrong));
  const A ce = bounded(f.s.magnitude) * f.wrong + f.s.log1p_e;
  const A grad = f.alpha_t * (gamma * f.power_of_base.less_one * slope * ce +
                              f.power_of_base.value * (f.wrong - f.s.small));
  return f.below ? -grad : grad;
}

// Its derivative by t: d ce = -x, d base = 1 - 2 p, d alpha_t = the difference of the weights.
template <int kGamma, class A>
PYDET_HOST_DEVICE A focal_soft_backward_target(A x, A t, A gamma, const FocalWeights<A>& weights) {
  const FocalTerms<A> f = focal_terms<kGamma>(x, t, gamma, weights);
  const A slope = f.below ? f.s.large - f.s.small : f.s.small - f.s.large;
  return (weights.positive - weights.negative) * (f.power_of_base.value * f.ce) +
         f.alpha_t * (gamma * f.power_of_base.less_one * slope * f.ce - f.power_of_base.value * x);
}

// The focal loss of a soft target, as a formula of common/loss.h.
template <int kGamma>
struct SoftFocal {
  static constexpr bool kLabels = false;

  template <class A>
  struct Formula {
    FocalWeights<A> weights;
    A gamma;

    PYDET_HOST_DEVICE Formula(double alpha, double gamma)
        : weights(focal_weights<A>(alpha)), gamma(A(gamma)) {}
    PYDET_HOST_DEVICE A value(A x, A t) const { return focal_soft<kGamma>(x, t, gamma, weights); }
    PYDET_HOST_DEVICE A by_input(A x, A t) const {
      return focal_soft_backward<kGamma>(x, t, gamma, weights);
    }
    PYDET_HOST_DEVICE A by_target(A x, A t) const {
      return focal_soft_backward_target<kGamma>(x, t, gamma, weights);
    }
  };
};

// The same of a target that is 0 or 1, from a label: less to compute, and no gradient of it.
template <int kGamma>
struct HardFocal {
  static constexpr bool kLabels = true;

  template <class A>
  struct Formula {
    FocalWeights<A> weights;
    A gamma;

    PYDET_HOST_DEVICE Formula(double alpha, double gamma)
        : weights(focal_weights<A>(alpha)), gamma(A(gamma)) {}
    PYDET_HOST_DEVICE A value(A x, A t) const {
      const bool positive = t != A(0);
      const A loss = focal_negative<kGamma>(positive ? -x : x, gamma);
      return (positive ? weights.positive : weights.negative) * loss;
    }
    PYDET_HOST_DEVICE A by_input(A x, A t) const {
      const bool positive = t != A(0);
      const A slope = focal_negative_backward<kGamma>(positive ? -x : x, gamma);
      return (positive ? -weights.positive : weights.negative) * slope;
    }
    PYDET_HOST_DEVICE A by_target(A, A) const { return A(0); }
  };
};

// Varifocal loss (Zhang et al., VarifocalNet, arXiv:2008.13367, equation 2): of a target q > 0
// q times the cross entropy, of q = 0 alpha times the focal loss of a negative.
template <int kGamma>
struct Varifocal {
  static constexpr bool kLabels = false;

  template <class A>
  struct Formula {
    A alpha, gamma;

    PYDET_HOST_DEVICE Formula(double alpha, double gamma) : alpha(A(alpha)), gamma(A(gamma)) {}
    PYDET_HOST_DEVICE A value(A x, A t) const {
      const A negative = alpha * focal_negative<kGamma>(x, gamma);
      return t == A(0) ? negative : t * cross_entropy(x, t);
    }
    PYDET_HOST_DEVICE A by_input(A x, A t) const {
      const Sigmoid<A> s = sigmoid(x);
      const A p = x < A(0) ? s.small : s.large;
      const A negative = alpha * focal_negative_backward<kGamma>(x, gamma);
      return t == A(0) ? negative : t * (p - t);
    }
    // d ce = -x; the step at q = 0 is left out.
    PYDET_HOST_DEVICE A by_target(A x, A t) const {
      return t == A(0) ? A(0) : cross_entropy(x, t) - t * x;
    }

   private:
    PYDET_HOST_DEVICE static A cross_entropy(A x, A t) {
      const Sigmoid<A> s = sigmoid(x);
      return share_of(s.magnitude, x < A(0) ? t : A(1) - t) + s.log1p_e;
    }
  };
};

// Penalty-reduced focal loss of heatmaps (Zhou et al., Objects as Points, arXiv:1904.07850,
// equation 1; Law and Deng, CornerNet, arXiv:1808.01244, equation 1): a target of 1 is a positive,
// any other a negative of weight (1 - t)^beta. kGamma = 2 stands for alpha = 2 and beta = 4.
template <int kGamma>
struct HeatmapFocal {
  static constexpr bool kLabels = false;

  template <class A>
  struct Formula {
    A alpha, beta;

    PYDET_HOST_DEVICE Formula(double alpha, double beta) : alpha(A(alpha)), beta(A(beta)) {}
    PYDET_HOST_DEVICE A value(A x, A t) const {
      const bool peak = t == A(1);
      const A loss = focal_negative<kGamma>(peak ? -x : x, alpha);
      return peak ? loss : weight(t).value * loss;
    }
    PYDET_HOST_DEVICE A by_input(A x, A t) const {
      const bool peak = t == A(1);
      const A slope = focal_negative_backward<kGamma>(peak ? -x : x, alpha);
      return peak ? -slope : weight(t).value * slope;
    }
    // The step at t = 1 is left out.
    PYDET_HOST_DEVICE A by_target(A x, A t) const {
      const A slope = -beta * weight(t).less_one * focal_negative<kGamma>(x, alpha);
      return t == A(1) ? A(0) : slope;
    }

   private:
    PYDET_HOST_DEVICE Power<A> weight(A t) const {
      const A rest = A(1) - t, square = rest * rest;
      if (kGamma == 2) return {square * square, square * rest};
      return power<kAnyGamma>(rest, log_of_fraction(rest), beta);
    }
  };
};

}  // namespace pydet
