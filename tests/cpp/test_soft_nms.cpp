// SPDX-License-Identifier: Apache-2.0
// The CPU kernel against the loop of the paper, and the emulated CUDA kernel against the CPU
// kernel: the same bits, also of the scores.
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "check.h"
#include "common/decay.h"
#include "common/suppression.h"
#include "device.h"
#include "soft_nms/soft_nms.h"

namespace {

using device::in;
using device::out;
using device::scratch;

using pydet::Decay;
using pydet::SoftNmsParams;

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
    result.scores.push_back(i % 23 == 7 ? NAN : next(256) / 256 - 0.0625f);
    const auto label = static_cast<int64_t>(next(static_cast<uint32_t>(num_classes)));
    result.idxs.push_back(label % 2 == 0 ? std::numeric_limits<int64_t>::min() + label
                                         : std::numeric_limits<int64_t>::max() - label);
  }
  return result;
}

// Pick the best (the first of equals), lower the others of its class, until none is left.
void check_by_definition(const SoftNmsParams& p, const Case& c, bool by_class, const int64_t* keep,
                         const float* decayed, int64_t count) {
  const float least = static_cast<float>(p.score_threshold);
  const float threshold = pydet::threshold_above<float>(p.iou_threshold);
  std::vector<float> scores = c.scores;
  for (float& score : scores) score = pydet::score_or_out(score, least);
  int64_t picks = 0;
  for (; picks < p.max_output; ++picks) {
    int64_t best = -1;
    for (int64_t i = 0; i < p.num_boxes; ++i) {
      if (scores[i] > 0 && (best < 0 || scores[i] > scores[best])) best = i;
    }
    if (best < 0) break;
    CHECK(keep[picks] == best);
    CHECK(decayed[picks] == scores[best]);
    scores[best] = -1;
    const pydet::Box<float> box = pydet::load_box(c.boxes.data(), best);
    if (!pydet::can_overlap(box, pydet::area(box))) continue;
    for (int64_t i = 0; i < p.num_boxes; ++i) {
      if (by_class && c.idxs[i] != c.idxs[best]) continue;
      const pydet::Box<float> other = pydet::load_box(c.boxes.data(), i);
      if (!pydet::can_overlap(other, pydet::area(other))) continue;
      const float weight = pydet::decay_weight(p.method, pydet::iou(box, other), threshold,
                                               static_cast<float>(p.sigma));
      scores[i] = pydet::score_or_out(scores[i] * weight, least);
    }
  }
  CHECK(count == picks);
  for (int64_t k = picks; k < p.max_output; ++k) CHECK(keep[k] == -1 && decayed[k] == 0);
}

void test_sizes(int64_t n, int64_t max_output, uint32_t size, Decay method, bool by_class) {
  constexpr int64_t kBatch = 2;
  const SoftNmsParams params{kBatch, n, max_output, method, 0.25, 0.5, 0.015625};
  std::vector<Case> cases;
  Case all;
  for (uint32_t b = 0; b < kBatch; ++b) {
    cases.push_back(random_case(n, b == 1 ? 1 + n : 3, size, b + 1));
    all.boxes.insert(all.boxes.end(), cases[b].boxes.begin(), cases[b].boxes.end());
    all.scores.insert(all.scores.end(), cases[b].scores.begin(), cases[b].scores.end());
    all.idxs.insert(all.idxs.end(), cases[b].idxs.begin(), cases[b].idxs.end());
  }
  std::vector<int64_t> keep(kBatch * max_output, -2), counts(kBatch, -2);
  std::vector<float> decayed(kBatch * max_output, -2);
  pydet::cpu::soft_nms(params, all.boxes.data(), all.scores.data(),
                       by_class ? all.idxs.data() : nullptr, keep.data(), decayed.data(),
                       counts.data());
  for (int64_t b = 0; b < kBatch; ++b) {
    check_by_definition(params, cases[b], by_class, keep.data() + b * max_output,
                        decayed.data() + b * max_output, counts[b]);
  }
}

template <class T>
std::vector<T> converted(const std::vector<float>& values) {
  std::vector<T> result(values.size());
  for (size_t i = 0; i < values.size(); ++i) pydet::store(&result[i], values[i]);
  return result;
}

