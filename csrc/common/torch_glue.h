// SPDX-License-Identifier: Apache-2.0
// Besides loss_glue.h the only header with torch in it: what <op>_torch.cpp needs to turn tensors
// into pointers. It includes single ATen headers, because torch/extension.h alone takes half a
// minute to compile.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <c10/core/DeviceGuard.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <c10/util/Exception.h>
#include <torch/csrc/utils/pybind.h>

#include <cstdint>
#include <optional>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "common/scalar.h"

struct CUstream_st;

namespace pydet {

// Calls body(T{}) with the element type that `dtype` stores. Ops check dtypes in Python with a
// sentence for the user; this check only protects memory.
template <class Body>
auto dispatch_floating(at::ScalarType dtype, const char* op, const Body& body) {
  switch (dtype) {
    case at::kFloat:
      return body(float{});
    case at::kDouble:
      return body(double{});
    case at::kHalf:
      return body(Half{});
    case at::kBFloat16:
      return body(BFloat16{});
    default:
      TORCH_CHECK_TYPE(false, op, ": tensors must be float16, bfloat16, float32 or float64, got ",
                       dtype);
  }
}

template <class T>
const T* input(const at::Tensor& tensor) {
  return static_cast<const T*>(tensor.const_data_ptr());
}

template <class T>
T* output(at::Tensor& tensor) {
  return static_cast<T*>(tensor.mutable_data_ptr());
}

// at::empty for results that may be large. On the CPU a block of more than 32 MiB comes fresh from
// the system each time, and the faults of its 4 KiB pages cost more than the arithmetic of most
// ops; asked for before anything is written, huge pages make that several times faster.
inline at::Tensor empty_large(at::IntArrayRef shape, const at::TensorOptions& options) {
  at::Tensor tensor = at::empty(shape, options);
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr size_t kFreshFrom = size_t{32} << 20, kPage = 4096;
  if (tensor.is_cpu() && tensor.nbytes() > kFreshFrom) {
    const uintptr_t begin = reinterpret_cast<uintptr_t>(tensor.mutable_data_ptr());
    const uintptr_t first = (begin + kPage - 1) / kPage * kPage;
    // Only advice: where the system refuses, the pages stay small.
    madvise(reinterpret_cast<void*>(first), begin + tensor.nbytes() - first, MADV_HUGEPAGE);
  }
#endif
  return tensor;
}

// Whether a map [N, C, H, W] has its channels next to each other in memory, and not its columns.
inline bool prefers_channels_last(const at::Tensor& map) {
  return map.is_contiguous(at::MemoryFormat::ChannelsLast) && !map.is_contiguous();
}

inline at::Tensor laid_out(const at::Tensor& map, bool channels_last) {
  return map.contiguous(channels_last ? at::MemoryFormat::ChannelsLast
                                      : at::MemoryFormat::Contiguous);
}

// An empty map of `shape` [N, C, H, W].
inline at::Tensor empty_map(at::IntArrayRef shape, bool channels_last,
                            const at::TensorOptions& options) {
  if (!channels_last) return empty_large(shape, options);
  return empty_large({shape[0], shape[2], shape[3], shape[1]}, options).permute({0, 3, 1, 2});
}

// Refuses what is not input [B, C, H, W] with rois [R, 5], which are in the dtype of the
// arithmetic: double for double, else float.
inline void check_roi_inputs(const char* op, const at::Tensor& input, const at::Tensor& rois,
                             int64_t pooled_height, int64_t pooled_width) {
  TORCH_CHECK_VALUE(input.dim() == 4, op, ": input must have shape [B, C, H, W], got ",
                    input.sizes());
  TORCH_CHECK_VALUE(rois.dim() == 2 && rois.size(1) == 5, op, ": rois must have shape [R, 5], got ",
                    rois.sizes());
  const at::ScalarType wanted = input.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  TORCH_CHECK_TYPE(rois.scalar_type() == wanted, op, ": rois must be ", wanted, ", got ",
                   rois.scalar_type());
  TORCH_CHECK_VALUE(rois.device() == input.device(), op, ": rois must be on the device of input (",
                    input.device(), "), got ", rois.device());
  TORCH_CHECK_VALUE(pooled_height >= 1 && pooled_width >= 1, op,
                    ": output_size must be at least 1, got ", pooled_height, " x ", pooled_width);
}

// Refuses a tensor that does not hold [.., 4] boxes.
inline void check_boxes(const char* op, const char* name, const at::Tensor& boxes) {
  TORCH_CHECK_VALUE(boxes.dim() >= 2 && boxes.size(-1) == 4, op, ": ", name,
                    " must have shape [.., N, 4], got ", boxes.sizes());
}

// Refuses tensors of different devices or dtypes.
inline void check_alike(const char* op, const char* name, const at::Tensor& tensor,
                        const char* other_name, const at::Tensor& other) {
  TORCH_CHECK_TYPE(tensor.scalar_type() == other.scalar_type(), op, ": ", name,
                   " must have the dtype of ", other_name, " (", other.scalar_type(), "), got ",
                   tensor.scalar_type());
  TORCH_CHECK_VALUE(tensor.device() == other.device(), op, ": ", name, " must be on the device of ",
                    other_name, " (", other.device(), "), got ", tensor.device());
}

// The inputs of all suppression ops: boxes [.., N, 4], scores [.., N], classes [.., N] or none.
inline void check_suppression_inputs(const char* op, const at::Tensor& boxes,
                                     const at::Tensor& scores,
                                     const std::optional<at::Tensor>& idxs) {
  check_boxes(op, "boxes", boxes);
  TORCH_CHECK_VALUE(boxes.size(-2) <= INT32_MAX, op,
                    ": boxes must hold at most 2147483647 boxes an image, got ", boxes.size(-2));
  const at::IntArrayRef shape = boxes.sizes().slice(0, boxes.dim() - 1);
  check_alike(op, "scores", scores, "boxes", boxes);
  TORCH_CHECK_VALUE(scores.sizes() == shape, op, ": scores must have shape ", shape, ", got ",
                    scores.sizes());
  if (!idxs.has_value()) return;
  TORCH_CHECK_TYPE(idxs->scalar_type() == at::kLong, op, ": idxs must be int64, got ",
                   idxs->scalar_type());
  TORCH_CHECK_VALUE(idxs->device() == boxes.device(), op, ": idxs must be on ", boxes.device(),
                    ", got ", idxs->device());
  TORCH_CHECK_VALUE(idxs->sizes() == shape, op, ": idxs must have shape ", shape, ", got ",
                    idxs->sizes());
}

// Suppression looks only at boxes that an IoU above such a threshold may hide.
inline void check_iou_threshold(const char* op, double threshold) {
  TORCH_CHECK_VALUE(threshold >= 0 && threshold <= 1, op, ": iou_threshold must be in [0, 1], got ",
                    threshold);
}

// The current stream of the tensor's device. Through c10's own interface, so that the glue needs no
// CUDA header.
inline CUstream_st* current_stream(const at::Tensor& tensor) {
  const c10::impl::VirtualGuardImpl guard(tensor.device().type());
  return static_cast<CUstream_st*>(guard.getStream(tensor.device()).native_handle());
}

inline void check_launch(const char* op, const char* error) {
  TORCH_CHECK(error == nullptr, op, ": the CUDA kernel could not be launched: ", error);
}

// Whether dispatch_device takes on_cpu() for it.
inline bool runs_on_cpu([[maybe_unused]] const at::Tensor& tensor) {
#if defined(PYDET_EMULATED)
  return false;
#else
  return tensor.is_cpu();
#endif
}

// Runs on_cpu() or on_cuda(stream) for the device of `tensor`, with that device current. A launcher
// returns the text of its error or nullptr.
template <class OnCpu, class OnCuda>
void dispatch_device(const char* op, const at::Tensor& tensor, [[maybe_unused]] const OnCpu& on_cpu,
                     [[maybe_unused]] const OnCuda& on_cuda) {
#if defined(PYDET_EMULATED)
  // The tests' build (tests/cpp/emulated_extension.py): CUDA kernels that the CPU runs.
  check_launch(op, on_cuda(nullptr));
  return;
#endif
  if (runs_on_cpu(tensor)) {
    on_cpu();
    return;
  }
#if defined(PYDET_WITH_CUDA)
  if (tensor.is_cuda()) {
    const c10::DeviceGuard guard(tensor.device());
    check_launch(op, on_cuda(current_stream(tensor)));
    return;
  }
#endif
  TORCH_CHECK_NOT_IMPLEMENTED(false, op, ": pydet was built without kernels for the device ",
                              tensor.device());
}

}  // namespace pydet
