// SPDX-License-Identifier: Apache-2.0
// What a piece of a parallel loop throws comes out of the loop, once, and the next loop works.
#include <atomic>
#include <new>
#include <stdexcept>

#include "check.h"
#include "common/parallel_for.h"

int main() {
  for (const int64_t count : {1, 100}) {
    for (int64_t bad = 0; bad < count; bad += 33) {
      int caught = 0;
      try {
        pydet::parallel_for(count, 1, [&](int64_t begin, int64_t) {
          if (begin >= bad) throw std::bad_alloc();
        });
      } catch (const std::bad_alloc&) {
        ++caught;
      }
      CHECK(caught == 1);
    }
    std::atomic<int64_t> sum{0};
    pydet::parallel_for(count, 1, [&](int64_t begin, int64_t) { sum += begin; });
    CHECK(sum == count * (count - 1) / 2);
  }
  return check::result();
}
