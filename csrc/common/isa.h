// SPDX-License-Identifier: Apache-2.0
// One binary for every x86-64: a CPU kernel is written once, as a struct with a static `run`,
// compiled for each instruction set and chosen when it is called. No function is compiled for a set
// outside of the entry points below, so the linker can never pick an AVX-512 copy of an inline
// function for a machine without it.
#pragma once

namespace pydet {

enum class Isa { kPortable = 0, kAvx2 = 1, kAvx512 = 2 };

// The best set that this machine runs; the environment variable PYDET_CPU_ISA=portable|avx2|avx512
// lowers it. Read once, at the first call.
Isa active_isa();
const char* isa_name(Isa isa);

#if defined(__x86_64__) && defined(__GNUC__)
template <class Kernel, class... Args>
__attribute__((target("avx2,f16c,fma"), flatten, noinline)) void run_avx2(Args... args) {
  Kernel::run(args...);
}

template <class Kernel, class... Args>
#if defined(__clang__)
__attribute__((target("avx512f,avx512vl,avx512bw,avx512dq"), flatten, noinline))
#else
__attribute__((target("avx512f,avx512vl,avx512bw,avx512dq,prefer-vector-width=512"), flatten,
               noinline))
#endif
void run_avx512(Args... args) {
  Kernel::run(args...);
}
#endif

// Calls Kernel::run(args...) compiled for active_isa(). Arguments are passed by value: pointers and
// sizes.
template <class Kernel, class... Args>
void run_on_best_isa(Args... args) {
#if defined(__x86_64__) && defined(__GNUC__)
  switch (active_isa()) {
    case Isa::kAvx512:
      return run_avx512<Kernel>(args...);
    case Isa::kAvx2:
      return run_avx2<Kernel>(args...);
    case Isa::kPortable:
      break;
  }
#endif
  Kernel::run(args...);
}

// The bytes of the vectors of run_on_widest.
inline int widest_vector() { return active_isa() == Isa::kAvx512 ? 64 : 32; }

// The same with Kernel<64> or Kernel<32>, by the bytes of the largest registers.
template <template <int> class Kernel, class... Args>
void run_on_widest(Args... args) {
#if defined(__x86_64__) && defined(__GNUC__)
  if (active_isa() == Isa::kAvx512) return run_avx512<Kernel<64>>(args...);
#endif
  run_on_best_isa<Kernel<32>>(args...);
}

}  // namespace pydet
