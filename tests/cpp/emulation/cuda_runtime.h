// SPDX-License-Identifier: Apache-2.0
// Runs CUDA kernels on the CPU, for tests where there is no GPU. This folder stands before the real
// CUDA headers in the include path, so that the host compiler builds the same, unchanged .cu files:
// a block's threads are fibres, which change places at barriers and warp operations in an order
// drawn from a seed.
//
// What finds the mistakes are the sanitizers, which are told of the fibres:
//  - thread sanitizer: two threads of a block that touch one word without a barrier in between, one
//    of them writing (a switch of fibres orders nothing: only barriers, warp operations and the end
//    of a kernel do);
//  - address sanitizer: any access outside of a buffer (each allocated with new or in a vector)
//    or of an array in shared memory;
//  - undefined-behaviour sanitizer: vector loads of memory that is not aligned;
//  - here: threads at different barriers or at none, warp operations without their lanes, launches
//    that no GPU takes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__
#define __shared__ static
#define __restrict__ __restrict

struct uint3 {
  unsigned int x, y, z;
};
struct dim3 {
  unsigned int x, y, z;
  constexpr dim3(unsigned int x = 1, unsigned int y = 1, unsigned int z = 1) : x(x), y(y), z(z) {}
};

struct CUstream_st;
using cudaStream_t = CUstream_st*;
enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidConfiguration = 9 };

namespace emulation {

// Of the fibre that runs; set at each switch.
extern uint3 thread_index, block_index;
extern dim3 block_size, grid_size;

// Draws the order of blocks and threads from now on.
void set_seed(uint64_t seed);

// Runs body once for each thread of the grid. Reports name the function at `kernel`, or where that
// is not known its signature.
void launch(const void* kernel, const char* signature, dim3 grid, dim3 block, size_t shared_bytes,
            const std::function<void()>& body);

// `file` and `line` tell one barrier of a kernel from another.
void block_barrier(const char* file, int line);
void* dynamic_shared_memory();

// All lanes of `mask` meet; each gives `value` and gets the values of all 32 lanes (those outside
// of the mask are 0).
const uint64_t* exchange(unsigned int mask, uint64_t value);
int lane();

}  // namespace emulation

#define threadIdx emulation::thread_index
#define blockIdx emulation::block_index
#define blockDim emulation::block_size
#define gridDim emulation::grid_size
constexpr int warpSize = 32;

cudaError_t cudaGetLastError();
const char* cudaGetErrorString(cudaError_t error);
cudaError_t cudaMemsetAsync(void* pointer, int value, size_t bytes, cudaStream_t stream = nullptr);
enum cudaMemcpyKind { cudaMemcpyDeviceToDevice = 3 };
cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind kind,
                            cudaStream_t stream = nullptr);

inline void __syncthreads(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
  emulation::block_barrier(file, line);
}
// Three barriers, so that no thread counts before the count is zero or after it is read.
inline int __syncthreads_count(int predicate, const char* file = __builtin_FILE(),
                               int line = __builtin_LINE()) {
  static int count;  // of the block that runs
  emulation::block_barrier(file, line);
  __atomic_store_n(&count, 0, __ATOMIC_RELAXED);
  emulation::block_barrier(file, line);
  if (predicate != 0) __atomic_fetch_add(&count, 1, __ATOMIC_RELAXED);
  emulation::block_barrier(file, line);
  return __atomic_load_n(&count, __ATOMIC_RELAXED);
}
inline void __syncwarp(unsigned int mask = ~0u) { emulation::exchange(mask, 0); }
inline void __threadfence() {}
inline void __threadfence_block() {}

// --- warp operations ---------------------------------------------------------------------------

namespace emulation {
template <class T>
T from_lane(const uint64_t* values, int lane) {
  static_assert(sizeof(T) <= sizeof(uint64_t), "wider than a shuffle");
  T result;
  __builtin_memcpy(&result, &values[lane], sizeof(T));
  return result;
}
template <class T>
uint64_t to_word(T value) {
  uint64_t word = 0;
  __builtin_memcpy(&word, &value, sizeof(T));
  return word;
}
}  // namespace emulation

