// SPDX-License-Identifier: Apache-2.0
// RoI pooling of maps [B, C, H, W] on the CPU: a block of channels at a time, turned into vectors.
#pragma once

#include <algorithm>
#include <cstdint>
#include <tuple>

#include "common/channel_block.h"
#include "common/isa.h"
#include "common/lanes.h"
#include "common/stream.h"
#include "roi_pool/roi_pool.h"
#include "roi_pool/roi_pool_channels.h"
#include "roi_pool/roi_pool_plan.h"

namespace pydet {
namespace cpu {

// What the threads do: `lanes` channels from `channel` on of RoIs [begin, end) of a plan.
template <class T>
struct PoolPiece {
  const RoiPoolParams<acc_t<T>>* params;
  const PooledRoi *begin, *end;
  int64_t channel, lanes;
  const T* input;

  bool turned() const { return worth_turning<acc_t<T>>(params->channels, cells()); }
  int64_t cells() const { return params->height * params->width; }
  int64_t bins() const { return params->pooled_height * params->pooled_width; }
  // Element (image, channel) of maps and (r, channel) of the results.
  int64_t offset(int64_t first, int64_t places) const {
    return (std::max<int64_t>(first, 0) * params->channels + channel) * places;
  }
};

template <class T>
struct PoolWorkspace {
  std::tuple<TurnedMap<T, 32>, TurnedMap<T, 64>> maps;  // one of them is used
  PoolScratch<acc_t<T>> pool;
  Scratch<acc_t<T>> rows, bins, sums;
  Scratch<T> result;
};

template <class T, Isa kIsa>
struct PoolTurned {
  using A = acc_t<T>;
  static constexpr int kBytes = vector_bytes(kIsa);
  static constexpr int64_t kRows = 16;  // at a time of a map that is not turned
  using Block = ChannelBlock<A, kBytes>;
  using Channels = PoolChannels<A, typename Lanes<A, kBytes>::Vector, 1>;

  // Whether the windows of the first RoIs that share an image are a good part of the map.
  static bool covers_map(const PoolPiece<T>& piece, const PooledRoi* roi) {
    const int64_t image = roi->image;
    int64_t cells = 0;
    for (; roi < piece.end && roi->image == image; ++roi) {
      const CellRange y = roi->y.cells(), x = roi->x.cells();
      cells += std::max<int64_t>(0, y.end - y.begin) * std::max<int64_t>(0, x.end - x.begin);
    }
    return 4 * cells >= piece.cells();
  }

  // Calls consume(roi) for each RoI of a piece when what it finds is in work->pool.found.
  // `row_cells`: see PoolChannels. `results` [R, C, PH, PW] is what consume reads or writes
  // (kWritten): a RoI's part is fetched while its cells are searched; nullptr for none.
  template <bool kIndexed, bool kWritten, class Element, class Consume>
  static void pool(const PoolPiece<T>& piece, int64_t row_cells, PoolWorkspace<T>* work,
                   Element* results, const Consume& consume) {
    const int64_t height = piece.params->height, width = piece.params->width;
    const bool turned = piece.turned();
    auto& map = std::get<TurnedMap<T, kBytes>>(work->maps);
    const int64_t row_stride = turned_width(width) * Block::kChannels;
    A* some_rows = turned ? nullptr : work->rows.reserve(kRows * row_stride);
    int64_t image = -1, opened = 0;
    bool whole = false;
    for (const PooledRoi* roi = piece.begin; roi < piece.end; ++roi) {
      const T* planes = piece.input + piece.offset(roi->image, piece.cells());
      const CellRange y = roi->y.cells(), x = roi->x.cells();
      if (turned && roi->image != image) {
        image = roi->image;
        map.reset(planes, height, width, piece.lanes);
        opened = first_row_of_band(*piece.params, *roi);
        whole = covers_map(piece, roi);
      }
      if (turned && x.begin < x.end) {
        // Whole rows one after the other are read several times faster than windows.
        for (; whole && opened < y.end; ++opened) map.require(opened, 0, width, true);
        for (int64_t i = y.begin; !whole && i < y.end; ++i) map.require(i, x.begin, x.end, false);
      }
      const auto rows = [&](CellRange some) -> const A* {
        if (turned) return map.cells() + some.begin * row_stride;
        for (int64_t i = some.begin; i < some.end; ++i)
          Block::gather(planes + i * width + x.begin, piece.cells(), piece.lanes, x.end - x.begin,
                        some_rows + (i - some.begin) * row_stride + x.begin * Block::kChannels);
        return some_rows;
      };
      constexpr int64_t kLine = 64 / sizeof(T);
      const int64_t first = piece.offset(roi->index, piece.bins());
      for (int64_t k = 0; results != nullptr && k < piece.lanes * piece.bins(); k += kLine)
        __builtin_prefetch(results + first + k, kWritten ? 1 : 0);
      Channels::template find<kIndexed>(*roi, rows, turned ? height : kRows,
                                        {row_stride, Block::kChannels}, row_cells, &work->pool.line,
                                        &work->pool.found);
      consume(*roi);
    }
  }
};

template <class T, Isa kIsa>
struct TurnedForward {
  using Pool = PoolTurned<T, kIsa>;
  using Block = typename Pool::Block;

