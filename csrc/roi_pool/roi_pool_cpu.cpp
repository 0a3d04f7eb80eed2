// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <tuple>
#include <vector>

#include "common/channel_block.h"
#include "common/isa.h"
#include "common/lanes.h"
#include "common/roi_threads.h"
#include "roi_pool/roi_pool.h"
#include "roi_pool/roi_pool_channels.h"
#include "roi_pool/roi_pool_interleaved.h"

namespace pydet {
namespace cpu {
namespace {

// RoIs a task, at most.
constexpr int64_t kRois = 512;
// Rows of a map of which RoIs that begin there follow each other.
constexpr int64_t kBand = 16;

// The RoIs in an order in which neighbours in the list are neighbours on the map, so that most
// cells come from the cache: by image, by bands of rows, by column. It depends on the RoIs alone.
template <class A>
std::vector<int64_t> order_of(const RoiPoolParams<A>& params) {
  struct Key {
    int64_t image, band, column, r;
  };
  std::vector<Key> keys(params.num_rois);
  for (int64_t r = 0; r < params.num_rois; ++r) {
    const RoiPoolPlace<A> place = roi_pool_place(params, r);
    keys[r] = {place.image, place.y.start / kBand, place.x.start, r};
  }
  std::sort(keys.begin(), keys.end(), [](const Key& a, const Key& b) {
    return std::tie(a.image, a.band, a.column, a.r) < std::tie(b.image, b.band, b.column, b.r);
  });
  std::vector<int64_t> order(params.num_rois);
  for (int64_t k = 0; k < params.num_rois; ++k) order[k] = keys[k].r;
  return order;
}

// A block of channels of [B, C, H, W] at a time, turned into vectors.
template <class A>
using TurnedChannels = PoolChannels<A, typename Lanes<A>::Vector, 1>;

// What the threads do: `lanes` channels from `channel` on of RoIs [begin, end) of an order.
template <class T>
struct Piece {
  const RoiPoolParams<acc_t<T>>* params;
  const int64_t *begin, *end;
  int64_t channel, lanes;
  const T* input;

  bool turned() const { return worth_turning<acc_t<T>>(params->channels, cells()); }
  int64_t cells() const { return params->height * params->width; }
  int64_t bins() const { return params->pooled_height * params->pooled_width; }
  // Element (image, channel) of maps and (r, channel) of the results.
  int64_t offset(int64_t first, int64_t places) const {
    return (first * params->channels + channel) * places;
  }
};

template <class T>
struct PoolWorkspace {
  TurnedMap<T> map;
  BestCells<acc_t<T>> line, bins;
  Scratch<acc_t<T>> values, results, sums;
};

// No RoI behind this one in the order, of its image, begins above.
template <class A>
int64_t first_row_of_band(const RoiPoolParams<A>& params, const RoiPoolPlace<A>& place) {
  return std::clamp<int64_t>(place.y.start / kBand * kBand, 0, params.height);
}

// Whether the windows of the first RoIs of an order that share an image are a good part of the map.
template <class A>
bool covers_map(const RoiPoolParams<A>& params, const int64_t* begin, const int64_t* end) {
  const int64_t image = roi_pool_place(params, *begin).image;
  int64_t cells = 0;
  for (; begin < end; ++begin) {
    const RoiPoolPlace<A> place = roi_pool_place(params, *begin);
    if (place.image != image) break;
    const CellRange y = TurnedChannels<A>::cells_of(place.y, params.pooled_height, params.height);
    const CellRange x = TurnedChannels<A>::cells_of(place.x, params.pooled_width, params.width);
    cells += std::max<int64_t>(0, y.end - y.begin) * std::max<int64_t>(0, x.end - x.begin);
  }
  return 4 * cells >= params.height * params.width;
}

// Calls consume(r, place) for each RoI of a piece when its bins are in work->bins.
// `row_cells`: see PoolChannels.
template <class T, bool kIndexed, class Consume>
void pool_piece(const Piece<T>& piece, int64_t row_cells, PoolWorkspace<T>* work,
                const Consume& consume) {
  using A = acc_t<T>;
  using Channels = TurnedChannels<A>;
  constexpr int64_t kChannels = ChannelBlock<A>::kChannels;
  const RoiPoolParams<A>& params = *piece.params;
  const int64_t row_stride = turned_width(params.width) * kChannels;
  const bool turned = piece.turned();
  work->bins.reserve(piece.bins() * kChannels);
  TurnedMap<T>& map = work->map;
  A* some_rows = turned ? nullptr : work->values.reserve(kBand * row_stride);
  int64_t image = -1, opened = 0;
  bool whole = false;
  for (const int64_t* next = piece.begin; next < piece.end; ++next) {
    const RoiPoolPlace<A> place = roi_pool_place(params, *next);
    const T* input = piece.input + piece.offset(std::max<int64_t>(place.image, 0), piece.cells());
    const CellRange y = Channels::cells_of(place.y, params.pooled_height, params.height);
    const CellRange x = Channels::cells_of(place.x, params.pooled_width, params.width);
    if (turned && place.image >= 0 && place.image != image) {
      image = place.image;
      map.reset(input, params.height, params.width, piece.lanes);
      opened = first_row_of_band(params, place);
      whole = covers_map(params, next, piece.end);
    }
    if (turned && place.image >= 0 && x.begin < x.end) {
      // Whole rows one after the other are read several times faster than windows.
      for (; whole && opened < y.end; ++opened) map.require(opened, 0, params.width);
      for (int64_t i = y.begin; !whole && i < y.end; ++i) map.require(i, x.begin, x.end);
    }
    const auto rows = [&](CellRange some, CellRange columns) -> const A* {
      if (turned) return map.cells() + some.begin * row_stride;
      for (int64_t i = some.begin; i < some.end && columns.begin < columns.end; ++i) {
        ChannelBlock<A>::gather(
            input + i * params.width + columns.begin, piece.cells(), piece.lanes,
            columns.end - columns.begin,
            some_rows + (i - some.begin) * row_stride + columns.begin * kChannels);
      }
      return some_rows;
    };
    Channels::template pool<kIndexed>(
        params, place, rows, turned ? params.height : kBand, {row_stride, kChannels}, row_cells,
        &work->line,
        [&](int64_t bin, int, const auto& best) { work->bins.template set<kIndexed>(bin, best); });
    consume(*next, place);
  }
}

// RoIs [begin, end) of an order and `lanes` channels from `channel` on of out.
template <class T>
struct RoiPoolForward {
  using A = acc_t<T>;
  static constexpr int64_t kChannels = ChannelBlock<A>::kChannels;

