// SPDX-License-Identifier: Apache-2.0
// The vectorisable exp, log and atan against the C library's in double, over floats of all
// exponents.
#include <cmath>
#include <cstdio>
#include <limits>

#include "check.h"
#include "common/math.h"

namespace {

double worst_error(float (*function)(float), double (*wanted)(double), uint32_t from, uint32_t to,
                   uint32_t step) {
  double worst = 0;
  for (uint64_t bits = from; bits <= to; bits += step) {
    const float x = pydet::float_from_bits(static_cast<uint32_t>(bits));
    const double exact = wanted(x), error = std::abs(function(x) - exact);
    if (error > 0) worst = std::max(worst, error / std::abs(exact));
  }
  return worst;
}

constexpr uint32_t kStep = 997;  // a prime: all kinds of mantissas

}  // namespace

int main() {
  const float infinity = std::numeric_limits<float>::infinity();
  const auto bits = [](float x) { return pydet::bits_from_float(x); };
  const double exp_error = worst_error(
      pydet::exp_of_negative, [](double x) { return std::exp(x); }, bits(-0.0f), bits(-87.3365f),
      kStep);
  const double log1p_error = worst_error(
      pydet::log1p_of_fraction, [](double x) { return std::log1p(x); }, bits(0.0f), bits(1.0f),
      kStep);
  const double log_error = worst_error(
      pydet::log_of_fraction, [](double x) { return std::log(x); },
      bits(std::numeric_limits<float>::min()), bits(1.0f), kStep);
  const double large_log_error = worst_error(
      pydet::log_of_fraction, [](double x) { return std::log(x); }, bits(1.0f), bits(3e38f), kStep);
  const double any_exp_error = std::max(
      worst_error(
          pydet::exp_of, [](double x) { return std::exp(x); }, bits(0.0f), bits(88.72f), kStep),
      worst_error(
          pydet::exp_of, [](double x) { return std::exp(x); }, bits(-0.0f), bits(-87.3f), kStep));
  const double subnormal_log_error = worst_error(
      pydet::log_of_positive, [](double x) { return std::log(x); }, 1, bits(3e38f), kStep);
  const double atan_error = worst_error(
      pydet::atan_of_fraction, [](double x) { return std::atan(x); },
      bits(std::numeric_limits<float>::min()), bits(1.0f), kStep);
  std::printf("relative errors: exp %.3g and %.3g, log1p %.3g, log %.3g and %.3g, atan %.3g\n",
              exp_error, any_exp_error, log1p_error, log_error, subnormal_log_error, atan_error);
  CHECK(exp_error < 0x1p-22);
  CHECK(log1p_error < 0x1p-22);
  CHECK(log_error < 0x1p-22);
  CHECK(large_log_error < 0x1p-22);
  CHECK(any_exp_error < 0x1p-22);
  CHECK(subnormal_log_error < 0x1p-22);
  CHECK(atan_error < 0x1p-22);

  CHECK(pydet::exp_of_negative(0.0f) == 1);
  CHECK(pydet::exp_of_negative(-0.0f) == 1);
  CHECK(pydet::exp_of_negative(-88.0f) == 0);
  CHECK(pydet::exp_of_negative(-1e30f) == 0);
  CHECK(pydet::exp_of_negative(-infinity) == 0);
  CHECK(std::isnan(pydet::exp_of_negative(NAN)));
  CHECK(pydet::exp_of(0.0f) == 1);
  CHECK(std::abs(pydet::exp_of(-100.0f) - std::exp(-100.0f)) <=
        std::numeric_limits<float>::denorm_min());
  CHECK(pydet::exp_of(-1e30f) == 0 && pydet::exp_of(-infinity) == 0);
  CHECK(pydet::exp_of(89.0f) == infinity && pydet::exp_of(infinity) == infinity);
  CHECK(std::isnan(pydet::exp_of(NAN)));
  CHECK(pydet::log1p_of_fraction(0.0f) == 0);
  CHECK(std::isnan(pydet::log1p_of_fraction(NAN)));
  CHECK(pydet::log_of_fraction(1.0f) == 0);
  CHECK(pydet::log_of_fraction(0.0f) < -87);
  CHECK(std::isnan(pydet::log_of_fraction(NAN)));
  CHECK(pydet::log_of_positive(1.0f) == 0);
  CHECK(pydet::log_of_positive(infinity) == infinity);
  CHECK(std::isnan(pydet::log_of_positive(0.0f)) && std::isnan(pydet::log_of_positive(-1.0f)));
  CHECK(std::isnan(pydet::log_of_positive(NAN)));
  CHECK(pydet::atan_of_fraction(0.0f) == 0);
  CHECK(std::isnan(pydet::atan_of_fraction(NAN)));
  return check::result();
}
