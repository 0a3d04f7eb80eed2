// SPDX-License-Identifier: Apache-2.0
// The CPU kernel against the definition in loops over all pairs, and the emulated CUDA kernel
// against the CPU kernel: the same bits, also of the scores.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "check.h"
#include "common/suppression.h"
#include "device.h"
#include "matrix_nms/matrix_nms.h"

namespace {

using device::in;
using device::out;
using device::scratch;

using pydet::Decay;
using pydet::MatrixNmsParams;

struct Case {
  std::vector<float> boxes, scores;
  std::vector<int64_t> idxs;
};

Case random_case(int64_t count, uint32_t size, uint32_t seed) {
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
    result.idxs.push_back(static_cast<int64_t>(next(3)) - 1);
  }
  return result;
}

void check_by_definition(const MatrixNmsParams& p, const Case& c, bool by_class,
                         const int64_t* keep, const float* decayed, int64_t count) {
  const float least = static_cast<float>(p.score_threshold);
  std::vector<int64_t> order;
  for (int64_t i = 0; i < p.num_boxes; ++i) {
    if (c.scores[i] > least) order.push_back(i);
  }
  std::stable_sort(order.begin(), order.end(),
                   [&](int64_t a, int64_t b) { return c.scores[a] > c.scores[b]; });
  std::vector<float> peaks(order.size(), 0.0f), scores(p.num_boxes, -1.0f);
  for (size_t j = 0; j < order.size(); ++j) {
    const pydet::Box<float> box = pydet::load_box(c.boxes.data(), order[j]);
    float peak = 0, ratio = 1, difference = 0;
    for (size_t i = 0; i < j; ++i) {
      const pydet::Box<float> other = pydet::load_box(c.boxes.data(), order[i]);
      if (!pydet::can_overlap(box, pydet::area(box)) ||
          !pydet::can_overlap(other, pydet::area(other)) ||
          (by_class && c.idxs[order[i]] != c.idxs[order[j]])) {
        continue;
      }
      const float iou = pydet::iou(box, other);
      peak = std::max(peak, iou);
      if (peaks[i] < 1) ratio = std::min(ratio, (1 - iou) / (1 - peaks[i]));
      difference = std::max(difference, iou * iou - peaks[i] * peaks[i]);
    }
    peaks[j] = peak;
    const float weight =
        p.method == Decay::kLinear
            ? ratio
            : pydet::portable_exp_of_negative(-difference / static_cast<float>(p.sigma));
    scores[order[j]] = c.scores[order[j]] * weight;
  }
  std::vector<int64_t> wanted;
  for (int64_t i = 0; i < p.num_boxes; ++i) {
    if (scores[i] > least) wanted.push_back(i);
  }
  std::stable_sort(wanted.begin(), wanted.end(),
                   [&](int64_t a, int64_t b) { return scores[a] > scores[b]; });
  if (static_cast<int64_t>(wanted.size()) > p.max_output) wanted.resize(p.max_output);
  CHECK(count == static_cast<int64_t>(wanted.size()));
  for (int64_t k = 0; k < p.max_output; ++k) {
    const bool is_kept = k < static_cast<int64_t>(wanted.size());
    CHECK(keep[k] == (is_kept ? wanted[k] : -1));
    CHECK(decayed[k] == (is_kept ? scores[wanted[k]] : 0));
  }
}

template <class T>
std::vector<T> converted(const std::vector<float>& values) {
  std::vector<T> result(values.size());
  for (size_t i = 0; i < values.size(); ++i) pydet::store(&result[i], values[i]);
  return result;
}

template <class T>
void test(int64_t batch, int64_t n, int64_t max_output, uint32_t size, Decay method, bool by_class,
          bool cuda) {
  const MatrixNmsParams params{batch, n, max_output, method, 0.5, 0.015625};
  const Case c = random_case(batch * n, size, static_cast<uint32_t>(n));
  const std::vector<T> boxes = converted<T>(c.boxes), scores = converted<T>(c.scores);
  const int64_t* idxs = by_class ? c.idxs.data() : nullptr;
  std::vector<int64_t> keep(batch * max_output, -2), counts(batch, -2);
  std::vector<T> decayed(keep.size());
  pydet::cpu::matrix_nms(params, boxes.data(), scores.data(), idxs, keep.data(), decayed.data(),
                         counts.data());
  if (!cuda) {
    std::vector<float> single(decayed.size());
    for (size_t i = 0; i < single.size(); ++i) {
      single[i] = static_cast<float>(pydet::load(&decayed[i]));
    }
    check_by_definition(params, c, by_class, keep.data(), single.data(), counts[0]);
    return;
  }
  std::vector<int64_t> cuda_keep(keep.size(), -3), cuda_counts(batch, -3);
  std::vector<T> cuda_decayed(keep.size());
  size_t bytes = 0;
  CHECK(pydet::cuda::matrix_nms_workspace_bytes<T>(params, &bytes) == nullptr);
  // Nothing may depend on what the workspace holds before.
  std::vector<uint64_t> workspace((bytes + 7) / 8, 0xa5a5a5a5a5a5a5a5u);
  CHECK(pydet::cuda::matrix_nms(params, in(boxes).data(), in(scores).data(),
                                in(idxs, batch * n).data(), out(cuda_keep).data(),
                                out(cuda_decayed).data(), out(cuda_counts).data(),
                                scratch(workspace).data(), nullptr) == nullptr);
  CHECK(cuda_keep == keep);
  CHECK(cuda_counts == counts);
  for (size_t i = 0; i < keep.size(); ++i) {
    CHECK(pydet::load(&cuda_decayed[i]) == pydet::load(&decayed[i]));
  }
}

}  // namespace

int main() {
  for (const Decay method : {Decay::kLinear, Decay::kGaussian}) {
    for (int64_t n : {0, 1, 2, 31, 32, 33, 64, 65, 300, 1100}) {
      for (uint32_t size : {40u, 400u}) {
        for (bool by_class : {false, true}) {
          test<float>(1, n, n, size, method, by_class, false);
          test<float>(1, n, n / 2, size, method, by_class, false);
        }
      }
    }
    for (int64_t n : {0, 1, 40, 300}) {
      for (bool flag : {false, true}) {
        test<float>(2, n, n, 60, method, flag, true);
        test<double>(1, n, 9, 100, method, flag, true);
        test<pydet::Half>(1, n, n / 2, 100, method, flag, true);
        test<pydet::BFloat16>(3, n, n + 3, 30, method, flag, true);
      }
    }
    test<float>(0, 5, 5, 60, method, true, true);
    test<float>(2, 40, 0, 60, method, true, true);
    test<float>(1, 700, 700, 200, method, false, true);  // tiles on and beside the diagonal
  }
  return check::result();
}
