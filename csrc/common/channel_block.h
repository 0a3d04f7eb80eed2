// SPDX-License-Identifier: Apache-2.0
// Maps [C, H, W] for kernels that want a few channels of a cell next to each other: a vector of
// channels at a time is turned into [H, W, kChannels]. So what regions read is turned once, however
// many of them overlap, no vector is cut off by the edge of a region, and control flow is paid once
// for kChannels. More channels at a time would not fit into the caches with a band of rows.
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

  // to[i * cell + c] = planes[c * stride + i] for i < count and c < lanes; the other channels are
  // 0.
  template <class T>
  static void gather(const T* planes, int64_t stride, int64_t lanes, int64_t count, A* to,
                     int64_t cell = kChannels) {
    if (lanes == kChannels && count >= kChannels) {
      for (int64_t i = 0; i < count; i += kChannels) {
        const int64_t at = std::min(i, count - kChannels);  // the last one ends with the row
        Vectors::transpose(planes + at, stride, to + at * cell, cell);
      }
      return;
    }
    for (int64_t i = 0; i < count; ++i) {
      for (int64_t c = 0; c < kChannels; ++c)
        to[i * cell + c] = c < lanes ? load(planes + c * stride + i) : A(0);
    }
  }

  // planes[c * stride + i] = from[i * cell + c] for i < count and c < lanes.
  template <class T>
  static void scatter(const A* from, int64_t lanes, int64_t count, T* planes, int64_t stride,
                      int64_t cell = kChannels) {
    if (lanes == kChannels && count >= kChannels) {
      for (int64_t i = 0; i < count; i += kChannels) {
        const int64_t at = std::min(i, count - kChannels);
        Vectors::transpose(from + at * cell, cell, planes + at, stride);
      }
      return;
    }
    for (int64_t c = 0; c < lanes; ++c) {
      for (int64_t i = 0; i < count; ++i) store(planes + c * stride + i, from[i * cell + c]);
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

  // `lanes` planes from `planes` on.
  void reset(const T* planes, int64_t height, int64_t width, int64_t lanes) {
    planes_ = planes;
    cells_of_plane_ = height * width;
    width_ = width;
    lanes_ = lanes;
    pieces_ = (width + kPiece - 1) / kPiece;
    cells_ = scratch_.reserve(height * row_stride());
    ready_.assign(height * pieces_, 0);
  }

  // Makes the cells [begin, end) of row y, at least one. `ahead`: those behind them are next.
  void require(int64_t y, int64_t begin, int64_t end, bool ahead) {
    for (int64_t piece = begin / kPiece; piece <= (end - 1) / kPiece; ++piece) {
      char& ready = ready_[y * pieces_ + piece];
      if (ready) continue;
      ready = 1;
      const int64_t x = piece * kPiece;
      // More planes than the hardware follows by itself.
      const T* next = planes_ + y * width_ + x + kAhead * kPiece;
      for (int64_t c = 0; ahead && c < lanes_; ++c) __builtin_prefetch(next + c * cells_of_plane_);
      Block::gather(planes_ + y * width_ + x, cells_of_plane_, lanes_, std::min(kPiece, width_ - x),
                    cells_ + y * row_stride() + x * Block::kChannels);
    }
  }

  const A* cells() const { return cells_; }
  int64_t row_stride() const { return turned_width(width_) * Block::kChannels; }

 private:
  static constexpr int64_t kPiece = 16;  // a cache line of a plane of floats
  static constexpr int64_t kAhead = 6;   // pieces that are fetched ahead

  const T* planes_ = nullptr;
  int64_t cells_of_plane_ = 0, width_ = 0, lanes_ = 0, pieces_ = 0;
  A* cells_ = nullptr;
  Scratch<A> scratch_;
  std::vector<char> ready_;  // of each piece of each row
};

// Sums of a turned map, made row by row from above: a row begins when it is opened, as 0 or as what
// `planes` holds, and is written there when it is closed.
template <class A, int kBytes = 32>
class TurnedSums {
 public:
  using Block = ChannelBlock<A, kBytes>;

  // `lanes` planes from `planes` on; `cells` has room for `height` rows of the turned map.
  TurnedSums(A* planes, int64_t height, int64_t width, int64_t lanes, bool clear, A* cells)
      : planes_(planes),
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
        Block::gather(row(opened_), height_ * width_, lanes_, width_, turned(opened_));
      }
    }
  }

  // Rows below `end` are done.
  void close(int64_t end) {
    open(end);
    for (; closed_ < end; ++closed_)
      Block::scatter(turned(closed_), lanes_, width_, row(closed_), height_ * width_);
  }
  void close() { close(height_); }

 private:
  A* row(int64_t y) const { return planes_ + y * width_; }
  A* turned(int64_t y) const { return cells_ + y * turned_width(width_) * Block::kChannels; }

  A* planes_;
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
