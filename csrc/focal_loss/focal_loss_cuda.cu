// SPDX-License-Identifier: Apache-2.0
#include "common/focal.h"
#include "common/launch.cuh"
#include "focal_loss/focal_loss.h"

namespace pydet {
namespace cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kTile = 1 << 13;  // elements a block takes at a time where nothing is summed

// As many elements as one 128-bit load or store moves.
template <class T>
struct alignas(16) Pack {
  static constexpr int kSize = 16 / sizeof(T);
  T values[kSize];
};

// Where the packs of a call lie: `aligned` if all of them start at a multiple of 16 bytes.
struct Layout {
  int64_t length;  // elements a segment
  int64_t tiles;   // tiles a segment
  int64_t tiles_in_all;
  int tile;  // elements a tile
  bool aligned;
};

// values[k] = p[k] for k < count, 0 beyond.
template <class T>
__device__ void load_pack(const T* p, int count, bool aligned, acc_t<T>* values) {
  constexpr int kSize = Pack<T>::kSize;
  if (aligned && count == kSize) {
    const Pack<T> pack = *reinterpret_cast<const Pack<T>*>(p);
#pragma unroll
    for (int k = 0; k < kSize; ++k) values[k] = load(&pack.values[k]);
  } else {
#pragma unroll
    for (int k = 0; k < kSize; ++k) values[k] = k < count ? load(p + k) : acc_t<T>(0);
  }
}

template <class T>
__device__ void store_pack(T* p, int count, bool aligned, const acc_t<T>* values) {
  constexpr int kSize = Pack<T>::kSize;
  if (aligned && count == kSize) {
    Pack<T> pack;
#pragma unroll
    for (int k = 0; k < kSize; ++k) store(&pack.values[k], values[k]);
    *reinterpret_cast<Pack<T>*>(p) = pack;
  } else {
#pragma unroll
    for (int k = 0; k < kSize; ++k) {
      if (k < count) store(p + k, values[k]);
    }
  }
}

// What a kernel computes for one element.
enum class Mode { kLoss, kGradient, kGradientOfTarget };

template <Mode kMode, int kGamma, class A>
__device__ A of_negative(A x, A gamma) {
  return kMode == Mode::kLoss ? focal_negative<kGamma>(x, gamma)
                              : focal_negative_backward<kGamma>(x, gamma);
}

template <Mode kMode, int kGamma, class A>
__device__ A of_soft(A x, A t, A gamma, const FocalWeights<A>& weights) {
  if (kMode == Mode::kLoss) return focal_soft<kGamma>(x, t, gamma, weights);
  if (kMode == Mode::kGradient) return focal_soft_backward<kGamma>(x, t, gamma, weights);
  return focal_soft_backward_target<kGamma>(x, t, gamma, weights);
}

// The row and column of an element. Most tensors have less than 2^32 elements, and a 32-bit
// division is several times as fast.
struct Place {
  int64_t row;
  uint32_t column;
};

__device__ Place place_of(int64_t element, uint32_t classes) {
  if (element <= UINT32_MAX) {
    const uint32_t e = static_cast<uint32_t>(element), row = e / classes;
    return {row, e - row * classes};
  }
  const int64_t row = element / classes;
  return {row, static_cast<uint32_t>(element - row * classes)};
}

// values[0, count) of the pack that starts `offset` elements after `start`, the place of the tile.
template <Mode kMode, int kGamma, bool kLabels, class T>
__device__ void compute_pack(const FocalLossArgs<T>& args, const Place& start, int64_t element,
                             int offset, int count, bool aligned, acc_t<T>* values) {
  using A = acc_t<T>;
  constexpr int kSize = Pack<T>::kSize;
  const FocalWeights<A> weights = focal_weights<A>(args.alpha);
  const A gamma = static_cast<A>(args.gamma);
  A x[kSize];
  load_pack(args.inputs + element, count, aligned, x);
  if (kLabels) {
    const uint32_t classes = static_cast<uint32_t>(args.num_classes);
    const uint32_t ahead = start.column + static_cast<uint32_t>(offset), rows = ahead / classes;
    int64_t row = start.row + rows;
    uint32_t column = ahead - rows * classes;
    int64_t label = args.labels[row];
#pragma unroll
    for (int k = 0; k < kSize; ++k) {
      const bool positive = label == static_cast<int64_t>(column);
      const A value = of_negative<kMode, kGamma>(positive ? -x[k] : x[k], gamma);
      const A sign = kMode != Mode::kLoss && positive ? A(-1) : A(1);
      values[k] = sign * (positive ? weights.positive : weights.negative) * value;
      if (label < kBackground || label >= static_cast<int64_t>(classes))
        values[k] = label == kIgnored ? A(0) : static_cast<A>(NAN);
      if (++column == classes && k + 1 < count) {
        column = 0;
        label = args.labels[++row];
      }
    }
  } else {
    A t[kSize];
    load_pack(args.targets + element, count, aligned, t);
#pragma unroll
    for (int k = 0; k < kSize; ++k) values[k] = of_soft<kMode, kGamma>(x[k], t[k], gamma, weights);
  }
}

// The sum of `value` over the block, in a fixed order; every thread must call it, thread 0 has it.
template <class A>
__device__ A block_sum(A value) {
  __shared__ A parts[kThreads / 32];
  for (int distance = 16; distance > 0; distance /= 2)
    value += __shfl_down_sync(0xffffffffu, value, distance);
  if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = value;
  __syncthreads();
  A sum = A(0);
  if (threadIdx.x == 0) {
    for (int warp = 0; warp < kThreads / 32; ++warp) sum += parts[warp];
  }
  __syncthreads();  // before the next call writes `parts`
  return sum;
}

// The losses of all elements, or the sum of each tile.
template <class T, int kGamma, bool kLabels>
__global__ void __launch_bounds__(kThreads)
    focal_loss_kernel(FocalLossArgs<T> args, Layout layout, T* loss, double* partials) {
  using A = acc_t<T>;
  constexpr int kSize = Pack<T>::kSize;
  for (int64_t tile = blockIdx.x; tile < layout.tiles_in_all; tile += gridDim.x) {
    const int64_t segment = tile / layout.tiles;
    const int64_t in_segment = (tile - segment * layout.tiles) * layout.tile;
    const int64_t begin = segment * layout.length + in_segment;
    const int size = static_cast<int>(min_of<int64_t>(layout.tile, layout.length - in_segment));
    const Place start =
        kLabels ? place_of(begin, static_cast<uint32_t>(args.num_classes)) : Place{0, 0};
    A sum = A(0);
    for (int i = static_cast<int>(threadIdx.x) * kSize; i < size; i += kThreads * kSize) {
      const int count = min_of(kSize, size - i);
      A values[kSize];
      compute_pack<Mode::kLoss, kGamma, kLabels>(args, start, begin + i, i, count, layout.aligned,
                                                 values);
      if (loss != nullptr) {
        store_pack(loss + begin + i, count, layout.aligned, values);
      } else {
#pragma unroll
        for (int k = 0; k < kSize; ++k) sum += k < count ? values[k] : A(0);
      }
    }
    if (partials != nullptr) {
      sum = block_sum(sum);
      if (threadIdx.x == 0) partials[tile] = static_cast<double>(sum);
    }
  }
}

// sums[segment] = scale * the sum of its partials: a block a segment.
template <class A>
__global__ void __launch_bounds__(kThreads)
    focal_loss_sum_kernel(int64_t segments, int64_t tiles, double scale, const double* partials,
                          A* sums) {
  for (int64_t segment = blockIdx.x; segment < segments; segment += gridDim.x) {
    double sum = 0;
    for (int64_t tile = threadIdx.x; tile < tiles; tile += kThreads)
      sum += partials[segment * tiles + tile];
    sum = block_sum(sum);
    if (threadIdx.x == 0) sums[segment] = static_cast<A>(sum * scale);
  }
}

// The gradient of all elements, from one number for each or from one for the segment.
template <class T, Mode kMode, int kGamma, bool kLabels>
__global__ void __launch_bounds__(kThreads)
    focal_loss_backward_kernel(FocalLossArgs<T> args, Layout layout, const T* grad_loss,
                               const acc_t<T>* grad_sums, T* grad) {
  using A = acc_t<T>;
  constexpr int kSize = Pack<T>::kSize;
  for (int64_t tile = blockIdx.x; tile < layout.tiles_in_all; tile += gridDim.x) {
    const int64_t segment = tile / layout.tiles;
    const int64_t in_segment = (tile - segment * layout.tiles) * layout.tile;
    const int64_t begin = segment * layout.length + in_segment;
    const int size = static_cast<int>(min_of<int64_t>(layout.tile, layout.length - in_segment));
    const Place start =
        kLabels ? place_of(begin, static_cast<uint32_t>(args.num_classes)) : Place{0, 0};
    const A grad_sum =
        grad_loss == nullptr ? static_cast<A>(grad_sums[segment] * args.scale) : A(0);
    for (int i = static_cast<int>(threadIdx.x) * kSize; i < size; i += kThreads * kSize) {
      const int count = min_of(kSize, size - i);
      A values[kSize], g[kSize];
      compute_pack<kMode, kGamma, kLabels>(args, start, begin + i, i, count, layout.aligned,
                                           values);
      if (grad_loss != nullptr) load_pack(grad_loss + begin + i, count, layout.aligned, g);
#pragma unroll
      for (int k = 0; k < kSize; ++k) values[k] *= grad_loss != nullptr ? g[k] : grad_sum;
      store_pack(grad + begin + i, count, layout.aligned, values);
    }
  }
}

bool is_aligned(const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % 16 == 0; }

// `others` are the arrays of T beside inputs and targets; null counts as aligned.
template <class T>
Layout layout_of(const FocalLossArgs<T>& args, int64_t segments, int tile, const void* other,
                 const void* another) {
  Layout layout;
  layout.length = args.count / segments;
  layout.tiles = ceil_div<int64_t>(layout.length, tile);
  layout.tiles_in_all = layout.tiles * segments;
  layout.tile = tile;
  layout.aligned = is_aligned(args.inputs) && is_aligned(args.targets) && is_aligned(other) &&
                   is_aligned(another) && (segments == 1 || layout.length % Pack<T>::kSize == 0);
  return layout;
}

// Launches the forward kernel that is compiled for this gamma and form of targets.
template <class T>
void launch_forward(const FocalLossArgs<T>& args, const Layout& layout, T* loss, double* partials,
                    CUstream_st* stream) {
  const bool two = args.gamma == 2;
  const auto kernel =
      args.labels != nullptr
          ? (two ? focal_loss_kernel<T, 2, true> : focal_loss_kernel<T, kAnyGamma, true>)
          : (two ? focal_loss_kernel<T, 2, false> : focal_loss_kernel<T, kAnyGamma, false>);
  launch(kernel, grid_size(layout.tiles_in_all, 1), kThreads, 0, stream, args, layout, loss,
         partials);
}

template <class T, Mode kMode, bool kLabels>
void launch_backward(const FocalLossArgs<T>& args, const Layout& layout, const T* grad_loss,
                     const acc_t<T>* grad_sums, T* grad, CUstream_st* stream) {
  const auto kernel = args.gamma == 2 ? focal_loss_backward_kernel<T, kMode, 2, kLabels>
                                      : focal_loss_backward_kernel<T, kMode, kAnyGamma, kLabels>;
  launch(kernel, grid_size(layout.tiles_in_all, 1), kThreads, 0, stream, args, layout, grad_loss,
         grad_sums, grad);
}

}  // namespace

