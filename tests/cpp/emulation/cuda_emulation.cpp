// SPDX-License-Identifier: Apache-2.0
#include <ucontext.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <numeric>
#include <random>
#include <vector>

#include "cuda_runtime.h"

#if defined(PYDET_EMULATION_TSAN)
#include <sanitizer/tsan_interface.h>
#endif
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

namespace emulation {

uint3 thread_index, block_index;
dim3 block_size, grid_size;

namespace {

constexpr size_t kStackBytes = 256 << 10;
constexpr int kWarp = 32;

std::mt19937_64 order(0);
cudaError_t last_error = cudaSuccess;

struct Fibre {
  ucontext_t context;
  std::unique_ptr<char[]> stack{new char[kStackBytes]};
  uint3 index;
  bool finished, waits_for_block;
  void* tsan = nullptr;
};

// A meeting of the lanes of a warp. Two sets of values: a lane can be one meeting ahead of the
// others, never two.
struct Warp {
  unsigned int arrived[2] = {0, 0};
  unsigned int left[2] = {0, 0};
  uint64_t values[2][kWarp] = {};
  uint64_t meetings[kWarp] = {};  // that each lane has been to
};

struct Block {
  std::vector<std::unique_ptr<Fibre>> fibres;
  std::vector<Fibre*> ready;  // that wait for nothing
  std::vector<Warp> warps;
  std::vector<char> shared;
  const std::function<void()>* body = nullptr;
  const char* kernel = "";
  size_t threads = 0;
  Fibre* running = nullptr;
  ucontext_t scheduler;
  void* scheduler_tsan = nullptr;
  const void* scheduler_stack = nullptr;
  size_t scheduler_stack_bytes = 0;
  bool active = false;
} block;

// The sanitizers see what one thread wrote before a meeting point as known to all who pass it.
void publish(void* point) {
#if defined(PYDET_EMULATION_TSAN)
  __tsan_release(point);
#else
  (void)point;
#endif
}
void learn(void* point) {
#if defined(PYDET_EMULATION_TSAN)
  __tsan_acquire(point);
#else
  (void)point;
#endif
}

void report(const char* what) {
  std::fprintf(stderr, "%s: block (%u, %u, %u), thread (%u, %u, %u): %s\n", block.kernel,
               block_index.x, block_index.y, block_index.z, thread_index.x, thread_index.y,
               thread_index.z, what);
}

[[noreturn]] void fail(const char* what) {
  report(what);
  std::abort();
}

#if defined(__SANITIZE_ADDRESS__)
// The address sanitizer tells the line; this tells whose it was.
[[maybe_unused]] const bool death_is_reported = [] {
  __sanitizer_set_death_callback([] {
    if (block.running != nullptr) report("stopped by the sanitizer");
  });
  return true;
}();
#endif

size_t linear(const uint3& index) {
  return index.x + static_cast<size_t>(block_size.x) *
                       (index.y + static_cast<size_t>(block_size.y) * index.z);
}

void to_scheduler(bool last) {
  Fibre* self = block.running;
  (void)last;
#if defined(__SANITIZE_ADDRESS__)
  void* fake_stack = nullptr;
  __sanitizer_start_switch_fiber(last ? nullptr : &fake_stack, block.scheduler_stack,
                                 block.scheduler_stack_bytes);
#endif
#if defined(PYDET_EMULATION_TSAN)
  __tsan_switch_to_fiber(block.scheduler_tsan, __tsan_switch_to_fiber_no_sync);
#endif
  swapcontext(&self->context, &block.scheduler);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(fake_stack, &block.scheduler_stack, &block.scheduler_stack_bytes);
#endif
}

void fibre_main() {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(nullptr, &block.scheduler_stack, &block.scheduler_stack_bytes);
#endif
  learn(&block.body);
  (*block.body)();
  publish(&block.active);
  block.running->finished = true;
  to_scheduler(true);
}

void resume(Fibre* fibre) {
  block.running = fibre;
  thread_index = fibre->index;
#if defined(__SANITIZE_ADDRESS__)
  void* fake_stack = nullptr;
  __sanitizer_start_switch_fiber(&fake_stack, fibre->stack.get(), kStackBytes);
#endif
#if defined(PYDET_EMULATION_TSAN)
  __tsan_switch_to_fiber(fibre->tsan, __tsan_switch_to_fiber_no_sync);
#endif
  swapcontext(&block.scheduler, &fibre->context);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(fake_stack, nullptr, nullptr);
#endif
}

void start(Fibre* fibre, const uint3& index) {
  fibre->index = index;
  fibre->finished = fibre->waits_for_block = false;
#if defined(__SANITIZE_ADDRESS__)
  __asan_unpoison_memory_region(fibre->stack.get(), kStackBytes);
#endif
#if defined(PYDET_EMULATION_TSAN)
  // Made once a fibre, because it takes milliseconds; publish and learn order blocks.
  if (fibre->tsan == nullptr) fibre->tsan = __tsan_create_fiber(0);
#endif
  getcontext(&fibre->context);
  fibre->context.uc_stack.ss_sp = fibre->stack.get();
  fibre->context.uc_stack.ss_size = kStackBytes;
  fibre->context.uc_link = nullptr;
  makecontext(&fibre->context, fibre_main, 0);
}

void run_block() {
  block.warps.assign((block.threads + kWarp - 1) / kWarp, Warp());
  // Shared memory holds nothing that a kernel may rely on.
  std::fill(block.shared.begin(), block.shared.end(), static_cast<char>(0xa5));
  for (size_t i = 0; i < block.threads; ++i) {
    const unsigned int x = static_cast<unsigned int>(i % block_size.x);
    const unsigned int y = static_cast<unsigned int>(i / block_size.x % block_size.y);
    start(block.fibres[i].get(),
          {x, y, static_cast<unsigned int>(i / block_size.x / block_size.y)});
    block.ready.push_back(block.fibres[i].get());
  }
  publish(&block.body);
  for (;;) {
    while (!block.ready.empty()) {
      std::swap(block.ready[order() % block.ready.size()], block.ready.back());
      Fibre* fibre = block.ready.back();
      block.ready.pop_back();
      resume(fibre);
    }
    // None can go on: either all that are left wait at the barrier, or they wait in vain.
    size_t alive = 0;
    for (size_t i = 0; i < block.threads; ++i) {
      Fibre* fibre = block.fibres[i].get();
      if (fibre->finished) continue;
      ++alive;
      if (fibre->waits_for_block) block.ready.push_back(fibre);
      fibre->waits_for_block = false;
    }
    if (alive == 0) break;
    if (block.ready.size() != alive) {
      fail("some threads wait in a warp operation for lanes that are elsewhere");
    }
  }
  learn(&block.active);
  block.running = nullptr;
}

}  // namespace

void set_seed(uint64_t seed) { order.seed(seed); }

void launch(const char* kernel, dim3 grid, dim3 threads, size_t shared_bytes,
            const std::function<void()>& body) {
  const size_t count = static_cast<size_t>(threads.x) * threads.y * threads.z;
  if (count == 0 || count > 1024 || grid.x == 0 || grid.y == 0 || grid.z == 0 || grid.y > 65535 ||
      grid.z > 65535 || shared_bytes > (48 << 10)) {
    last_error = cudaErrorInvalidConfiguration;
    return;
  }
  block.body = &body;
  block.kernel = kernel;
  block.threads = count;
  block.shared.resize(shared_bytes);
  block_size = threads;
  grid_size = grid;
  while (block.fibres.size() < count) block.fibres.push_back(std::make_unique<Fibre>());
#if defined(PYDET_EMULATION_TSAN)
  block.scheduler_tsan = __tsan_get_current_fiber();
#endif
  std::vector<size_t> blocks(static_cast<size_t>(grid.x) * grid.y * grid.z);
  std::iota(blocks.begin(), blocks.end(), size_t{0});
  std::shuffle(blocks.begin(), blocks.end(), order);
  for (size_t i : blocks) {
    block_index = {static_cast<unsigned int>(i % grid.x),
                   static_cast<unsigned int>(i / grid.x % grid.y),
                   static_cast<unsigned int>(i / grid.x / grid.y)};
    run_block();
  }
}

void block_barrier() {
  publish(&block.shared);
  block.running->waits_for_block = true;
  to_scheduler(false);
  learn(&block.shared);
}

void* dynamic_shared_memory() { return block.shared.data(); }

int lane() { return static_cast<int>(linear(thread_index) % kWarp); }

const uint64_t* exchange(unsigned int mask, uint64_t value) {
  const size_t index = linear(thread_index);
  const int me = lane();
  Warp& warp = block.warps[index / kWarp];
  if ((mask >> me & 1) == 0) fail("a warp operation's mask leaves out the lane that calls it");
  const size_t first = index / kWarp * kWarp;
  // Lanes beyond the end of the block do not exist; those that have finished cannot come.
  for (int i = 0; i < kWarp; ++i) {
    if ((mask >> i & 1) == 0) continue;
    if (first + i >= block.threads) {
      mask &= ~(1u << i);
    } else if (block.fibres[first + i]->finished) {
      fail("a warp operation waits for a lane that has finished");
    }
  }
  const int set = static_cast<int>(warp.meetings[me]++ & 1);
  if (warp.arrived[set] == 0) std::memset(warp.values[set], 0, sizeof(warp.values[set]));
  warp.values[set][me] = value;
  warp.arrived[set] |= 1u << me;
  publish(&warp.values[set]);
  if ((warp.arrived[set] & mask) == mask) {
    for (int i = 0; i < kWarp; ++i) {
      if ((mask >> i & 1) != 0 && i != me) block.ready.push_back(block.fibres[first + i].get());
    }
  } else {
    to_scheduler(false);
  }
  learn(&warp.values[set]);
  warp.left[set] |= 1u << me;
  if (warp.left[set] == warp.arrived[set]) warp.left[set] = warp.arrived[set] = 0;
  return warp.values[set];
}

}  // namespace emulation

cudaError_t cudaGetLastError() {
  const cudaError_t error = emulation::last_error;
  emulation::last_error = cudaSuccess;
  return error;
}

const char* cudaGetErrorString(cudaError_t error) {
  return error == cudaSuccess ? "no error" : "invalid configuration argument";
}

cudaError_t cudaMemsetAsync(void* pointer, int value, size_t bytes, cudaStream_t) {
  std::memset(pointer, value, bytes);
  return cudaSuccess;
}

cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind,
                            cudaStream_t) {
  std::memcpy(to, from, bytes);
  return cudaSuccess;
}