  // Values of another map where the largest cells are; where that is null, the cells themselves.
  static void run(const PoolPiece<T>* piece, const T* values, PoolWorkspace<T>* work, T* out) {
    const int64_t bins = piece->bins(), lanes = piece->lanes;
    auto* results = work->bins.reserve(bins * Block::kChannels);
    const RoiPoolParams<acc_t<T>>& params = *piece->params;
    const PieceWriter<T> writer(params.num_rois * params.channels * bins, lanes * bins,
                                &work->result);
    T* written = writer.in_place() ? out : nullptr;
    const auto write = [&](const PooledRoi& roi) {
      Pool::Channels::write(roi, work->pool.found, results, Block::kChannels);
      writer.write(out + piece->offset(roi.index, bins),
                   [&](T* to) { Block::scatter(results, lanes, bins, to, bins); });
    };
    if (values == nullptr) {
      Pool::template pool<false, true>(*piece, 0, work, written, write);
    } else {
      Pool::template pool<true, true>(
          *piece, params.width, work, written, [&](const PooledRoi& roi) {
            Pool::Channels::pick(roi, lanes, values + piece->offset(roi.image, piece->cells()),
                                 {piece->cells(), 1}, &work->pool.found);
            write(roi);
          });
    }
  }
};

// The gradient of one image, whose RoIs the piece has.
template <class T, Isa kIsa>
struct TurnedBackward {
  using A = acc_t<T>;
  using Pool = PoolTurned<T, kIsa>;
  using Block = typename Pool::Block;

  static void run(const PoolPiece<T>* piece, const T* grad_out, PoolWorkspace<T>* work, A* map) {
    constexpr int64_t kChannels = Block::kChannels;
    const RoiPoolParams<A>& params = *piece->params;
    const int64_t bins = piece->bins(), height = params.height, width = params.width;
    const bool turned = piece->turned();
    A* grad = work->bins.reserve(bins * kChannels);
    A* slots = work->pool.sums.reserve(bins * kChannels);
    A* cells = turned ? work->sums.reserve(height * turned_width(width) * kChannels) : map;
    TurnedSums<A, Pool::kBytes> sums(map, height, width, piece->lanes, true, cells);
    // Of a map that is not turned the sums are made in place.
    const CellStrides strides = turned ? CellStrides{1, kChannels} : CellStrides{piece->cells(), 1};
    if (!turned) std::fill_n(map, piece->lanes * piece->cells(), A(0));
    Pool::template pool<true, false>(
        *piece, turned ? turned_width(width) : width, work, grad_out, [&](const PooledRoi& roi) {
          if (turned) {
            sums.close(first_row_of_band(params, roi));
            sums.open(roi.y.cells().end);
          }
          Block::gather(grad_out + piece->offset(roi.index, bins), bins, piece->lanes, bins, grad);
          Pool::Channels::add(roi, piece->lanes, grad, kChannels, work->pool.found, slots, cells,
                              strides);
        });
    if (turned) sums.close();
  }
};

}  // namespace cpu
}  // namespace pydet
