// SPDX-License-Identifier: Apache-2.0
// CPU threads. OpenMP where the compiler has it: the extension then shares torch's own pool and
// obeys torch.set_num_threads. Plain threads otherwise (thread sanitizer, which does not see into
// OpenMP's runtime).
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <exception>
#include <thread>
#include <vector>

#if defined(_OPENMP)
#include <omp.h>
#endif

namespace pydet {

inline int64_t num_threads() {
#if defined(_OPENMP)
  return omp_in_parallel() ? 1 : omp_get_max_threads();
#else
  return std::max<int64_t>(1, std::thread::hardware_concurrency());
#endif
}

// Calls body(worker, begin, end) on pieces of `grain` indices that cover [0, count), on at most
// `workers` threads; pieces of one worker run one after the other, so that they may share its
// memory. The pieces are the same whatever the number of threads, so a body that writes only its
// own piece gives the same bits on any machine. Pieces are taken from a counter, so a slow one
// holds nobody up. What a piece throws (std::bad_alloc, say) is thrown here when all have stopped;
// of several the first.
template <class Body>
void parallel_workers(int64_t workers, int64_t count, int64_t grain, const Body& body) {
  if (count <= 0) return;
  grain = std::max<int64_t>(1, grain);
  const int64_t pieces = (count + grain - 1) / grain;
  const int64_t threads = std::min({num_threads(), workers, pieces});
  if (threads <= 1) {
    for (int64_t begin = 0; begin < count; begin += grain)
      body(0, begin, std::min(begin + grain, count));
    return;
  }
  std::atomic<int64_t> next{0}, next_worker{0};
  std::atomic_flag failed = ATOMIC_FLAG_INIT;
  std::exception_ptr error;
  const auto work = [&] {
    const int64_t worker = next_worker++;
    try {
      for (int64_t piece = next++; piece < pieces; piece = next++) {
        body(worker, piece * grain, std::min((piece + 1) * grain, count));
      }
    } catch (...) {
      if (!failed.test_and_set()) error = std::current_exception();
      next = pieces;  // the others stop, too
    }
  };
#if defined(_OPENMP)
#pragma omp parallel num_threads(static_cast<int>(threads))
  work();
#else
  std::vector<std::thread> others;
  for (int64_t i = 1; i < threads; ++i) others.emplace_back(work);
  work();
  for (std::thread& thread : others) thread.join();
#endif
  if (error) std::rethrow_exception(error);
}

// The same without memory of their own, on all threads: calls body(begin, end).
template <class Body>
void parallel_for(int64_t count, int64_t grain, const Body& body) {
  parallel_workers(num_threads(), count, grain,
                   [&](int64_t, int64_t begin, int64_t end) { body(begin, end); });
}

}  // namespace pydet
