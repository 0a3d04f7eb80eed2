// SPDX-License-Identifier: Apache-2.0
// The CPU kernel against the definition in two loops, at the edges of its words, sorts and tries,
// and the emulated CUDA kernel against the CPU kernel, for the sanitizers.
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "check.h"
#include "common/suppression.h"
#include "device.h"
#include "nms/nms.h"

namespace {

using device::in;
using device::out;
using device::scratch;

struct Case {
  std::vector<float> boxes, scores;
  std::vector<int64_t> idxs;
};

// Boxes of integers in a square of `size`: the smaller, the more of them overlap and are equal.
Case random_case(int64_t count, int64_t num_classes, uint32_t size, uint32_t seed) {
  Case result;
  const auto next = [&seed](uint32_t below) {
    seed = seed * 1664525u + 1013904223u;
    return static_cast<float>((seed >> 8) % below);
  };
  for (int64_t i = 0; i < count; ++i) {
    const float x = next(size), y = next(size), width = next(32), height = next(32);
    result.boxes.insert(result.boxes.end(), {x, y, x + width, y + height});
    if (i % 17 == 5) result.boxes[4 * i + i % 4] = NAN;
    result.scores.push_back(i % 23 == 7 ? NAN : next(256) / 256 - 0.25f);
    const auto label = static_cast<int64_t>(next(static_cast<uint32_t>(num_classes)));
    // Classes far apart, at both ends of int64.
    result.idxs.push_back(label % 2 == 0 ? std::numeric_limits<int64_t>::min() + label
                                         : std::numeric_limits<int64_t>::max() - label);
  }
  return result;
}

// The rule itself: of those left take the best (the first of equals, NaN last), compare it with all
// that were kept.
std::vector<int64_t> by_definition(const pydet::NmsParams& p, const Case& c, bool by_class) {
  std::vector<int64_t> kept;
  std::vector<bool> visited(p.num_boxes, false);
  const auto better = [&c](int64_t a, int64_t b) {
    return c.scores[a] > c.scores[b] || (std::isnan(c.scores[b]) && !std::isnan(c.scores[a]));
  };
  while (static_cast<int64_t>(kept.size()) < p.max_output) {
    int64_t best = -1;
    for (int64_t i = 0; i < p.num_boxes; ++i) {
      if (visited[i] || (p.filter_scores && !(c.scores[i] > p.score_threshold))) continue;
      if (best < 0 || better(i, best)) best = i;
    }
    if (best < 0) break;
    visited[best] = true;
    bool hidden = false;
    for (int64_t k : kept) {
      hidden |= (!by_class || c.idxs[k] == c.idxs[best]) &&
                pydet::iou(pydet::load_box(c.boxes.data(), k),
                           pydet::load_box(c.boxes.data(), best)) > p.iou_threshold;
    }
    if (!hidden) kept.push_back(best);
  }
  return kept;
}

void check_image(const pydet::NmsParams& p, const Case& c, bool by_class, const int64_t* keep,
                 int64_t count) {
  const std::vector<int64_t> wanted = by_definition(p, c, by_class);
  CHECK(count == static_cast<int64_t>(wanted.size()));
  for (int64_t k = 0; k < p.max_output; ++k) {
    CHECK(keep[k] == (k < static_cast<int64_t>(wanted.size()) ? wanted[k] : -1));
  }
}

void test_sizes(int64_t n, int64_t max_output, uint32_t size, double threshold, bool by_class,
                bool filter) {
  constexpr int64_t kBatch = 3;
  const pydet::NmsParams params{
      kBatch, n, max_output, threshold, pydet::SuppressionOverlap::kIou, 0.125, filter};
  std::vector<Case> cases;
  Case all;
  for (uint32_t b = 0; b < kBatch; ++b) {
    cases.push_back(random_case(n, b == 2 ? 1 + n : 3, size, b + 1));
    all.boxes.insert(all.boxes.end(), cases[b].boxes.begin(), cases[b].boxes.end());
    all.scores.insert(all.scores.end(), cases[b].scores.begin(), cases[b].scores.end());
    all.idxs.insert(all.idxs.end(), cases[b].idxs.begin(), cases[b].idxs.end());
  }
  std::vector<int64_t> keep(kBatch * max_output, -2), counts(kBatch, -2);
  pydet::cpu::nms(params, all.boxes.data(), all.scores.data(), by_class ? all.idxs.data() : nullptr,
                  keep.data(), counts.data());
  for (int64_t b = 0; b < kBatch; ++b) {
    check_image(params, cases[b], by_class, keep.data() + b * max_output, counts[b]);
  }
}

template <class T>
std::vector<T> converted(const std::vector<float>& values) {
  std::vector<T> result(values.size());
  for (size_t i = 0; i < values.size(); ++i) pydet::store(&result[i], values[i]);
  return result;
}

// The same rows and counts from both, for any element type.
template <class T>
void test_cuda(int64_t batch, int64_t n, int64_t max_output, uint32_t size, bool by_class,
               bool filter, pydet::SuppressionOverlap overlap = pydet::SuppressionOverlap::kIou) {
  const pydet::NmsParams params{batch, n, max_output, 0.375, overlap, -0.125, filter};
  const Case c = random_case(batch * n, 3, size, static_cast<uint32_t>(n));
  const std::vector<T> boxes = converted<T>(c.boxes), scores = converted<T>(c.scores);
  const int64_t* idxs = by_class ? c.idxs.data() : nullptr;
  std::vector<int64_t> keep(batch * max_output, -2), counts(batch, -2);
  pydet::cpu::nms(params, boxes.data(), scores.data(), idxs, keep.data(), counts.data());
  std::vector<int64_t> cuda_keep(keep.size(), -3), cuda_counts(batch, -3);
  size_t bytes = 0;
  CHECK(pydet::cuda::nms_workspace_bytes(params, &bytes) == nullptr);
  // Nothing may depend on what the workspace holds before.
  std::vector<uint64_t> workspace((bytes + 7) / 8, 0xa5a5a5a5a5a5a5a5u);
  CHECK(pydet::cuda::nms(params, in(boxes).data(), in(scores).data(), in(idxs, batch * n).data(),
                         out(cuda_keep).data(), out(cuda_counts).data(), scratch(workspace).data(),
                         nullptr) == nullptr);
  CHECK(cuda_keep == keep);
  CHECK(cuda_counts == counts);
}

// Each box hides the next one alone, so that what becomes of one hangs on all before it.
void test_chain() {
  constexpr int64_t kCount = 200;
  std::vector<float> boxes, scores;
  std::vector<int64_t> keep(kCount, -3), counts(1, -3), wanted(kCount, -1);
  for (int64_t i = 0; i < kCount; ++i) {
    const float x = 3.0f * static_cast<float>(i);
    boxes.insert(boxes.end(), {x, 0.0f, x + 8.0f, 8.0f});
    scores.push_back(1.0f - static_cast<float>(i) / 256.0f);
    if (i < kCount / 2) wanted[i] = 2 * i;
  }
  const pydet::NmsParams params{1,   kCount, kCount, 0.25, pydet::SuppressionOverlap::kIou,
                                0.0, true};
  size_t bytes = 0;
  CHECK(pydet::cuda::nms_workspace_bytes(params, &bytes) == nullptr);
  std::vector<uint64_t> workspace((bytes + 7) / 8, 0xa5a5a5a5a5a5a5a5u);
  const int64_t* no_classes = nullptr;
  CHECK(pydet::cuda::nms(params, in(boxes).data(), in(scores).data(), no_classes, out(keep).data(),
                         out(counts).data(), scratch(workspace).data(), nullptr) == nullptr);
  CHECK(counts[0] == kCount / 2);
  CHECK(keep == wanted);
}

// Copies of one box fill the first tries; what the output needs stands behind them.
void test_late_output() {
  constexpr int64_t kCopies = 40000, kOthers = 5;
  std::vector<float> boxes, scores;
  for (int64_t i = 0; i < kCopies + kOthers; ++i) {
    const float x = i < kCopies ? 0.0f : 10.0f * static_cast<float>(i - kCopies + 1);
    boxes.insert(boxes.end(), {x, 0.0f, x + 8.0f, 8.0f});
    scores.push_back(1.0f - static_cast<float>(i) / 65536.0f);
  }
  std::vector<int64_t> keep(4, -2), counts(1, -2);
  const pydet::NmsParams params{
      1, kCopies + kOthers, 4, 0.5, pydet::SuppressionOverlap::kIou, 0.0, true};
  pydet::cpu::nms(params, boxes.data(), scores.data(), nullptr, keep.data(), counts.data());
  CHECK(counts[0] == 4);
  CHECK((keep == std::vector<int64_t>{0, kCopies, kCopies + 1, kCopies + 2}));
}

// may_exceed must hold wherever the rounded quotient exceeds the threshold, for the smallest and
// the largest numbers too.
void test_filter() {
  uint32_t seed = 1;
  for (int i = 0; i < 300000; ++i) {
    float parts[3];
    for (float& part : parts) {
      seed = seed * 1664525u + 1013904223u;
      part = pydet::float_from_bits(seed >> 1);  // any magnitude
    }
    const float inter = std::fmin(parts[0], std::fmin(parts[1], parts[2]));
    if (!(inter >= 0) || std::isinf(parts[1]) || std::isinf(parts[2])) continue;
    const float quotient = pydet::iou(inter, parts[1], parts[2]);
    for (float threshold : {0.0f, quotient, std::nextafter(quotient, -1.0f), 0.5f}) {
      if (!(threshold >= 0)) continue;
      if (quotient > threshold) {
        CHECK(pydet::may_exceed(inter, parts[1], parts[2], threshold));
      }
    }
  }
}

void test_keys() {
  const float inf = std::numeric_limits<float>::infinity();
  const float falling[] = {inf, 3.0f, 1e-40f, 0.0f, -1e-40f, -2.0f, -inf, NAN};
  for (int i = 0; i + 1 < 8; ++i) {
    CHECK(pydet::score_key(falling[i]) < pydet::score_key(falling[i + 1]));
    CHECK(pydet::score_key(double{falling[i]}) < pydet::score_key(double{falling[i + 1]}));
  }
  CHECK(pydet::score_key(0.0f) == pydet::score_key(-0.0f));
  CHECK(pydet::score_key(0.0) == pydet::score_key(-0.0));
  CHECK(pydet::score_key(-NAN) == pydet::score_key(NAN));
}

void test_thresholds() {
  CHECK(pydet::threshold_below<float>(0.5) == 0.5f);
  CHECK(pydet::threshold_below<float>(1.0 / 3) < 1.0 / 3);
  CHECK(std::nextafter(pydet::threshold_below<float>(1.0 / 3), 1.0f) > 1.0 / 3);
  CHECK(pydet::threshold_below<float>(1e-60) == 0.0f);
  CHECK(pydet::threshold_below<double>(0.1) == 0.1);
  CHECK(pydet::rounded_to<float>(0.1) == 0.1f);
  CHECK(pydet::rounded_to<double>(0.1) == 0.1);
  CHECK(std::isinf(pydet::rounded_to<pydet::Half>(1e6)));
}

}  // namespace

