// SPDX-License-Identifier: Apache-2.0
// For files whose numbers decide nothing: a * b + c may be one instruction there, with one rounding
// instead of two, where the instruction set has it (isa.h). It has to be the first include: all
// that comes after is compiled so. Elsewhere every instruction set gives the same bits.
#pragma once

// Only where no function has fused instructions but those of isa.h: the linker may take an inline
// function of these files for all others.
#if !defined(__x86_64__)
#elif defined(__clang__)
#pragma STDC FP_CONTRACT ON
#elif defined(__GNUC__)
#pragma GCC optimize("fp-contract=fast")
#endif