template <class T>
T __shfl_sync(unsigned int mask, T value, int source, int width = 32) {
  const int lane = emulation::lane();
  const uint64_t* values = emulation::exchange(mask, emulation::to_word(value));
  return emulation::from_lane<T>(values, (lane & ~(width - 1)) + (source & (width - 1)));
}
template <class T>
T __shfl_xor_sync(unsigned int mask, T value, int lane_mask, int width = 32) {
  const int lane = emulation::lane(), source = lane ^ lane_mask;
  const uint64_t* values = emulation::exchange(mask, emulation::to_word(value));
  return emulation::from_lane<T>(values,
                                 (source & ~(width - 1)) <= (lane & ~(width - 1)) ? source : lane);
}
template <class T>
T __shfl_down_sync(unsigned int mask, T value, unsigned int delta, int width = 32) {
  const int lane = emulation::lane(), source = lane + static_cast<int>(delta);
  const uint64_t* values = emulation::exchange(mask, emulation::to_word(value));
  return emulation::from_lane<T>(values, source / width == lane / width ? source : lane);
}
template <class T>
T __shfl_up_sync(unsigned int mask, T value, unsigned int delta, int width = 32) {
  const int lane = emulation::lane(), source = lane - static_cast<int>(delta);
  const uint64_t* values = emulation::exchange(mask, emulation::to_word(value));
  return emulation::from_lane<T>(values,
                                 source >= 0 && source / width == lane / width ? source : lane);
}
inline unsigned int __ballot_sync(unsigned int mask, int predicate) {
  const uint64_t* values = emulation::exchange(mask, predicate != 0);
  unsigned int result = 0;
  for (int i = 0; i < 32; ++i) result |= static_cast<unsigned int>(values[i] != 0) << i;
  return result;
}
template <class T>
unsigned int __match_any_sync(unsigned int mask, T value) {
  const uint64_t word = emulation::to_word(value);
  const uint64_t* values = emulation::exchange(mask, word);
  unsigned int result = 0;
  for (int i = 0; i < 32; ++i) result |= static_cast<unsigned int>(values[i] == word) << i;
  return result & mask;
}
inline int __any_sync(unsigned int mask, int predicate) {
  return __ballot_sync(mask, predicate) != 0;
}
inline int __all_sync(unsigned int mask, int predicate) {
  return __ballot_sync(mask, predicate) == mask;
}
inline unsigned int __activemask() { return 1u << emulation::lane(); }

// --- atomics -----------------------------------------------------------------------------------

namespace emulation {
template <class T, class Change>
T atomic_change(T* address, const Change& change) {
  T old;
  __atomic_load(address, &old, __ATOMIC_RELAXED);
  T next = change(old);
  while (
      !__atomic_compare_exchange(address, &old, &next, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
    next = change(old);
  }
  return old;
}
template <class T>
struct Same {  // keeps the value's type out of the deduction, as CUDA's overloads do
  using type = T;
};
}  // namespace emulation

template <class T>
T atomicAdd(T* address, typename emulation::Same<T>::type value) {
  return emulation::atomic_change(address, [=](T old) { return static_cast<T>(old + value); });
}
template <class T>
T atomicMax(T* address, typename emulation::Same<T>::type value) {
  return emulation::atomic_change(address, [=](T old) { return old > value ? old : value; });
}
template <class T>
T atomicMin(T* address, typename emulation::Same<T>::type value) {
  return emulation::atomic_change(address, [=](T old) { return old < value ? old : value; });
}
template <class T>
T atomicOr(T* address, typename emulation::Same<T>::type value) {
  return emulation::atomic_change(address, [=](T old) { return static_cast<T>(old | value); });
}
template <class T>
T atomicAnd(T* address, typename emulation::Same<T>::type value) {
  return emulation::atomic_change(address, [=](T old) { return static_cast<T>(old & value); });
}
template <class T>
T atomicExch(T* address, typename emulation::Same<T>::type value) {
  return emulation::atomic_change(address, [=](T) { return value; });
}
template <class T>
T atomicCAS(T* address, typename emulation::Same<T>::type compare,
            typename emulation::Same<T>::type value) {
  return emulation::atomic_change(address, [=](T old) { return old == compare ? value : old; });
}

// --- integer and bit intrinsics ----------------------------------------------------------------

inline int __popc(unsigned int x) { return __builtin_popcount(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __ffsll(long long x) { return __builtin_ffsll(x); }
inline int __clz(int x) { return x == 0 ? 32 : __builtin_clz(static_cast<unsigned int>(x)); }
inline int __clzll(long long x) {
  return x == 0 ? 64 : __builtin_clzll(static_cast<unsigned long long>(x));
}
template <class T>
T __ldg(const T* address) {
  return *address;
}
inline unsigned int __float_as_uint(float x) {
  return static_cast<unsigned int>(emulation::to_word(x));
}
inline int __float_as_int(float x) { return static_cast<int>(__float_as_uint(x)); }
inline float __uint_as_float(unsigned int x) {
  float result;
  __builtin_memcpy(&result, &x, sizeof(result));
  return result;
}
inline float __int_as_float(int x) { return __uint_as_float(static_cast<unsigned int>(x)); }
inline long long __double_as_longlong(double x) {
  return static_cast<long long>(emulation::to_word(x));
}
inline double __longlong_as_double(long long x) {
  double result;
  __builtin_memcpy(&result, &x, sizeof(result));
  return result;
}

// --- what pydet's launch.cuh gives in a real build ----------------------------------------------

namespace pydet {
namespace cuda {

template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared_bytes, CUstream_st*,
            Arguments... arguments) {
  emulation::launch(reinterpret_cast<const void*>(kernel), __PRETTY_FUNCTION__, grid, block,
                    shared_bytes, [=] { kernel(static_cast<Parameters>(arguments)...); });
}

}  // namespace cuda
}  // namespace pydet
