// SPDX-License-Identifier: Apache-2.0
// The names of the overlaps in Python. Only <op>_torch.cpp files include it.
#pragma once

#include <string>

#include "common/box_overlap.h"
#include "common/torch_glue.h"

namespace pydet {

inline Overlap overlap_of(const char* op, const std::string& name) {
  if (name == "iou") return Overlap::kIou;
  if (name == "generalized") return Overlap::kGeneralized;
  if (name == "distance") return Overlap::kDistance;
  TORCH_CHECK_VALUE(name == "complete", op,
                    ": overlap must be iou, generalized, distance or complete, got ", name);
  return Overlap::kComplete;
}

}  // namespace pydet
