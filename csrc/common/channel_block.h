// SPDX-License-Identifier: Apache-2.0
// Maps [C, H, W] or [H, W, C] for kernels that want a few channels of a cell next to each other,
// and cells too: a vector of channels at a time is turned into [H, W, kChannels]. So what regions
// read is turned once, however many of them overlap, no vector is cut off by the edge of a region,
// and control flow is paid once for kChannels. More channels at a time would not fit into the
// caches with a band of rows.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <new>
#include <vector>

#include "common/lanes.h"
#include "common/parallel_for.h"
#include "common/scalar.h"

namespace pydet {
namespace cpu {

template <class A, int kBytes = 32>
struct ChannelBlock {
  using Vectors = Lanes<A, kBytes>;
  static constexpr int64_t kChannels = Vectors::kCount;

  // Elements from one channel of a map to the next, and from one cell of a row to the next.
  struct Strides {
    int64_t channel, cell;
  };

  // to[i * kChannels + c] = from[c * channel + i * cell] for i < count and c < lanes; the other
  // channels are 0. One of the two strides is 1.
  template <class T>
  static void gather(const T* from, Strides strides, int64_t lanes, int64_t count, A* to) {
    if (strides.channel != 1) return gather_planes(from, strides.channel, lanes, count, to);
    // Cells are too far apart for the machine to foresee.
    constexpr int64_t kAhead = 24;
    for (int64_t i = 0; i < count; ++i, from += strides.cell, to += kChannels) {
      __builtin_prefetch(from + kAhead * strides.cell);
      if (lanes == kChannels) {
        typename Vectors::Vector channels;
        Vectors::load(from, &channels);
        Vectors::store(channels, to);
      } else {
        for (int64_t c = 0; c < kChannels; ++c) to[c] = c < lanes ? load(from + c) : A(0);
      }
    }
  }

  // to[c * channel + i * cell] = from[i * kChannels + c] for i < count and c < lanes.
  template <class T>
  static void scatter(const A* from, int64_t lanes, int64_t count, T* to, Strides strides) {
    if (strides.channel != 1) return scatter_planes(from, lanes, count, to, strides.channel);
    for (int64_t i = 0; i < count; ++i, from += kChannels, to += strides.cell) {
      if (lanes == kChannels) {
        typename Vectors::Vector channels;
        Vectors::load(from, &channels);
        Vectors::store(channels, to);
      } else {
        for (int64_t c = 0; c < lanes; ++c) store(to + c, from[c]);
      }
    }
  }

 private:
  template <class T>
  static void gather_planes(const T* planes, int64_t stride, int64_t lanes, int64_t count, A* to) {
    if (lanes == kChannels && count >= kChannels) {
      for (int64_t i = 0; i < count; i += kChannels) {
        const int64_t at = std::min(i, count - kChannels);  // the last one ends with the row
        Vectors::transpose(planes + at, stride, to + at * kChannels, kChannels);
      }
      return;
    }
    for (int64_t i = 0; i < count; ++i) {
      for (int64_t c = 0; c < kChannels; ++c)
        to[i * kChannels + c] = c < lanes ? load(planes + c * stride + i) : A(0);
    }
  }

  template <class T>
  static void scatter_planes(const A* from, int64_t lanes, int64_t count, T* planes,
                             int64_t stride) {
    if (lanes == kChannels && count >= kChannels) {
      for (int64_t i = 0; i < count; i += kChannels) {
        const int64_t at = std::min(i, count - kChannels);
        Vectors::transpose(from + at * kChannels, kChannels, planes + at, stride);
      }
      return;
    }
    for (int64_t c = 0; c < lanes; ++c) {
      for (int64_t i = 0; i < count; ++i) store(planes + c * stride + i, from[i * kChannels + c]);
    }
  }
};

// Memory that begins at a cache line; not initialised. It only grows.
template <class A>
class Scratch {
 public:
  A* reserve(int64_t size) {
    if (size > size_) {
      data_.reset();
      data_.reset(static_cast<A*>(::operator new(size * sizeof(A), kLine)));
      size_ = size;
    }
    return data_.get();
  }