  // Values of another map where the largest cells are; where that is null, the cells themselves.
  static void run(const Piece<T>* piece, const T* values, PoolWorkspace<T>* work, T* out) {
    const int64_t bins = piece->bins();
    const auto& pooled = work->bins;
    const auto write = [&](int64_t r, const A* found) {
      ChannelBlock<A>::scatter(found, piece->lanes, bins, out + piece->offset(r, bins), bins);
    };
    if (values == nullptr) {
      pool_piece<T, false>(*piece, 0, work,
                           [&](int64_t r, const RoiPoolPlace<A>&) { write(r, pooled.value); });
      return;
    }
    A* found = work->results.reserve(bins * kChannels);
    pool_piece<T, true>(
        *piece, piece->params->width, work, [&](int64_t r, const RoiPoolPlace<A>& place) {
          const T* map = values + piece->offset(std::max<int64_t>(place.image, 0), piece->cells());
          for (int64_t bin = 0; bin < bins; ++bin) {
            for (int64_t c = 0; c < piece->lanes; ++c) {
              const auto cell = pooled.cell[bin * kChannels + c];
              found[bin * kChannels + c] = cell < 0 ? A(0) : load(map + c * piece->cells() + cell);
            }
          }
          write(r, found);
        });
  }
};

// The gradient of `lanes` channels from `channel` on of one image, whose RoIs the piece has.
template <class T>
struct RoiPoolBackward {
  using A = acc_t<T>;
  static constexpr int64_t kChannels = ChannelBlock<A>::kChannels;

