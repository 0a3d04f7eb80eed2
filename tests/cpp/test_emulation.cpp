// SPDX-License-Identifier: Apache-2.0
// The emulation of CUDA itself: correct kernels give correct results under every schedule, and each
// kind of mistake is noticed, with kernel, block and thread. `test_emulation NAME` runs one kernel
// with that mistake, which must not end well.
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

#include "check.h"
#include "common/launch.cuh"
#include "common/pack.cuh"
#include "cuda_runtime.h"

namespace {

using pydet::cuda::launch;
using Pack = pydet::cuda::Pack<float>;

constexpr int kThreads = 96;

// --- kernels that are right ---------------------------------------------------------------------

// Sum of a block's values, by shared memory and barriers; wrong without the first of them.
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
  const unsigned int alike = __match_any_sync(~0u, threadIdx.x % 2);
  const bool right =
      other == static_cast<int>(threadIdx.x ^ 1) && alike == (threadIdx.x % 2 == 1 ? odd : ~odd);
  if (__all_sync(~0u, right)) results[threadIdx.x] = odd;
}

// How many threads lie below a bound that each call raises.
__global__ void block_counts(int calls, int* counts) {
  for (int call = 0; call < calls; ++call) {
    const int below = __syncthreads_count(static_cast<int>(threadIdx.x) < 40 * call);
    counts[call * static_cast<int>(blockDim.x) + static_cast<int>(threadIdx.x)] = below;
  }
}

// Lanes of each half warp turned by one, and what stands `1` above within eighths.
__global__ void shuffles(double* turned, int* from_above) {
  const int lane = static_cast<int>(threadIdx.x % 32);
  turned[threadIdx.x] = __shfl_sync(~0u, 0.5 * lane, lane + 1, 16);
  from_above[threadIdx.x] = __shfl_up_sync(~0u, lane, 1, 8);
}

// Turns a block's values round by dynamic shared memory; a grid of three dimensions.
__global__ void reverse(int* values) {
  int* shared = static_cast<int*>(emulation::dynamic_shared_memory());
  const unsigned int count = blockDim.x * blockDim.y;
  const unsigned int i = threadIdx.x + blockDim.x * threadIdx.y;
  int* mine = values + count * (blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z));
  shared[i] = mine[i];
  __syncthreads();
  mine[i] = shared[count - 1 - i];
}

__global__ void atomics(unsigned long long* highest, int* lowest, unsigned int* bits, double* sum) {
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  atomicMax(highest, static_cast<unsigned long long>(i) << 33);
  atomicMin(lowest, -i);
  atomicOr(bits, 1u << i % 32);
  atomicAdd(sum, 0.5);
}

__global__ void copy_packs(const float* from, float* to) {
  reinterpret_cast<Pack*>(to)[threadIdx.x] = reinterpret_cast<const Pack*>(from)[threadIdx.x];
}

// --- kernels with a mistake ---------------------------------------------------------------------

__global__ void half_at_the_barrier() {
  if (threadIdx.x % 2 == 0) __syncwarp();
  if (threadIdx.x % 2 == 1) __syncthreads();
}

__global__ void two_barriers() {
  if (threadIdx.x < 32) {
    __syncthreads();
  } else {
    __syncthreads();
  }
}

__global__ void lanes_have_left() {
  if (threadIdx.x % 32 >= 16) return;
  __syncwarp();
}

__global__ void mask_without_me() { __ballot_sync(1u, 1); }

__global__ void write_beyond(int* values) { values[threadIdx.x + 1] = 1; }

__global__ void read_before(const int* values, int* result) {
  if (threadIdx.x == 7) *result = values[static_cast<int>(threadIdx.x) - 8];
}

__global__ void write_beyond_shared(int* result) {
  __shared__ int values[kThreads];
  values[threadIdx.x + (threadIdx.x == 5 ? kThreads : 0)] = 1;
  __syncthreads();
  result[threadIdx.x] = values[threadIdx.x];
}

__global__ void write_beyond_dynamic(int count) {
  static_cast<int*>(emulation::dynamic_shared_memory())[threadIdx.x == 5 ? count : 0] = 1;
}

// Lanes pass a value through shared memory and rely on running in step.
__global__ void forgotten_syncwarp(int* result) {
  __shared__ int values[32];
  values[threadIdx.x] = 1;
  result[threadIdx.x] = values[threadIdx.x ^ 1];
}

