// SPDX-License-Identifier: Apache-2.0
// The kernel of a loss on the GPU: tiles of the logits, by packs of 16 bytes. Sums take a second,
// tiny launch, which adds the partial sums up in their order.
#pragma once

#include "common/labels.h"
#include "common/launch.cuh"
#include "common/loss.h"
#include "common/loss_sum.cuh"
#include "common/pack.cuh"

namespace pydet {
namespace cuda {

constexpr int kLossTile = 1 << 13;  // elements a block takes at a time where nothing is summed

// The tiles of a call, and whether all packs lie at multiples of 16 bytes.
struct LossLayout {
  int64_t length;  // elements a segment
  int64_t tiles;   // tiles a segment
  int64_t tiles_in_all;
  int tile;  // elements a tile
  bool aligned;
};

// The row and column of an element. Most tensors have less than 2^32 elements, and a 32-bit
// division is several times as fast.
struct Place {
  int64_t row;
  uint32_t column;
};

__device__ inline Place place_of(int64_t element, uint32_t classes) {
  if (element <= UINT32_MAX) {
    const uint32_t e = static_cast<uint32_t>(element), row = e / classes;
    return {row, e - row * classes};
  }
  const int64_t row = element / classes;
  return {row, static_cast<uint32_t>(element - row * classes)};
}

// One tile: elements [begin, begin + size) of one segment, and the place of the first.
struct LossTile {
  int64_t begin, segment;
  int size;
  Place place;
};

template <bool kLabels, class T>
__device__ LossTile tile_of(const LossCall<T>& call, const LossLayout& layout, int64_t tile) {
  LossTile result;
  result.segment = tile / layout.tiles;
  const int64_t offset = (tile - result.segment * layout.tiles) * layout.tile;
  result.begin = result.segment * layout.length + offset;
  result.size = static_cast<int>(min_of<int64_t>(layout.tile, layout.length - offset));
  result.place = Place{0, 0};
  if (kLabels) result.place = place_of(result.begin, static_cast<uint32_t>(call.num_classes));
  return result;
}

// values[0, count) of the pack that starts `offset` elements into the tile.
template <class Loss, Derivative kDerivative, class T>
__device__ void compute_pack(const LossCall<T>& call, const LossTile& tile, int offset, int count,
                             bool aligned, acc_t<T> grad_sum, acc_t<T>* values) {
  using A = acc_t<T>;
  constexpr int kSize = Pack<T>::kSize;
  const int64_t element = tile.begin + offset;
  A x[kSize], other[kSize];
  load_pack(call.inputs + element, count, aligned, x);
  A factors[kSize];
#pragma unroll
  for (int k = 0; k < kSize; ++k) factors[k] = grad_sum;
  for (const T* array : {call.factor, call.grad}) {
    if (array == nullptr) continue;
    load_pack(array + element, count, aligned, other);
#pragma unroll
    for (int k = 0; k < kSize; ++k) factors[k] *= other[k];
  }
  if constexpr (Loss::kLabels) {
    const uint32_t classes = static_cast<uint32_t>(call.num_classes);
    const uint32_t ahead = tile.place.column + static_cast<uint32_t>(offset);
    const uint32_t rows = ahead / classes;
    int64_t row = tile.place.row + rows;
    uint32_t column = ahead - rows * classes;
    int64_t label = call.labels[row];
#pragma unroll
    for (int k = 0; k < kSize; ++k) {
      const A t = label == static_cast<int64_t>(column) ? A(1) : A(0);
      values[k] = factors[k] * loss_of<Loss, kDerivative>(call.alpha, call.gamma, x[k], t);
      if (label < kBackground || label >= static_cast<int64_t>(classes))
        values[k] = label == kIgnored ? A(0) : static_cast<A>(NAN);
      if (++column == classes && k + 1 < count) {
        column = 0;
        label = call.labels[++row];
      }
    }
  } else {
    load_pack(call.targets + element, count, aligned, other);
#pragma unroll
    for (int k = 0; k < kSize; ++k)
      values[k] = factors[k] * loss_of<Loss, kDerivative>(call.alpha, call.gamma, x[k], other[k]);
  }
}

// The results of all elements, or the sum of each tile.
template <class T, class Loss, Derivative kDerivative>
__global__ void __launch_bounds__(kLossThreads, sizeof(T) == 8 ? 2 : 3)
    loss_kernel(LossCall<T> call, LossLayout layout) {
  using A = acc_t<T>;
  constexpr int kSize = Pack<T>::kSize;
  for (int64_t i = blockIdx.x; i < layout.tiles_in_all; i += gridDim.x) {
    const LossTile tile = tile_of<Loss::kLabels>(call, layout, i);
    const A grad_sum = call.grad_sums == nullptr
                           ? A(1)
                           : static_cast<A>(call.grad_sums[tile.segment] * call.scale);
    A sum = A(0);
    for (int offset = static_cast<int>(threadIdx.x) * kSize; offset < tile.size;
         offset += kLossThreads * kSize) {
      const int count = min_of(kSize, tile.size - offset);
      A values[kSize];
      compute_pack<Loss, kDerivative>(call, tile, offset, count, layout.aligned, grad_sum, values);
      if (call.result != nullptr) {
        store_pack(call.result + tile.begin + offset, count, layout.aligned, values);
      } else {
#pragma unroll
        for (int k = 0; k < kSize; ++k) sum += k < count ? values[k] : A(0);
      }
    }
    if (call.sums != nullptr) {
      sum = block_sum(sum);
      if (threadIdx.x == 0) call.partials[i] = static_cast<double>(sum);
    }
  }
}

template <class T>
LossLayout layout_of(const LossCall<T>& call) {
  LossLayout layout;
  layout.tile = call.sums == nullptr ? kLossTile : static_cast<int>(kLossPiece);
  layout.length = call.count / call.segments;
  layout.tiles = ceil_div<int64_t>(layout.length, layout.tile);
  layout.tiles_in_all = layout.tiles * call.segments;
  layout.aligned = is_aligned(call.inputs) && is_aligned(call.targets) && is_aligned(call.factor) &&
                   is_aligned(call.grad) && is_aligned(call.result) &&
                   (call.segments == 1 || layout.length % Pack<T>::kSize == 0);
  return layout;
}

template <template <int> class Loss, class T>
const char* run_loss(const LossCall<T>& call, bool usual, CUstream_st* stream) {
  int64_t tiles = 0;
  if (call.count > 0) {
    const LossLayout layout = layout_of(call);
    tiles = layout.tiles;
    with_loss<Loss>(call.derivative, usual, [&](auto loss, auto derivative) {
      launch(loss_kernel<T, decltype(loss), decltype(derivative)::value>,
             grid_size(layout.tiles_in_all, 1), kLossThreads, 0, stream, call, layout);
    });
    if (const char* error = launch_error()) return error;
  }
  if (call.sums == nullptr) return nullptr;
  return add_partials(call.segments, tiles, call.scale, call.partials, call.sums, stream);
}

}  // namespace cuda
}  // namespace pydet