int main() {
  for (int64_t n : {0, 1, 2, 31, 32, 33, 64, 65, 383, 384, 385, 600}) {
    for (uint32_t size : {8u, 200u}) {
      for (bool by_class : {false, true}) {
        test_sizes(n, n, size, 0.5, by_class, false);
        test_sizes(n, 10, size, 0.25, by_class, true);
        test_sizes(n, n / 2, size, 0.0, by_class, true);
      }
    }
  }
  test_sizes(600, 0, 8, 1.0, true, true);
  for (int64_t n : {0, 1, 63, 64, 65, 300}) {
    for (bool flag : {false, true}) {
      test_cuda<float>(3, n, n, 60, flag, false);
      test_cuda<double>(2, n, 9, 200, true, flag);
      test_cuda<pydet::Half>(1, n, n / 2, 200, flag, true);
      test_cuda<pydet::BFloat16>(5, n, n + 3, 30, flag, flag);
    }
  }
  for (int64_t n : {64, 300}) {
    test_cuda<float>(2, n, n, 60, false, false, pydet::SuppressionOverlap::kDiou);
    test_cuda<double>(1, n, n, 60, true, false, pydet::SuppressionOverlap::kDiou);
    test_cuda<pydet::Half>(1, n, n, 60, true, true, pydet::SuppressionOverlap::kDiou);
    test_cuda<pydet::BFloat16>(1, n, n, 60, false, true, pydet::SuppressionOverlap::kDiou);
  }
  test_cuda<float>(0, 5, 5, 60, true, true);
  test_cuda<float>(2, 40, 0, 60, true, true);
  // More images than a launch has blocks for.
  test_cuda<float>(1030, 70, 40, 60, true, true);
  // More than one tile, with an output that is never full, one that fills in the second, and one
  // that the first tile fills.
  test_cuda<float>(1, 2100, 2100, 400, false, false);
  test_cuda<float>(2, 2100, 1000, 1000, true, true);
  test_cuda<float>(1, 2100, 50, 400, false, false);
  // Many kept boxes, and so many boxes that the CPU kernel takes a tree: sparse, and a crowd.
  test_sizes(2500, 2500, 2000, 0.25, false, false);
  test_sizes(2600, 2600, 2000, 0.25, false, false);
  test_sizes(2600, 2600, 100, 0.25, false, false);
  test_sizes(8300, 8300, 4000, 0.25, false, false);
  test_sizes(4200, 1500, 900, 0.5, true, false);
  test_cuda<float>(1, 2100, 2100, 1500, false, false, pydet::SuppressionOverlap::kDiou);
  test_chain();
  test_late_output();
  test_filter();
  test_keys();
  test_thresholds();
  return check::result();
}