  static void run(const Piece<T>* piece, const T* grad_out, PoolWorkspace<T>* work, A* map) {
    const RoiPoolParams<A>& params = *piece->params;
    const int64_t bins = piece->bins(), height = params.height, width = params.width;
    const bool turned = piece->turned();
    A* grad = work->results.reserve(bins * kChannels);
    A* cells = turned ? work->sums.reserve(height * turned_width(width) * kChannels) : map;
    TurnedSums<A> sums(map, height, width, piece->lanes, true, cells);
    // Of a map that is not turned the sums are made in place.
    const int64_t to_channel = turned ? 1 : piece->cells(), to_cell = turned ? kChannels : 1;
    if (!turned) std::fill_n(map, piece->lanes * piece->cells(), A(0));
    pool_piece<T, true>(
        *piece, turned ? turned_width(width) : width, work,
        [&](int64_t r, const RoiPoolPlace<A>& place) {
          if (place.image < 0) return;
          if (turned) {
            sums.close(first_row_of_band(params, place));
            sums.open(TurnedChannels<A>::cells_of(place.y, params.pooled_height, height).end);
          }
          ChannelBlock<A>::gather(grad_out + piece->offset(r, bins), bins, piece->lanes, bins,
                                  grad);
          const auto* cell = work->bins.cell;
          for (int64_t bin = 0; bin < bins; ++bin, cell += kChannels) {
            for (int64_t c = 0; c < piece->lanes; ++c) {
              if (cell[c] >= 0)
                cells[c * to_channel + cell[c] * to_cell] += grad[bin * kChannels + c];
            }
          }
        });
    if (turned) sums.close();
  }
};

// The begin of each image's RoIs in an order, those of no image first, and the end of the last.
template <class A>
std::vector<int64_t> begins_of(const RoiPoolParams<A>& params, const std::vector<int64_t>& order) {
  std::vector<int64_t> begins;
  for (int64_t image = 0; image <= params.batch; ++image) {
    const auto at = std::partition_point(order.begin(), order.end(), [&](int64_t r) {
      return roi_pool_place(params, r).image < image;
    });
    begins.push_back(at - order.begin());
  }
  return begins;
}

template <class T>
void pool_all_interleaved(const RoiPoolParams<acc_t<T>>& params, const T* input, const T* values,
                          T* out) {
  const std::vector<int64_t> order = order_of(params);
  const int64_t threads = roi_threads(params, params.height * params.width);
  parallel_tasks<BestCells<acc_t<T>>>(
      threads, params.num_rois, [&](BestCells<acc_t<T>>& line, int64_t task) {
        run_on_best_isa<InterleavedForward<T>>(&params, order[task], input, values, &line, out);
      });
}

template <class T>
void backward_interleaved(const RoiPoolParams<acc_t<T>>& params, const T* input, const T* grad_out,
                          acc_t<T>* grad_input) {
  using A = acc_t<T>;
  constexpr int64_t kFilled = 1 << 16;
  const int64_t map = params.height * params.width * params.channels;
  const int64_t threads = roi_threads(params, params.height * params.width);
  const std::vector<int64_t> order = order_of(params), begins = begins_of(params, order);
  // As many channels at a time as leave a task for each thread: a cell's lie side by side.
  const int64_t tasks = (threads + params.batch - 1) / std::max<int64_t>(1, params.batch);
  constexpr int64_t kLeast = 2 * Lanes<A>::kCount;
  const int64_t block = (params.channels + tasks * kLeast - 1) / (tasks * kLeast) * kLeast;
  const int64_t blocks = (params.channels + block - 1) / block;
  parallel_for(params.batch * map, kFilled, [&](int64_t begin, int64_t end) {
    std::fill(grad_input + begin, grad_input + end, A(0));
  });
  parallel_tasks<BestCells<A>>(
      threads, params.batch * blocks, [&](BestCells<A>& line, int64_t task) {
        const int64_t image = task / blocks, first = task % blocks * block;
        run_on_best_isa<InterleavedBackward<T>>(&params, order.data() + begins[image],
                                                order.data() + begins[image + 1], first,
                                                std::min(first + block, params.channels), input,
                                                grad_out, &line, grad_input + image * map);
      });
}

template <class T>
void pool_all(const RoiPoolParams<acc_t<T>>& params, const T* input, const T* values, T* out) {
  if (params.channels_last) return pool_all_interleaved(params, input, values, out);
  constexpr int64_t kChannels = ChannelBlock<acc_t<T>>::kChannels;
  const int64_t chunks = (params.num_rois + kRois - 1) / kRois;
  const int64_t blocks = (params.channels + kChannels - 1) / kChannels;
  const std::vector<int64_t> order = order_of(params);
  const int64_t threads = roi_threads(params, params.height * params.width);
  // Tasks that read the same channels follow each other.
  parallel_tasks<PoolWorkspace<T>>(
      threads, blocks * chunks, [&](PoolWorkspace<T>& work, int64_t task) {
        const int64_t begin = task % chunks * kRois, end = std::min(begin + kRois, params.num_rois);
        const int64_t channel = task / chunks * kChannels;
        const Piece<T> piece{&params,
                             order.data() + begin,
                             order.data() + end,
                             channel,
                             std::min(kChannels, params.channels - channel),
                             input};
        run_on_best_isa<RoiPoolForward<T>>(&piece, values, &work, out);
      });
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
  if (params.channels_last) return backward_interleaved(params, input, grad_out, grad_input);
  constexpr int64_t kChannels = ChannelBlock<acc_t<T>>::kChannels;
  const int64_t blocks = (params.channels + kChannels - 1) / kChannels;
  const int64_t threads = roi_threads(params, params.height * params.width);
  const std::vector<int64_t> order = order_of(params);
  const std::vector<int64_t> begins = begins_of(params, order);
  parallel_tasks<PoolWorkspace<T>>(
      threads, params.batch * blocks, [&](PoolWorkspace<T>& work, int64_t task) {
        const int64_t image = task / blocks, channel = task % blocks * kChannels;
        const Piece<T> piece{&params,
                             order.data() + begins[image],
                             order.data() + begins[image + 1],
                             channel,
                             std::min(kChannels, params.channels - channel),
                             input};
        run_on_best_isa<RoiPoolBackward<T>>(
            &piece, grad_out, &work,
            grad_input + piece.offset(image, params.height * params.width));
      });
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