template <class T>
void test_cuda(int64_t batch, int64_t n, int64_t max_output, uint32_t size, Decay method,
               bool by_class) {
  const SoftNmsParams params{batch, n, max_output, method, 0.25, 0.5, 0.015625};
  const Case c = random_case(batch * n, 3, size, static_cast<uint32_t>(n));
  const std::vector<T> boxes = converted<T>(c.boxes), scores = converted<T>(c.scores);
  const int64_t* idxs = by_class ? c.idxs.data() : nullptr;
  std::vector<int64_t> keep(batch * max_output, -2), counts(batch, -2);
  std::vector<T> decayed(keep.size());
  pydet::cpu::soft_nms(params, boxes.data(), scores.data(), idxs, keep.data(), decayed.data(),
                       counts.data());
  std::vector<int64_t> cuda_keep(keep.size(), -3), cuda_counts(batch, -3);
  std::vector<T> cuda_decayed(keep.size());
  size_t bytes = 0;
  CHECK(pydet::cuda::soft_nms_workspace_bytes<T>(params, &bytes) == nullptr);
  // Nothing may depend on what the workspace holds before.
  std::vector<uint64_t> workspace((bytes + 7) / 8, 0xa5a5a5a5a5a5a5a5u);
  CHECK(pydet::cuda::soft_nms(params, in(boxes).data(), in(scores).data(),
                              in(idxs, batch * n).data(), out(cuda_keep).data(),
                              out(cuda_decayed).data(), out(cuda_counts).data(),
                              scratch(workspace).data(), nullptr) == nullptr);
  CHECK(cuda_keep == keep);
  CHECK(cuda_counts == counts);
  for (size_t i = 0; i < keep.size(); ++i) {
    CHECK(pydet::load(&cuda_decayed[i]) == pydet::load(&decayed[i]));
  }
}

// The exponential of what decides, over all of its range.
void test_exponential() {
  for (int i = 0; i <= 20000; ++i) {
    const double x = -i * 0.004;
    const float single = static_cast<float>(x);
    const double wanted = std::exp(static_cast<double>(single));
    CHECK(std::fabs(pydet::portable_exp_of_negative(single) - wanted) <= 3e-7 * wanted);
    CHECK(std::fabs(pydet::portable_exp_of_negative(8 * x) - std::exp(8 * x)) <=
          4.5e-16 * std::exp(8 * x));
  }
  CHECK(pydet::portable_exp_of_negative(-0.0f) == 1.0f);
  CHECK(pydet::portable_exp_of_negative(-0.0) == 1.0);
  CHECK(pydet::portable_exp_of_negative(-200.0f) == 0.0f);
  CHECK(pydet::portable_exp_of_negative(-800.0) == 0.0);
  CHECK(pydet::portable_exp_of_negative(-std::numeric_limits<double>::infinity()) == 0.0);
  CHECK(std::isnan(pydet::portable_exp_of_negative(double{NAN})));
  CHECK(std::isnan(pydet::portable_exp_of_negative(NAN)));
}

}  // namespace

int main() {
  for (const Decay method : {Decay::kLinear, Decay::kGaussian}) {
    for (int64_t n : {0, 1, 2, 31, 32, 33, 64, 65, 300, 1030}) {
      for (uint32_t size : {40u, 400u}) {
        for (bool by_class : {false, true}) {
          test_sizes(n, n, size, method, by_class);
          test_sizes(n, n / 2, size, method, by_class);
        }
      }
    }
    test_sizes(600, 0, 40, method, true);
    for (int64_t n : {0, 1, 40}) {
      for (bool flag : {false, true}) {
        test_cuda<float>(2, n, n, 60, method, flag);
        test_cuda<double>(1, n, 9, 100, method, flag);
        test_cuda<pydet::Half>(1, n, n / 2, 100, method, flag);
        test_cuda<pydet::BFloat16>(2, n, n + 3, 30, method, flag);
      }
    }
    test_cuda<float>(0, 5, 5, 60, method, true);
    test_cuda<float>(2, 40, 0, 60, method, true);
    test_cuda<float>(1, 700, 8, 200, method, false);  // more boxes than threads
    test_cuda<float>(2, 512, 2, 200, method, false);  // as many, and another image behind them
  }
  test_exponential();
  return check::result();
}
