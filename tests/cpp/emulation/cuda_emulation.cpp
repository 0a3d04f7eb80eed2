// SPDX-License-Identifier: Apache-2.0
#include <ucontext.h>

#include <algorithm>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <numeric>
#include <random>
#include <utility>
#include <vector>

#include "cuda_runtime.h"

#if defined(PYDET_EMULATION_TSAN)
#include <sanitizer/tsan_interface.h>
#endif
#if defined(PYDET_EMULATION_TSAN) || defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

namespace emulation {

uint3 thread_index, block_index;
dim3 block_size, grid_size;

namespace {

constexpr size_t kStackBytes = 256 << 10;
constexpr int kWarp = 32;

uint64_t chosen_seed() {
  const char* seed = std::getenv("PYDET_EMULATION_SEED");
  return seed == nullptr ? 0 : std::strtoull(seed, nullptr, 10);
}

std::mt19937_64 order(chosen_seed());
cudaError_t last_error = cudaSuccess;

// Where a fibre goes on. The compiler's own jumps are used from then on, since swapcontext asks the
// kernel for the signals that are blocked, and the address sanitizer clears a whole stack at each.
using Place = void* [5];

// (Not marked as without return: before a call that is, the sanitizer takes all frames for ended.)
#if defined(__SANITIZE_ADDRESS__)
[[gnu::no_sanitize("address")]]
#endif
[[gnu::noinline, gnu::noipa]] void jump_to(Place& place) {
  __builtin_longjmp(place, 1);
}

// A stack on which one thread of the block after the other runs. The thread sanitizer would take
// what two threads leave on one stack for a race, so there each thread has a fibre of its own.
struct Fibre {
  ucontext_t context;  // where it begins
  Place place;         // where it goes on
  bool begun = false;
  std::unique_ptr<char[]> stack{new char[kStackBytes]};
  struct Thread* thread = nullptr;
};
#if defined(PYDET_EMULATION_TSAN)
constexpr bool kSharedFibres = false;
#else
constexpr bool kSharedFibres = true;
#endif

struct Thread {
  uint3 index;
  Fibre* fibre = nullptr;  // once it has started
  bool finished = false;
  const char* barrier_file = nullptr;  // where it waits for the block
  int barrier_line = 0;
  void* tsan = nullptr;  // made once, because it takes milliseconds; publish and learn order blocks
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
  std::vector<Fibre*> idle;  // fibres without a thread
  std::vector<std::unique_ptr<Thread>> threads;
  std::vector<Thread*> ready;  // that wait for nothing
  std::vector<Warp> warps;
  std::unique_ptr<char[]> shared;  // of exactly the size that the launch asks for
  size_t shared_bytes = 0;
  const std::function<void()>* body = nullptr;
  const void* kernel = nullptr;
  const char* signature = "";
  size_t size = 0;  // threads
  Thread* running = nullptr;
  Thread* next = nullptr;  // chosen, but it has a fibre of its own
  Place scheduler;
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

// The name of the kernel, where a sanitizer is there to look it up.
const char* kernel_name() {
#if defined(__SANITIZE_ADDRESS__) || defined(PYDET_EMULATION_TSAN)
  static char name[1024];
  // An address within the function, as a return address is.
  __sanitizer_symbolize_pc(static_cast<char*>(const_cast<void*>(block.kernel)) + 1, "%f", name,
                           sizeof(name));
  return name;
#else
  return block.signature;
#endif
}

void report(const char* what) {
  std::fprintf(stderr, "%s: block (%u, %u, %u), thread (%u, %u, %u): %s\n", kernel_name(),
               block_index.x, block_index.y, block_index.z, thread_index.x, thread_index.y,
               thread_index.z, what);
  if (const char* test = std::getenv("PYTEST_CURRENT_TEST"))
    std::fprintf(stderr, "in the test %s\n", test);
}

[[noreturn]] void fail(const char* what) {
  report(what);
  block.running = nullptr;  // all is said
  std::abort();
}

#if defined(__SANITIZE_ADDRESS__)
// The sanitizers tell the line; this tells whose it was. The one of undefined behaviour has no
// callback, so it shall abort.
[[maybe_unused]] const bool deaths_are_reported = [] {
  const auto callback = [] {
    if (block.running != nullptr) report("stopped by the sanitizer");
    block.running = nullptr;
  };
  __sanitizer_set_death_callback(callback);
  static void (*const tell)() = callback;
  std::signal(SIGABRT, [](int) { tell(); });
  return true;
}();
extern "C" const char* __ubsan_default_options() { return "abort_on_error=1"; }
#endif

size_t linear(const uint3& index) {
  return index.x + static_cast<size_t>(block_size.x) *
                       (index.y + static_cast<size_t>(block_size.y) * index.z);
}

void to_scheduler() {
  Fibre* self = block.running->fibre;
#if defined(__SANITIZE_ADDRESS__)
  void* fake_stack = nullptr;
  __sanitizer_start_switch_fiber(&fake_stack, block.scheduler_stack, block.scheduler_stack_bytes);
#endif
#if defined(PYDET_EMULATION_TSAN)
  __tsan_switch_to_fiber(block.scheduler_tsan, __tsan_switch_to_fiber_no_sync);
#endif
  if (__builtin_setjmp(self->place) == 0) jump_to(block.scheduler);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(fake_stack, &block.scheduler_stack, &block.scheduler_stack_bytes);
#endif
}

// The next thread by the schedule, or nullptr where all wait.
Thread* choose() {
  if (block.next != nullptr) return std::exchange(block.next, nullptr);
  if (block.ready.empty()) return nullptr;
  std::swap(block.ready[order() % block.ready.size()], block.ready.back());
  Thread* thread = block.ready.back();
  block.ready.pop_back();
  return thread;
}

void make_current(Thread* thread, Fibre* fibre) {
  thread->fibre = fibre;
  fibre->thread = block.running = thread;
  thread_index = thread->index;
}

// Runs its thread, and goes on with the next one in place as long as that has not started: most
// threads never wait, and a switch of fibres costs more than they do.
void fibre_main() {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(nullptr, &block.scheduler_stack, &block.scheduler_stack_bytes);
#endif
  for (;;) {
    Fibre* self = block.running->fibre;
    learn(&block.body);
    (*block.body)();
    publish(&block.active);
    self->thread->finished = true;
    if (kSharedFibres) {
      block.next = choose();
      if (block.next != nullptr && block.next->fibre == nullptr) {
        make_current(std::exchange(block.next, nullptr), self);
        continue;
      }
    }
    if (kSharedFibres) block.idle.push_back(self);
    to_scheduler();
  }
}

void prepare(Fibre* fibre) {
  getcontext(&fibre->context);
  fibre->context.uc_stack.ss_sp = fibre->stack.get();
  fibre->context.uc_stack.ss_size = kStackBytes;
  fibre->context.uc_link = nullptr;
  makecontext(&fibre->context, fibre_main, 0);
}

Fibre* idle_fibre() {
  if (block.idle.empty()) {
    block.fibres.push_back(std::make_unique<Fibre>());
    prepare(block.fibres.back().get());
    return block.fibres.back().get();
  }
  Fibre* fibre = block.idle.back();
  block.idle.pop_back();
  return fibre;
}

void resume(Thread* thread) {
  make_current(thread, thread->fibre == nullptr ? idle_fibre() : thread->fibre);
  Fibre* fibre = thread->fibre;
#if defined(__SANITIZE_ADDRESS__)
  void* fake_stack = nullptr;
  __sanitizer_start_switch_fiber(&fake_stack, fibre->stack.get(), kStackBytes);
#endif
#if defined(PYDET_EMULATION_TSAN)
  __tsan_switch_to_fiber(thread->tsan, __tsan_switch_to_fiber_no_sync);
#endif
  if (__builtin_setjmp(block.scheduler) == 0) {
    if (std::exchange(fibre->begun, true)) jump_to(fibre->place);
    setcontext(&fibre->context);
  }
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(fake_stack, nullptr, nullptr);
#endif
}

void start_threads() {
  while (block.threads.size() < block.size) {
    block.threads.push_back(std::make_unique<Thread>());
#if defined(PYDET_EMULATION_TSAN)
    block.threads.back()->tsan = __tsan_create_fiber(0);
#endif
  }
  for (size_t i = 0; i < block.size; ++i) {
    Thread* thread = block.threads[i].get();
    const unsigned int x = static_cast<unsigned int>(i % block_size.x);
    const unsigned int y = static_cast<unsigned int>(i / block_size.x % block_size.y);
    thread->index = {x, y, static_cast<unsigned int>(i / block_size.x / block_size.y)};
    // The stack of a thread of the block before, where fibres are not shared.
    thread->fibre = kSharedFibres ? nullptr : thread->fibre;
    thread->finished = false;
    thread->barrier_file = nullptr;
    block.ready.push_back(thread);
  }
}

// None can go on: either all that are left wait at one barrier, or they wait in vain. Returns
// whether any is left.
bool pass_barrier() {
  const Thread* first = nullptr;
  size_t alive = 0;
  for (size_t i = 0; i < block.size; ++i) {
    Thread* thread = block.threads[i].get();
    if (thread->finished) continue;
    ++alive;
    if (thread->barrier_file == nullptr) continue;
    block.ready.push_back(thread);
    if (first == nullptr) first = thread;
    if (thread->barrier_line != first->barrier_line ||
        std::strcmp(thread->barrier_file, first->barrier_file) != 0) {
      fail("some threads wait at one barrier and some at another");
    }
  }
  if (block.ready.size() != alive) {
    fail("some threads wait in a warp operation for lanes that are elsewhere");
  }
  for (Thread* thread : block.ready) thread->barrier_file = nullptr;
  return alive != 0;
}

void run_block() {
  block.warps.assign((block.size + kWarp - 1) / kWarp, Warp());
  // Shared memory holds nothing that a kernel may rely on.
  std::memset(block.shared.get(), 0xa5, block.shared_bytes);
  start_threads();
  publish(&block.body);
  do {
    while (Thread* thread = choose()) resume(thread);
  } while (pass_barrier());
  learn(&block.active);
  block.running = nullptr;
}

}  // namespace

void set_seed(uint64_t seed) { order.seed(seed); }

void launch(const void* kernel, const char* signature, dim3 grid, dim3 threads, size_t shared_bytes,
            const std::function<void()>& body) {
  const size_t count = static_cast<size_t>(threads.x) * threads.y * threads.z;
  constexpr unsigned int kMaxGridX = 0x7fffffff, kMaxGrid = 65535;
  if (count == 0 || count > 1024 || threads.z > 64 || grid.x == 0 || grid.y == 0 || grid.z == 0 ||
      grid.x > kMaxGridX || grid.y > kMaxGrid || grid.z > kMaxGrid || shared_bytes > (48 << 10)) {
    last_error = cudaErrorInvalidConfiguration;
    return;
  }
  block.body = &body;
  block.kernel = kernel;
  block.signature = signature;
  block.size = count;
  block.shared.reset(new char[shared_bytes]);
  block.shared_bytes = shared_bytes;
  block_size = threads;
  grid_size = grid;
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

void block_barrier(const char* file, int line) {
  publish(&block.shared);
  block.running->barrier_file = file;
  block.running->barrier_line = line;
  to_scheduler();
  learn(&block.shared);
}

void* dynamic_shared_memory() { return block.shared.get(); }

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
    if (first + i >= block.size) {
      mask &= ~(1u << i);
    } else if (block.threads[first + i]->finished) {
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
      if ((mask >> i & 1) != 0 && i != me) block.ready.push_back(block.threads[first + i].get());
    }
  } else {
    to_scheduler();
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
