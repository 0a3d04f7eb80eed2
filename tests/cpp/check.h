// SPDX-License-Identifier: Apache-2.0
// The few lines of a test framework that the torch-free tests need: nothing to install, so the
// sanitizers can run them anywhere.
#pragma once

#include <cstdio>
#include <cstdlib>

namespace check {

inline int failures = 0;

inline void that(bool condition, const char* text, const char* file, int line) {
  if (condition) return;
  std::fprintf(stderr, "%s:%d: failed: %s\n", file, line, text);
  ++failures;
}

// The exit code of a test program.
inline int result() {
  if (failures == 0) std::puts("all checks passed");
  return failures == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}

}  // namespace check

#define CHECK(condition) check::that((condition), #condition, __FILE__, __LINE__)
