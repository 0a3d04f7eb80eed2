// SPDX-License-Identifier: Apache-2.0
#include <algorithm>

#include "common/channel_block.h"
#include "common/isa.h"
#include "common/roi_threads.h"
#include "roi_pool/roi_pool.h"
#include "roi_pool/roi_pool_channels.h"
#include "roi_pool/roi_pool_interleaved.h"
#include "roi_pool/roi_pool_plan.h"
#include "roi_pool/roi_pool_turned.h"

namespace pydet {
namespace cpu {
namespace {

// RoIs a task, at most.
constexpr int64_t kRois = 512;

template <class A>
int64_t threads_of(const RoiPoolParams<A>& params) {
  return roi_threads(params, params.height * params.width);
}

// Channels of [B, C, H, W] a task.
template <class A>
int64_t turned_block() {
  return vector_bytes(active_isa()) / static_cast<int64_t>(sizeof(A));
}

// The RoIs [begin, end) of a plan and the block of channels from `channel` on.
template <class T>
PoolPiece<T> piece_of(const RoiPoolParams<acc_t<T>>& params, const PooledRoi* begin,
                      const PooledRoi* end, int64_t channel, const T* input) {
  const int64_t lanes = std::min(turned_block<acc_t<T>>(), params.channels - channel);
  return {&params, begin, end, channel, lanes, input};
}

template <class T>
void pool_interleaved(const RoiPoolParams<acc_t<T>>& params, const T* input, const T* values,
                      T* out) {
  using A = acc_t<T>;
  const RoiPoolPlan<A> plan(params);
  parallel_tasks<PoolScratch<A>>(
      threads_of(params), params.num_rois, [&](PoolScratch<A>& work, int64_t task) {
        run_for_isa<InterleavedForward, T>(&params, plan.at(task), input, values, &work, out);
      });
}

template <class T>
void pool_planar(const RoiPoolParams<acc_t<T>>& params, const T* input, const T* values, T* out) {
  using A = acc_t<T>;
  const RoiPoolPlan<A> plan(params);
  const int64_t block = turned_block<A>(), blocks = (params.channels + block - 1) / block;
  const int64_t chunks = (params.num_rois + kRois - 1) / kRois;
  // Tasks that read the same channels follow each other.
  parallel_tasks<PoolWorkspace<T>>(
      threads_of(params), blocks * chunks, [&](PoolWorkspace<T>& work, int64_t task) {
        const int64_t begin = task % chunks * kRois, end = std::min(begin + kRois, params.num_rois);
        const int64_t channel = task / chunks * block;
        const PoolPiece<T> piece = piece_of(params, plan.at(begin), plan.at(end), channel, input);
        run_for_isa<TurnedForward, T>(&piece, values, &work, out);
      });
}

template <class T>
void backward_interleaved(const RoiPoolParams<acc_t<T>>& params, const T* input, const T* grad_out,
                          acc_t<T>* grad_input) {
  using A = acc_t<T>;
  constexpr int64_t kFilled = 1 << 16;
  const RoiPoolPlan<A> plan(params);
  const int64_t map = params.height * params.width * params.channels;
  const int64_t threads = threads_of(params);
  // As many channels at a time as leave a task for each thread: a cell's lie side by side.
  const int64_t tasks = (threads + params.batch - 1) / std::max<int64_t>(1, params.batch);
  constexpr int64_t kLeast = 64 / sizeof(A);
  const int64_t block = (params.channels + tasks * kLeast - 1) / (tasks * kLeast) * kLeast;
  const int64_t blocks = (params.channels + block - 1) / block;
  parallel_for(params.batch * map, kFilled, [&](int64_t begin, int64_t end) {
    std::fill(grad_input + begin, grad_input + end, A(0));
  });
  parallel_tasks<PoolScratch<A>>(
      threads, params.batch * blocks, [&](PoolScratch<A>& work, int64_t task) {
        const int64_t image = task / blocks, first = task % blocks * block;
        run_for_isa<InterleavedBackward, T>(&params, plan.begin_of(image), plan.end_of(image),
                                            first, std::min(first + block, params.channels), input,
                                            grad_out, &work, grad_input + image * map);
      });
}

template <class T>
void backward_planar(const RoiPoolParams<acc_t<T>>& params, const T* input, const T* grad_out,
                     acc_t<T>* grad_input) {
  using A = acc_t<T>;
  const RoiPoolPlan<A> plan(params);
  const int64_t block = turned_block<A>(), blocks = (params.channels + block - 1) / block;
  parallel_tasks<PoolWorkspace<T>>(
      threads_of(params), params.batch * blocks, [&](PoolWorkspace<T>& work, int64_t task) {
        const int64_t image = task / blocks, channel = task % blocks * block;
        const PoolPiece<T> piece =
            piece_of(params, plan.begin_of(image), plan.end_of(image), channel, input);
        run_for_isa<TurnedBackward, T>(
            &piece, grad_out, &work,
            grad_input + piece.offset(image, params.height * params.width));
      });
}

template <class T>
void pool_all(const RoiPoolParams<acc_t<T>>& params, const T* input, const T* values, T* out) {
  params.channels_last ? pool_interleaved(params, input, values, out)
                       : pool_planar(params, input, values, out);
}

}  // namespace

template <class T>
void roi_pool(const RoiPoolParams<acc_t<T>>& params, const T* input, T* out) {
  pool_all<T>(params, input, nullptr, out);
}

template <class T>
void roi_pool_gather(const RoiPoolParams<acc_t<T>>& params, const T* input, const T* values,
                     T* out) {
  pool_all<T>(params, input, values, out);
}

template <class T>
void roi_pool_backward(const RoiPoolParams<acc_t<T>>& params, const T* input, const T* grad_out,
                       acc_t<T>* grad_input) {
  params.channels_last ? backward_interleaved(params, input, grad_out, grad_input)
                       : backward_planar(params, input, grad_out, grad_input);
}

template void roi_pool(const RoiPoolParams<float>&, const float*, float*);
template void roi_pool(const RoiPoolParams<double>&, const double*, double*);
template void roi_pool(const RoiPoolParams<float>&, const Half*, Half*);
template void roi_pool(const RoiPoolParams<float>&, const BFloat16*, BFloat16*);

template void roi_pool_gather(const RoiPoolParams<float>&, const float*, const float*, float*);
template void roi_pool_gather(const RoiPoolParams<double>&, const double*, const double*, double*);
template void roi_pool_gather(const RoiPoolParams<float>&, const Half*, const Half*, Half*);
template void roi_pool_gather(const RoiPoolParams<float>&, const BFloat16*, const BFloat16*,
                              BFloat16*);

template void roi_pool_backward(const RoiPoolParams<float>&, const float*, const float*, float*);
template void roi_pool_backward(const RoiPoolParams<double>&, const double*, const double*,
                                double*);
template void roi_pool_backward(const RoiPoolParams<float>&, const Half*, const Half*, float*);
template void roi_pool_backward(const RoiPoolParams<float>&, const BFloat16*, const BFloat16*,
                                float*);

}  // namespace cpu
}  // namespace pydet
