// SPDX-License-Identifier: Apache-2.0
// The emulated CUDA kernel against the CPU kernel (which the Python tests compare with the
// definition): the same bits of boxes and scores.
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include "check.h"
#include "common/fusion.h"
#include "device.h"
#include "weighted_boxes_fusion/weighted_boxes_fusion.h"

namespace {

using device::in;
using device::out;
using device::scratch;

using pydet::FusionParams;

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

template <class T>
std::vector<T> converted(const std::vector<float>& values) {
  std::vector<T> result(values.size());
  for (size_t i = 0; i < values.size(); ++i) pydet::store(&result[i], values[i]);
  return result;
}

template <class T>
bool same_bits(const std::vector<T>& a, const std::vector<T>& b) {
  if (a.size() != b.size()) return false;
  for (size_t i = 0; i < a.size(); ++i) {
    const auto x = pydet::load(&a[i]), y = pydet::load(&b[i]);
    if (x != y && !(std::isnan(x) && std::isnan(y))) return false;
  }
  return true;
}

template <class T>
void test(int64_t batch, int64_t n, int64_t max_output, uint32_t size, bool by_class, bool flag) {
  const FusionParams params{batch, n, max_output, 0.5, 3, 3.5, flag, !flag};
  const Case c = random_case(batch * n, size, static_cast<uint32_t>(n));
  const std::vector<T> boxes = converted<T>(c.boxes), scores = converted<T>(c.scores);
  const int64_t* idxs = by_class ? c.idxs.data() : nullptr;
  std::vector<int64_t> keep(batch * max_output, -2), counts(batch, -2);
  std::vector<T> fused(4 * batch * n), fused_scores(keep.size());
  pydet::cpu::weighted_boxes_fusion(params, boxes.data(), scores.data(), idxs, fused.data(),
                                    keep.data(), fused_scores.data(), counts.data());
  std::vector<int64_t> cuda_keep(keep.size(), -3), cuda_counts(batch, -3);
  std::vector<T> cuda_fused(fused.size()), cuda_scores(keep.size());
  size_t bytes = 0;
  CHECK(pydet::cuda::weighted_boxes_fusion_workspace_bytes<T>(params, &bytes) == nullptr);
  // Nothing may depend on what the workspace holds before.
  std::vector<uint64_t> workspace((bytes + 7) / 8, 0xa5a5a5a5a5a5a5a5u);
  CHECK(pydet::cuda::weighted_boxes_fusion(
            params, in(boxes).data(), in(scores).data(), in(idxs, batch * n).data(),
            out(cuda_fused).data(), out(cuda_keep).data(), out(cuda_scores).data(),
            out(cuda_counts).data(), scratch(workspace).data(), nullptr) == nullptr);
  CHECK(cuda_keep == keep);
  CHECK(cuda_counts == counts);
  CHECK(same_bits(cuda_fused, fused));
  CHECK(same_bits(cuda_scores, fused_scores));
}

void test_cluster() {
  auto cluster = pydet::Cluster<float>::of(4, {0, 0, 8, 8}, 0.75f);
  cluster.add({0, 0, 8, 10}, 0.25f);
  CHECK(cluster.founder == 4 && cluster.count == 2);
  CHECK(cluster.fused.y2 == 8.5f);
  CHECK(cluster.score(false, false, 1, 1.0f) == 0.5f);
  CHECK(cluster.score(true, false, 4, 2.0f) == 0.375f);  // the best over the greatest weight
  CHECK(cluster.score(false, true, 1, 1.0f) == 1.0f);
}

}  // namespace

int main() {
  test_cluster();
  for (int64_t n : {0, 1, 33, 100}) {
    for (bool flag : {false, true}) {
      test<float>(2, n, n, 60, flag, flag);
      test<double>(1, n, 9, 30, !flag, flag);
      test<pydet::Half>(1, n, n / 2, 100, flag, !flag);
      test<pydet::BFloat16>(3, n, n + 3, 30, true, flag);
    }
  }
  test<float>(0, 5, 5, 60, true, true);
  test<float>(2, 40, 0, 60, true, true);
  test<float>(1, 400, 400, 2000, false, true);  // more clusters than threads
  return check::result();
}