template <class T>
const char* focal_loss(const FocalLossArgs<T>& args, T* loss, CUstream_st* stream) {
  if (args.count == 0) return nullptr;
  launch_forward<T>(args, layout_of(args, 1, kTile, loss, nullptr), loss, nullptr, stream);
  return launch_error();
}

template <class T>
const char* focal_loss_sums(const FocalLossArgs<T>& args, double* partials, acc_t<T>* sums,
                            CUstream_st* stream) {
  if (args.segments == 0) return nullptr;
  int64_t tiles = 0;  // nothing to add up: the sums are 0
  if (args.count != 0) {
    const Layout layout =
        layout_of(args, args.segments, static_cast<int>(kFocalPiece), nullptr, nullptr);
    tiles = layout.tiles;
    launch_forward<T>(args, layout, nullptr, partials, stream);
    if (const char* error = launch_error()) return error;
  }
  launch(focal_loss_sum_kernel<acc_t<T>>, grid_size(args.segments, 1), kThreads, 0, stream,
         args.segments, tiles, args.scale, partials, sums);
  return launch_error();
}

template <class T>
const char* focal_loss_backward(const FocalLossArgs<T>& args, bool wrt_targets, const T* grad_loss,
                                const acc_t<T>* grad_sums, T* grad, CUstream_st* stream) {
  if (args.count == 0) return nullptr;
  const Layout layout =
      layout_of(args, grad_loss == nullptr ? args.segments : 1, kTile, grad_loss, grad);
  if (args.labels != nullptr) {
    launch_backward<T, Mode::kGradient, true>(args, layout, grad_loss, grad_sums, grad, stream);
  } else if (wrt_targets) {
    launch_backward<T, Mode::kGradientOfTarget, false>(args, layout, grad_loss, grad_sums, grad,
                                                       stream);
  } else {
    launch_backward<T, Mode::kGradient, false>(args, layout, grad_loss, grad_sums, grad, stream);
  }
  return launch_error();
}

