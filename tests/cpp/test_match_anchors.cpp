// SPDX-License-Identifier: Apache-2.0
// The CPU kernel and the emulated CUDA kernels against all pairs, at the edges of their blocks and
// tiles, for the sanitizers.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <memory>
#include <thread>
#include <vector>

#include "check.h"
#include "common/matching.h"
#include "device.h"
#include "match_anchors/match_anchors.h"

namespace {

using device::in;
using device::out;
using device::scratch;

template <class T>
std::vector<T> random_boxes(int64_t count, uint32_t seed) {
  std::vector<T> boxes;
  for (int64_t i = 0; i < count; ++i) {
    seed = seed * 1664525u + 1013904223u;
    const T x = static_cast<T>(seed >> 25), y = static_cast<T>(seed >> 17 & 127);
    const T width = static_cast<T>(seed >> 11 & 31), height = static_cast<T>(seed >> 6 & 31);
    boxes.insert(boxes.end(), {x, y, x + width, y + height});  // some without area
  }
  return boxes;
}

template <class T>
struct Matches {
  std::vector<int64_t> idxs;
  std::vector<T> ious;
};

// One image by the definition: the matrix of all pairs first.
template <class T>
void match_all_pairs(const std::vector<T>& anchors, const std::vector<T>& gt, const bool* ignored,
                     int64_t begin, int64_t end, pydet::MatchParams params, Matches<T>* matches) {
  const int64_t num_anchors = static_cast<int64_t>(anchors.size()) / 4, count = end - begin;
  std::vector<T> matrix(num_anchors * count), highest(count, 0);
  const auto takes_part = [&](int64_t k) {
    return !ignored[begin + k] && !pydet::has_nan(pydet::load_box(gt.data(), begin + k));
  };
  for (int64_t i = 0; i < num_anchors; ++i) {
    const auto anchor = pydet::load_box(anchors.data(), i);
    for (int64_t k = 0; k < count; ++k) {
      const auto box = pydet::load_box(gt.data(), begin + k);
      const T quality = pydet::match_quality(pydet::intersection(anchor, box), pydet::area(anchor),
                                             pydet::area(box));
      matrix[i * count + k] = pydet::has_nan(anchor) ? 0 : quality;
      highest[k] = std::max(highest[k], matrix[i * count + k]);
    }
  }
  for (int64_t i = 0; i < num_anchors; ++i) {
    const auto anchor = pydet::load_box(anchors.data(), i);
    T best = 0;
    int64_t argmax = -1;
    bool crowd = false, tie = false;
    for (int64_t k = 0; k < count; ++k) {
      const auto box = pydet::load_box(gt.data(), begin + k);
      if (ignored[begin + k] && !pydet::has_nan(box))
        crowd =
            crowd || pydet::lies_in_ignored(pydet::intersection(anchor, box), pydet::area(anchor));
      if (!takes_part(k)) continue;
      const T quality = matrix[i * count + k];
      if (argmax < 0 || quality > best) argmax = k;
      best = std::max(best, quality);
      tie = tie || quality == highest[k];
    }
    int64_t idx = best < T(params.bg_iou_threshold) ? -1 : -2;
    if (best >= T(params.fg_iou_threshold) || (params.allow_low_quality_matches && tie))
      idx = argmax;
    if (idx < 0 && (crowd && !pydet::has_nan(anchor))) idx = -2;
    if (argmax < 0) idx = crowd && !pydet::has_nan(anchor) ? -2 : -1;
    matches->idxs.push_back(pydet::has_nan(anchor) ? -1 : idx);
    matches->ious.push_back(best);
  }
  int64_t* idxs = matches->idxs.data() + matches->idxs.size() - num_anchors;
  for (int64_t k = 0; k < count && params.best_anchor_for_each_gt; ++k) {
    int64_t i = 0;
    while (i < num_anchors && matrix[i * count + k] != highest[k]) ++i;
    if (takes_part(k) && highest[k] > 0) idxs[i] = k;
  }
}

template <class T>
void test(int64_t num_anchors, const std::vector<int64_t>& offsets, int rules, bool nan,
          bool own_anchors = false) {
  const int64_t num_images = static_cast<int64_t>(offsets.size()) - 1, num_gt = offsets.back();
  const pydet::MatchParams params{0.5, 0.4, (rules & 1) != 0, (rules & 2) != 0, own_anchors};
  const int64_t sets = own_anchors ? num_images : 1;
  std::vector<T> anchors = random_boxes<T>(sets * num_anchors, 1), gt = random_boxes<T>(num_gt, 2);
  const std::unique_ptr<bool[]> ignored(new bool[num_gt + 1]);
  for (int64_t g = 0; g < num_gt; ++g) ignored[g] = g % 11 == 3;
  if (nan) {
    for (size_t i = 5; i < anchors.size(); i += 1001) anchors[i] = std::nanf("");
    for (size_t g = 2; g < gt.size(); g += 37) gt[g] = std::nanf("");
  }
  Matches<T> wanted;
  for (int64_t b = 0; b < num_images; ++b) {
    const T* own = anchors.data() + (own_anchors ? 4 * b * num_anchors : 0);
    match_all_pairs({own, own + 4 * num_anchors}, gt, ignored.get(), offsets[b], offsets[b + 1],
                    params, &wanted);
  }
  const size_t size = num_images * num_anchors;
  Matches<T> cpu{std::vector<int64_t>(size, 77), std::vector<T>(size, 77)}, cuda = cpu;
  pydet::cpu::match_anchors(num_images, num_anchors, num_gt, anchors.data(), gt.data(),
                            ignored.get(), offsets.data(), params, cpu.idxs.data(),
                            cpu.ious.data());
  CHECK(cpu.idxs == wanted.idxs);
  CHECK(cpu.ious == wanted.ious);
  const int64_t bytes = pydet::cuda::match_anchors_workspace_bytes(num_gt, params);
  std::vector<double> workspace(bytes / sizeof(double), 99);
  CHECK(pydet::cuda::match_anchors(
            num_images, num_anchors, num_gt, in(anchors).data(), in(gt).data(),
            in(ignored.get(), num_gt).data(), in(offsets).data(), params, scratch(workspace).data(),
            out(cuda.idxs).data(), out(cuda.ious).data(), nullptr) == nullptr);
  CHECK(cuda.idxs == wanted.idxs);
  CHECK(cuda.ious == wanted.ious);
}

// Offsets that do not fit read nothing outside of the ground truth.
void test_offsets() {
  const std::vector<float> boxes = random_boxes<float>(9, 3);
  const pydet::MatchParams params{0.5, 0.4, true, true, false};
  constexpr int64_t kMost = std::numeric_limits<int64_t>::max();
  for (const std::vector<int64_t>& offsets :
       {std::vector<int64_t>{0, kMost}, {-kMost, 3}, {7, 2}, {kMost, kMost}, {-9, -1}}) {
    Matches<float> cpu{std::vector<int64_t>(9), std::vector<float>(9)}, cuda = cpu;
    std::vector<double> workspace(18);
    pydet::cpu::match_anchors(1, 9, 9, boxes.data(), boxes.data(), nullptr, offsets.data(), params,
                              cpu.idxs.data(), cpu.ious.data());
    CHECK(pydet::cuda::match_anchors(1, 9, 9, in(boxes).data(), in(boxes).data(), nullptr,
                                     in(offsets).data(), params, scratch(workspace).data(),
                                     out(cuda.idxs).data(), out(cuda.ious).data(),
                                     nullptr) == nullptr);
    CHECK(cuda.idxs == cpu.idxs);
  }
}

}  // namespace

// Which of the two rules beside the thresholds hold: low-quality matches 1, best anchors 2.
int main() {
  for (const int rules : {0, 1, 2, 3}) {
    for (const bool nan : {false, true}) {
      for (int64_t num_anchors : {0, 1, 127, 256, 385}) {
        test<float>(num_anchors, {0, 0}, rules, nan);
        test<float>(num_anchors, {0, 40}, rules, nan);
        test<float>(num_anchors, {0, 3, 3, 20}, rules, nan);
        test<float>(num_anchors, {0, 3, 3, 20}, rules, nan, true);
        test<double>(num_anchors, {0, 1, 12}, rules, nan);
      }
    }
    test<float>(40, {0, 255, 512, 770}, rules, true);  // around the size of a tile
  }
  // Enough blocks that the CPU kernel loads each once for all images.
  const int64_t many = 128 * 8 * std::max(1u, std::thread::hardware_concurrency()) + 3;
  test<float>(std::min<int64_t>(many, 1 << 16), {0, 1, 3}, 3, true);
  test_offsets();
  return check::result();
}
