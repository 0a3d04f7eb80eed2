// SPDX-License-Identifier: Apache-2.0
// Dual numbers: the tangent of each operation against the difference quotient of its values, and
// the rules for ties, constants and infinite slopes.
#include <cmath>
#include <initializer_list>
#include <limits>
#include <type_traits>

#include "check.h"
#include "common/dual.h"

namespace {

using pydet::Dual;
using D = Dual<double>;

static_assert(std::is_trivially_default_constructible_v<Dual<float>>);
static_assert(std::is_trivially_copyable_v<Dual<float>>);

// f(x + t v, y + t w) along t, by the central difference and by dual numbers.
template <class Function>
void check_slope(const Function& f, double x, double y) {
  const double v = 0.75, w = -1.25, step = 1e-6;
  const auto at = [&](double t) { return f(D(x + t * v), D(y + t * w)).value; };
  const D dual = f(D(x, v), D(y, w));
  CHECK(dual.value == at(0));
  CHECK(std::abs(dual.tangent - (at(step) - at(-step)) / (2 * step)) <
        1e-7 * (1 + std::abs(dual.tangent)));
}

void test_slopes() {
  for (double x : {0.3, 0.9}) {
    for (double y : {0.2, 0.8}) {
      check_slope([](D a, D b) { return a + b; }, x, y);
      check_slope([](D a, D b) { return a - b; }, x, y);
      check_slope([](D a, D b) { return a * b; }, x, y);
      check_slope([](D a, D b) { return a / b; }, x, y);
      check_slope([](D a, D b) { return -a * b + D(2) / a; }, x, y);
      check_slope([](D a, D b) { return mul_add(a, b, a); }, x, y);
      check_slope([](D a, D b) { return pydet::min_of(a, b); }, x, y);
      check_slope([](D a, D b) { return pydet::max_of(a, b); }, x, y);
      check_slope([](D a, D b) { return pydet::shared_min_of(a, b); }, x, y);
      check_slope([](D a, D b) { return pydet::shared_max_of(a, b); }, x, y);
      check_slope([](D a, D b) { return pydet::positive_part(a - b); }, x, y);
      check_slope([](D a, D b) { return pydet::exp_of(a - b); }, x, y);
      check_slope([](D a, D b) { return pydet::log_of_positive(a / b); }, x, y);
      check_slope([](D a, D b) { return pydet::exp_of_negative(-a * b); }, x, y);
      check_slope([](D a, D b) { return pydet::log1p_of_fraction(a * b); }, x, y);
      check_slope([](D a, D b) { return pydet::log_of_fraction(a * b); }, x, y);
    }
  }
  D sum(1, 2);
  sum += D(3, 4);
  sum -= D(1, 1);
  CHECK(sum.value == 3 && sum.tangent == 5);
  sum *= D(2, 1);
  CHECK(sum.value == 6 && sum.tangent == 13);
  sum /= D(2, 1);
  CHECK(sum.value == 3 && sum.tangent == 5);
}

void test_rules() {
  const D a(1, 2), b(1, 4);
  CHECK(a == b && a <= b && a >= b && !(a < b) && !(a > b) && !(a != b));
  // A tie: the second number, or half of each.
  CHECK(pydet::min_of(a, b).tangent == 4 && pydet::max_of(a, b).tangent == 4);
  CHECK(pydet::shared_min_of(a, b).tangent == 3 && pydet::shared_max_of(a, b).tangent == 3);
  CHECK(pydet::shared_min_of(1.0f, 2.0f) == 1 && pydet::shared_max_of(1.0f, 2.0f) == 2);
  CHECK(pydet::positive_part(D(0, 5)).tangent == 5 && pydet::positive_part(D(-1, 5)).tangent == 0);
  CHECK(pydet::positive_part(-1.0) == 0);
  CHECK(pydet::constant_of(a).value == 1 && pydet::constant_of(a).tangent == 0);
  CHECK(pydet::constant_of(3.0f) == 3);
  CHECK(pydet::log_of_fraction(Dual<float>(0, 1)).tangent == 0);
  CHECK(pydet::exp_of_negative(Dual<float>(-100, 1)).tangent == 0);
  const double nan = std::numeric_limits<double>::quiet_NaN();
  CHECK(std::isnan((D(nan, 1) * D(2)).tangent));
  CHECK(pydet::positive_part(D(nan, 1)).value == 0);
}

}  // namespace

int main() {
  test_slopes();
  test_rules();
  return check::result();
}