template const char* focal_loss(const FocalLossArgs<float>&, float*, CUstream_st*);
template const char* focal_loss(const FocalLossArgs<double>&, double*, CUstream_st*);
template const char* focal_loss(const FocalLossArgs<Half>&, Half*, CUstream_st*);
template const char* focal_loss(const FocalLossArgs<BFloat16>&, BFloat16*, CUstream_st*);

template const char* focal_loss_sums(const FocalLossArgs<float>&, double*, float*, CUstream_st*);
template const char* focal_loss_sums(const FocalLossArgs<double>&, double*, double*, CUstream_st*);
template const char* focal_loss_sums(const FocalLossArgs<Half>&, double*, float*, CUstream_st*);
template const char* focal_loss_sums(const FocalLossArgs<BFloat16>&, double*, float*, CUstream_st*);

template const char* focal_loss_backward(const FocalLossArgs<float>&, bool, const float*,
                                         const float*, float*, CUstream_st*);
template const char* focal_loss_backward(const FocalLossArgs<double>&, bool, const double*,
                                         const double*, double*, CUstream_st*);
template const char* focal_loss_backward(const FocalLossArgs<Half>&, bool, const Half*,
                                         const float*, Half*, CUstream_st*);
template const char* focal_loss_backward(const FocalLossArgs<BFloat16>&, bool, const BFloat16*,
                                         const float*, BFloat16*, CUstream_st*);

}  // namespace cuda
}  // namespace pydet
