// SPDX-License-Identifier: Apache-2.0
// The emulation of CUDA itself: correct kernels give correct results under every schedule, and each
// kind of mistake is noticed. `test_emulation NAME` runs one kernel with that mistake, which must
// not end well.
#include <sys/wait.h>
#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

#include "check.h"
#include "cuda_runtime.h"

namespace {

constexpr int kThreads = 96;

// Sum of a block's values, by shared memory and barriers.
__global__ void block_sum(int64_t count, const int* values, int* sums, bool forget_barrier) {
  __shared__ int parts[kThreads];
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  parts[threadIdx.x] = i < count ? values[i] : 0;
  if (!forget_barrier) __syncthreads();
  if (threadIdx.x == 0) {
    int sum = 0;
    for (int part : parts) sum += part;
    sums[blockIdx.x] = sum;
  }
  __syncthreads();
}

// The same by warp operations and an atomic.
__global__ void warp_sum(int64_t count, const int* values, int* sum) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  int value = i < count ? values[i] : 0;
  for (int step = 16; step > 0; step /= 2) value += __shfl_down_sync(~0u, value, step);
  if (threadIdx.x % 32 == 0) atomicAdd(sum, value);
}

__global__ void ballots(unsigned int* results) {
  const unsigned int odd = __ballot_sync(~0u, threadIdx.x % 2);
  const int other = __shfl_xor_sync(~0u, static_cast<int>(threadIdx.x), 1);
  if (__all_sync(~0u, other == static_cast<int>(threadIdx.x ^ 1))) results[threadIdx.x] = odd;
}

__global__ void half_at_the_barrier() {
  if (threadIdx.x % 2 == 0) __syncwarp();
  if (threadIdx.x % 2 == 1) __syncthreads();
}

__global__ void write_beyond(int* values) { values[threadIdx.x + 1] = 1; }

void sums_are_right(uint64_t seed) {
  emulation::set_seed(seed);
  std::vector<int> values(1000), sums(11);
  int64_t wanted = 0;
  for (size_t i = 0; i < values.size(); ++i) wanted += values[i] = static_cast<int>(i * i % 101);
  pydet::cuda::launch(block_sum, 11, kThreads, 0, nullptr, 1000, values.data(), sums.data(), false);
  int64_t total = 0;
  for (int sum : sums) total += sum;
  CHECK(total == wanted);
  int sum = 0;
  pydet::cuda::launch(warp_sum, 11, kThreads, 0, nullptr, 1000, values.data(), &sum);
  CHECK(sum == wanted);
  std::vector<unsigned int> results(64);
  pydet::cuda::launch(ballots, 1, 64, 0, nullptr, results.data());
  for (unsigned int result : results) CHECK(result == 0xaaaaaaaau);
}

// A missing barrier gives a wrong sum under some schedule.
bool race_is_seen() {
  std::vector<int> values(kThreads, 1), sums(1);
  for (uint64_t seed = 0; seed < 20; ++seed) {
    emulation::set_seed(seed);
    pydet::cuda::launch(block_sum, 1, kThreads, 0, nullptr, kThreads, values.data(), sums.data(),
                        true);
    if (sums[0] != kThreads) return true;
  }
  return false;
}

int make(const std::string& mistake) {
  std::vector<int> values(kThreads, 1);
  if (mistake == "divergent_barrier") pydet::cuda::launch(half_at_the_barrier, 1, 64, 0, nullptr);
  if (mistake == "out_of_bounds") {
    pydet::cuda::launch(write_beyond, 1, kThreads, 0, nullptr, values.data());
  }
  if (mistake == "race_with_the_right_sum") {
    // Each thread adds the same, stale or fresh, so only the thread sanitizer can tell.
    std::vector<int> zeros(kThreads), sums(1);
    for (int i = 0; i < 2; ++i) {
      pydet::cuda::launch(block_sum, 1, kThreads, 0, nullptr, kThreads, zeros.data(), sums.data(),
                          true);
    }
  }
  if (mistake == "race") return race_is_seen() ? EXIT_FAILURE : EXIT_SUCCESS;
  return EXIT_SUCCESS;
}

// Runs this program with a mistake and tells whether it failed.
bool fails(const char* program, const char* mistake) {
  std::fflush(nullptr);
  const pid_t child = fork();
  if (child == 0) {
    std::freopen("/dev/null", "w", stderr);
    execl(program, program, mistake, static_cast<char*>(nullptr));
    _exit(EXIT_SUCCESS);
  }
  int status = 0;
  waitpid(child, &status, 0);
  return status != 0;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc > 1) return make(argv[1]);
  for (uint64_t seed = 0; seed < 3; ++seed) sums_are_right(seed);
  CHECK(!fails(argv[0], "nothing"));
  CHECK(fails(argv[0], "race"));
  CHECK(fails(argv[0], "divergent_barrier"));
#if defined(__SANITIZE_THREAD__)
  CHECK(fails(argv[0], "race_with_the_right_sum"));
#endif
#if defined(__SANITIZE_ADDRESS__)
  CHECK(fails(argv[0], "out_of_bounds"));
#endif
  pydet::cuda::launch(half_at_the_barrier, 1, 2048, 0, nullptr);
  CHECK(cudaGetLastError() == cudaErrorInvalidConfiguration);
  CHECK(cudaGetLastError() == cudaSuccess);
  return check::result();
}
