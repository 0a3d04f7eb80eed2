// SPDX-License-Identifier: Apache-2.0
// One binary for every x86-64: a CPU kernel is written once, as a struct with a static `run`,
// compiled for each instruction set and chosen when it is called. No function is compiled for a set
// outside of the entry points below (and the two of lane_bits.h that bear its name), so the linker
// can never pick an AVX-512 copy of an inline function for a machine without it.
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

// The same with Kernel<T, isa>, for kernels that know what they are compiled for.
template <template <class, Isa> class Kernel, class T, class... Args>
void run_for_isa(Args... args) {
#if defined(__x86_64__) && defined(__GNUC__)
  switch (active_isa()) {
    case Isa::kAvx512:
      return run_avx512<Kernel<T, Isa::kAvx512>>(args...);
    case Isa::kAvx2:
      return run_avx2<Kernel<T, Isa::kAvx2>>(args...);
    case Isa::kPortable:
      break;
  }
#endif
  Kernel<T, Isa::kPortable>::run(args...);
}

// The bytes of the vectors that such kernels take (lanes.h).
constexpr int vector_bytes(Isa isa) { return isa == Isa::kAvx512 ? 64 : 32; }

}  // namespace pydet
