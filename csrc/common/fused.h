// SPDX-License-Identifier: Apache-2.0
// For files whose numbers decide nothing: a * b + c may be one instruction there, with one rounding
// instead of two, where the instruction set has it. It has to be the first include; all that comes
// after is compiled so. Elsewhere every instruction set gives the same bits.
#pragma once

#if defined(__clang__)
#pragma STDC FP_CONTRACT ON
#elif defined(__GNUC__)
#pragma GCC optimize("fp-contract=fast")
#endif