void sums_are_right(uint64_t seed) {
  emulation::set_seed(seed);
  std::vector<int> values(1000), sums(11);
  int64_t wanted = 0;
  for (size_t i = 0; i < values.size(); ++i) wanted += values[i] = static_cast<int>(i * i % 101);
  launch(block_sum, 11, kThreads, 0, nullptr, 1000, values.data(), sums.data(), false);
  int64_t total = 0;
  for (int sum : sums) total += sum;
  CHECK(total == wanted);
  int sum = 0;
  launch(warp_sum, 11, kThreads, 0, nullptr, 1000, values.data(), &sum);
  CHECK(sum == wanted);
}

void the_rest_is_right(uint64_t seed) {
  emulation::set_seed(seed);
  std::vector<unsigned int> results(64);
  launch(ballots, 1, 64, 0, nullptr, results.data());
  for (unsigned int result : results) CHECK(result == 0xaaaaaaaau);

  std::vector<int> counts(3 * kThreads);
  launch(block_counts, 1, kThreads, 0, nullptr, 3, counts.data());
  for (int i = 0; i < 3 * kThreads; ++i) CHECK(counts[i] == 40 * (i / kThreads));

  std::vector<double> turned(64);
  std::vector<int> from_above(64);
  launch(shuffles, 1, 64, 0, nullptr, turned.data(), from_above.data());
  for (int i = 0; i < 64; ++i) {
    const int lane = i % 32;
    CHECK(turned[i] == 0.5 * (lane / 16 * 16 + (lane + 1) % 16));
    CHECK(from_above[i] == (lane % 8 == 0 ? lane : lane - 1));
  }

  // Two launches on one stream come one after the other: twice turned is as before.
  constexpr int kBlocks = 2 * 3 * 2, kBlock = 7 * 5;
  std::vector<int> values(kBlocks * kBlock);
  for (size_t i = 0; i < values.size(); ++i) values[i] = static_cast<int>(i);
  const std::vector<int> before = values;
  for (int k = 0; k < 2; ++k) {
    launch(reverse, dim3(2, 3, 2), dim3(7, 5), kBlock * sizeof(int), nullptr, values.data());
    CHECK(values[0] == (k == 0 ? kBlock - 1 : 0));
  }
  CHECK(values == before);

  unsigned long long highest = 0;
  int lowest = 0;
  unsigned int bits = 0;
  double sum = 0;
  launch(atomics, 3, 50, 0, nullptr, &highest, &lowest, &bits, &sum);
  CHECK(highest == 149ull << 33 && lowest == -149 && bits == ~0u && sum == 75);

  std::vector<Pack> from(5), to(5);
  for (int i = 0; i < 20; ++i) from[i / 4].values[i % 4] = static_cast<float>(i);
  launch(copy_packs, 1, 5, 0, nullptr, from[0].values, to[0].values);
  for (int i = 0; i < 20; ++i) CHECK(to[i / 4].values[i % 4] == static_cast<float>(i));
}

// A missing barrier gives a wrong sum under some schedule.
bool race_is_seen() {
  std::vector<int> values(kThreads, 1), sums(1);
  for (uint64_t seed = 0; seed < 20; ++seed) {
    emulation::set_seed(seed);
    launch(block_sum, 1, kThreads, 0, nullptr, kThreads, values.data(), sums.data(), true);
    if (sums[0] != kThreads) return true;
  }
  return false;
}

int make(const std::string& mistake) {
  std::vector<int> values(kThreads), results(kThreads);
  float* floats = reinterpret_cast<float*>(values.data());
  int *in = values.data(), *out = results.data();
  if (mistake == "half_at_the_barrier") launch(half_at_the_barrier, 1, 64, 0, nullptr);
  if (mistake == "two_barriers") launch(two_barriers, 1, 64, 0, nullptr);
  if (mistake == "lanes_have_left") launch(lanes_have_left, 1, 64, 0, nullptr);
  if (mistake == "mask_without_me") launch(mask_without_me, 1, 64, 0, nullptr);
  if (mistake == "write_beyond") launch(write_beyond, 1, kThreads, 0, nullptr, out);
  if (mistake == "read_before") launch(read_before, 1, kThreads, 0, nullptr, in, out);
  if (mistake == "write_beyond_shared") launch(write_beyond_shared, 1, kThreads, 0, nullptr, out);
  if (mistake == "write_beyond_dynamic") {
    for (int count : {40, 10})  // less than the launch before
      launch(write_beyond_dynamic, 1, count, count * sizeof(int), nullptr, count);
  }
  // An offset of 4 bytes.
  if (mistake == "copy_packs") launch(copy_packs, 1, 5, 0, nullptr, floats + 1, floats + 33);
  if (mistake == "forgotten_syncwarp") launch(forgotten_syncwarp, 1, 32, 0, nullptr, out);
  // All sums are 0, with barriers or without.
  if (mistake == "block_sum") launch(block_sum, 1, kThreads, 0, nullptr, kThreads, in, out, true);
  if (mistake == "wrong_sum") return race_is_seen() ? EXIT_FAILURE : EXIT_SUCCESS;
  return EXIT_SUCCESS;
}

