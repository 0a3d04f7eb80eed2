// SPDX-License-Identifier: Apache-2.0
// Bilinear samples: weights and slopes at every kind of position, the borders among them.
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "check.h"
#include "common/bilinear.h"

namespace {

using pydet::AxisSample;

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
constexpr double kInf = std::numeric_limits<double>::infinity();

// The value at `position` of an axis whose cells hold `cells`, with the given value outside.
double interpolate(const AxisSample<double>& s, const std::vector<double>& cells) {
  CHECK(s.low >= 0 && s.low < static_cast<int64_t>(cells.size()));
  CHECK(s.high >= 0 && s.high < static_cast<int64_t>(cells.size()));
  return s.weight_low * cells[s.low] + s.weight_high * cells[s.high];
}

void test_clamped() {
  const std::vector<double> cells = {3, 5, -1};
  const auto at = [&](double position) {
    return interpolate(pydet::sample_clamped(position, 3), cells);
  };
  CHECK(at(0) == 3 && at(1) == 5 && at(2) == -1);
  CHECK(at(0.25) == 3.5 && at(1.5) == 2);
  CHECK(at(-0.5) == 3 && at(-1) == 3 && at(2.5) == -1 && at(3) == -1);
  CHECK(at(-1.001) == 0 && at(3.001) == 0);
  CHECK(at(kNan) == 0 && at(kInf) == 0 && at(-kInf) == 0);
  CHECK(pydet::sample_clamped(0.5, 1).weight_low == 1);
  CHECK(pydet::sample_clamped(0.5, 0).weight_low == 0);  // no cell at all
}

void test_zero_padded() {
  const std::vector<double> cells = {3, 5, -1};
  const auto at = [&](double position) {
    return interpolate(pydet::sample_zero_padded(position, 3), cells);
  };
  CHECK(at(0) == 3 && at(1) == 5 && at(2) == -1);
  CHECK(at(0.25) == 3.5 && at(1.5) == 2);
  CHECK(at(-0.5) == 1.5 && at(-1) == 0 && at(2.5) == -0.5 && at(3) == 0);
  CHECK(at(kNan) == 0 && at(kInf) == 0 && at(-kInf) == 0 && at(1e300) == 0 && at(-1e300) == 0);
  CHECK(pydet::sample_zero_padded(-1.0, 3).slope_high == 1);
  CHECK(pydet::sample_zero_padded(-0.5, 0).weight_high == 0);  // no cell at all
}

// Slopes are the quotients of small differences, away from the integers where the value bends.
void test_slopes() {
  const std::vector<double> cells = {3, 5, -1, 4};
  const double step = 1.0 / (1 << 20);
  for (const auto sample : {pydet::sample_clamped<double>, pydet::sample_zero_padded<double>}) {
    for (double position = -1.9375; position < 5; position += 0.125) {
      const AxisSample<double> s = sample(position, 4);
      const double difference = (interpolate(sample(position + step, 4), cells) -
                                 interpolate(sample(position - step, 4), cells)) /
                                (2 * step);
      CHECK(s.slope_low * cells[s.low] + s.slope_high * cells[s.high] == difference);
    }
  }
}

void test_points() {
  const double map[2][3] = {{1, 2, 4}, {8, 16, 32}};
  const AxisSample<double> y = pydet::sample_clamped(0.25, 2), x = pydet::sample_clamped(1.5, 3);
  const pydet::Neighbours<double> found = pydet::neighbours(y, x, 3, 1);
  double cells[4], sum = 0;
  for (int i = 0; i < 4; ++i) {
    cells[i] = (&map[0][0])[found.offset[i]];
    sum += found.weight[i] * cells[i];
  }
  CHECK(cells[0] == 2 && cells[1] == 4 && cells[2] == 16 && cells[3] == 32);
  const pydet::BilinearValue<double> value = pydet::bilinear(y, x, cells);
  CHECK(sum == 0.75 * 3 + 0.25 * 24 && value.value == sum);
  CHECK(value.slope_y == 24 - 3);
  CHECK(value.slope_x == 0.75 * (4 - 2) + 0.25 * (32 - 16));
}

}  // namespace

int main() {
  test_clamped();
  test_zero_padded();
  test_slopes();
  test_points();
  return check::result();
}