 private:
  static constexpr std::align_val_t kLine{64};
  struct Delete {
    void operator()(A* data) const { ::operator delete(data, kLine); }
  };
  std::unique_ptr<A, Delete> data_;
  int64_t size_ = 0;
};

// Cells of a row of a turned map: an odd number, so that cells below each other are in different
// sets of the caches.
inline int64_t turned_width(int64_t width) { return width | 1; }

// Whether maps are worth to be turned: not where most of a block of channels would be empty, nor
// where a block of one map takes more than some 32 MB.
template <class A>
bool worth_turning(int64_t channels, int64_t cells) {
  constexpr int64_t kMostCells = 1 << 20;
  return 2 * channels >= ChannelBlock<A>::kChannels && cells <= kMostCells;
}

// A turned map of which only the parts are made that are asked for.
template <class T, int kBytes = 32>
class TurnedMap {
 public:
  using A = acc_t<T>;
  using Block = ChannelBlock<A, kBytes>;
  using Strides = typename Block::Strides;

  // `lanes` channels from `map` on.
  void reset(const T* map, Strides strides, int64_t height, int64_t width, int64_t lanes) {
    map_ = map;
    strides_ = strides;
    width_ = width;
    lanes_ = lanes;
    pieces_ = (width + kPiece - 1) / kPiece;
    cells_ = scratch_.reserve(height * row_stride());
    ready_.assign(height * pieces_, 0);
  }

  // Makes the cells [begin, end) of row y, at least one.
  void require(int64_t y, int64_t begin, int64_t end) {
    for (int64_t piece = begin / kPiece; piece <= (end - 1) / kPiece; ++piece) {
      char& ready = ready_[y * pieces_ + piece];
      if (ready) continue;
      ready = 1;
      const int64_t x = piece * kPiece;
      Block::gather(map_ + (y * width_ + x) * strides_.cell, strides_, lanes_,
                    std::min(kPiece, width_ - x), cells_ + y * row_stride() + x * Block::kChannels);
    }
  }

  const A* cells() const { return cells_; }
  int64_t row_stride() const { return turned_width(width_) * Block::kChannels; }

 private:
  static constexpr int64_t kPiece = 16;  // a cache line of a plane of floats

  const T* map_ = nullptr;
  Strides strides_{};
  int64_t width_ = 0, lanes_ = 0, pieces_ = 0;
  A* cells_ = nullptr;
  Scratch<A> scratch_;
  std::vector<char> ready_;  // of each piece of each row
};

// Sums of a turned map, made row by row from above: a row begins when it is opened, as 0 or as what
// `map` holds, and is written to `map` when it is closed.
template <class A>
class TurnedSums {
 public:
  using Block = ChannelBlock<A>;
  using Strides = typename Block::Strides;

  // `lanes` channels from `map` on; `cells` has room for `height` rows of the turned map.
  TurnedSums(A* map, Strides strides, int64_t height, int64_t width, int64_t lanes, bool clear,
             A* cells)
      : map_(map),
        strides_(strides),
        height_(height),
        width_(width),
        lanes_(lanes),
        clear_(clear),
        cells_(cells) {}

  // Rows below `end` may be added to.
  void open(int64_t end) {
    for (; opened_ < end; ++opened_) {
      if (clear_) {
        std::fill_n(turned(opened_), width_ * Block::kChannels, A(0));
      } else {
        Block::gather(row(opened_), strides_, lanes_, width_, turned(opened_));
      }
    }
  }

  // Rows below `end` are done.
  void close(int64_t end) {
    open(end);
    for (; closed_ < end; ++closed_)
      Block::scatter(turned(closed_), lanes_, width_, row(closed_), strides_);
  }
  void close() { close(height_); }

 private:
  A* row(int64_t y) const { return map_ + y * width_ * strides_.cell; }
  A* turned(int64_t y) const { return cells_ + y * turned_width(width_) * Block::kChannels; }

  A* map_;
  Strides strides_;
  int64_t height_, width_, lanes_;
  bool clear_;
  A* cells_;
  int64_t opened_ = 0, closed_ = 0;
};

// Calls body(state, task) for each task below `count`, on at most `threads`, each with a State.
template <class State, class Body>
void parallel_tasks(int64_t threads, int64_t count, const Body& body) {
  std::vector<State> states(std::min(threads, count));
  parallel_workers(static_cast<int64_t>(states.size()), count, 1,
                   [&](int64_t worker, int64_t task, int64_t) { body(states[worker], task); });
}

}  // namespace cpu
}  // namespace pydet