// What this program says on standard error when it runs a mistake, after its exit status.
std::string outcome(const char* program, const std::string& mistake) {
  std::fflush(nullptr);
  int ends[2];
  if (pipe(ends) != 0) return "";
  const pid_t child = fork();
  if (child == 0) {
    dup2(ends[1], STDERR_FILENO);
    close(ends[0]);
    execl(program, program, mistake.c_str(), static_cast<char*>(nullptr));
    _exit(EXIT_SUCCESS);
  }
  close(ends[1]);
  std::string said;
  char buffer[4096];
  for (ssize_t count; (count = read(ends[0], buffer, sizeof(buffer))) > 0;)
    said.append(buffer, static_cast<size_t>(count));
  close(ends[0]);
  int status = 0;
  waitpid(child, &status, 0);
  return (status == 0 ? "succeeded\n" : "failed\n") + said;
}

// The kernel of that name fails, and the report has its block and thread, and its name where there
// is a sanitizer to look it up.
bool is_caught(const char* program, const std::string& kernel) {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  const bool named = true;
#else
  const bool named = false;
#endif
  const std::string said = outcome(program, kernel);
  const auto has = [&](const std::string& text) { return said.find(text) != std::string::npos; };
  return said.rfind("failed", 0) == 0 && (!named || has(kernel + "(")) &&
         has("block (0, 0, 0), thread (");
}

// The thread sanitizer reports at the end, with the line and the function.
[[maybe_unused]] bool is_reported(const char* program, const std::string& kernel) {
  const std::string said = outcome(program, kernel);
  return said.rfind("failed", 0) == 0 && said.find("data race") != std::string::npos &&
         said.find(kernel) != std::string::npos;
}

bool is_refused(dim3 grid, dim3 block, size_t shared_bytes) {
  launch(half_at_the_barrier, grid, block, shared_bytes, nullptr);
  const bool refused = cudaGetLastError() == cudaErrorInvalidConfiguration;
  return refused && cudaGetLastError() == cudaSuccess;  // an error is told once
}

}  // namespace

int main(int argc, char** argv) {
  if (argc > 1) return make(argv[1]);
  for (uint64_t seed = 0; seed < 3; ++seed) {
    sums_are_right(seed);
    the_rest_is_right(seed);
  }
  const char* program = argv[0];
  CHECK(outcome(program, "nothing") == "succeeded\n");
  CHECK(outcome(program, "wrong_sum").rfind("failed", 0) == 0);
  for (const char* kernel :
       {"half_at_the_barrier", "two_barriers", "lanes_have_left", "mask_without_me"}) {
    CHECK(is_caught(program, kernel));
  }
#if defined(__SANITIZE_ADDRESS__)
  for (const char* kernel : {"write_beyond", "read_before", "write_beyond_shared",
                             "write_beyond_dynamic", "copy_packs"}) {
    CHECK(is_caught(program, kernel));
  }
#endif
#if defined(__SANITIZE_THREAD__)
  for (const char* kernel : {"block_sum", "forgotten_syncwarp"}) {
    CHECK(is_reported(program, kernel));
  }
#endif
  CHECK(is_refused(1, 2048, 0) && is_refused(1, 0, 0) && is_refused(1, dim3(1, 1, 65), 0));
  CHECK(is_refused(0, 32, 0) && is_refused(dim3(1, 65536), 32, 0) && is_refused(1u << 31, 32, 0));
  CHECK(is_refused(1, 32, (48 << 10) + 1));
  return check::result();
}
