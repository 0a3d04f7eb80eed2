// SPDX-License-Identifier: Apache-2.0
// The one macro of the project: marks the functions that CPU loops and CUDA kernels share.
#pragma once

#if defined(__CUDACC__)
#define PYDET_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define PYDET_HOST_DEVICE inline
#endif
