// SPDX-License-Identifier: Apache-2.0
// Memory for the launchers of pydet::cuda, by the pointer of the host's. Emulated kernels work on
// that itself, where the sanitizers guard it. On a GPU (PYDET_ON_GPU) it is copied there, and back
// when the object dies: in CHECK(launcher(in(a).data(), out(b).data()) == nullptr) behind the
// check.
#pragma once

#include <cstdint>
#include <vector>

#if defined(PYDET_ON_GPU)
#include <cuda_runtime.h>

#include <cstdio>
#include <cstdlib>
#endif

namespace device {

enum class Use { kIn, kOut, kScratch };

#if defined(PYDET_ON_GPU)
constexpr int kSkipped = 77;  // what CTest takes for a test that was skipped

inline void require(cudaError_t error) {
  if (error == cudaSuccess) return;
  std::fprintf(stderr, "CUDA: %s\n", cudaGetErrorString(error));
  std::exit(EXIT_FAILURE);
}

// Ends a program that has no GPU before its tests begin.
inline const bool exists = [] {
  int count = 0;
  if (cudaGetDeviceCount(&count) == cudaSuccess && count > 0) return true;
  std::puts("skipped: no CUDA device");
  std::exit(kSkipped);
}();
#endif

template <class T, Use kUse>
class Array {
 public:
  Array(const Array&) = delete;
  Array& operator=(const Array&) = delete;

#if defined(PYDET_ON_GPU)
  Array(T* host, int64_t count) : host_(host), bytes_(count * static_cast<int64_t>(sizeof(T))) {
    if (host == nullptr) return;
    // Unaligned where the host's is, and nothing behind the end: the memory checker sees the
    // borders.
    const size_t offset = reinterpret_cast<uintptr_t>(host) % 16;
    require(cudaMalloc(&memory_, offset + bytes_));
    data_ = reinterpret_cast<T*>(static_cast<char*>(memory_) + offset);
    // What is in scratch memory must not matter, so it stays as it comes.
    if (kUse == Use::kScratch) return;
    require(cudaMemcpy(static_cast<char*>(memory_) + offset, host, bytes_, cudaMemcpyHostToDevice));
  }
  ~Array() {
    if constexpr (kUse == Use::kOut) {
      if (host_ != nullptr) require(cudaMemcpy(host_, data_, bytes_, cudaMemcpyDeviceToHost));
    } else {
      require(cudaDeviceSynchronize());
    }
    require(cudaFree(memory_));
  }
  T* data() const { return data_; }

 private:
  T* host_;
  size_t bytes_;
  void* memory_ = nullptr;
  T* data_ = nullptr;
#else
  Array(T* host, int64_t) : data_(host) {}
  T* data() const { return data_; }

 private:
  T* data_;
#endif
};

// What a kernel reads; null is null there, too.
template <class T>
Array<const T, Use::kIn> in(const T* host, int64_t count) {
  return {host, count};
}
template <class T>
Array<const T, Use::kIn> in(const std::vector<T>& host) {
  return {host.data(), static_cast<int64_t>(host.size())};
}

// What it writes, or changes.
template <class T>
Array<T, Use::kOut> out(T* host, int64_t count) {
  return {host, count};
}
template <class T>
Array<T, Use::kOut> out(std::vector<T>& host) {
  return {host.data(), static_cast<int64_t>(host.size())};
}

// Its workspace.
template <class T>
Array<T, Use::kScratch> scratch(T* host, int64_t count) {
  return {host, count};
}
template <class T>
Array<T, Use::kScratch> scratch(std::vector<T>& host) {
  return {host.data(), static_cast<int64_t>(host.size())};
}

}  // namespace device
