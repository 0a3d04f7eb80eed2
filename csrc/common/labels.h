// SPDX-License-Identifier: Apache-2.0
// What stands for no class and for no ground truth, in labels and in matched indices.
#pragma once

#include <cstdint>

namespace pydet {

constexpr int64_t kBackground = -1;
constexpr int64_t kIgnored = -2;

}  // namespace pydet
