// SPDX-License-Identifier: Apache-2.0
// Maps [C, H, W] for kernels that want a cell's channels next to each other: a vector of channels
// at a time is turned into [H, W, kChannels]. So what regions read is turned once, however many of
// them overlap, no vector is cut off by the edge of a region, and control flow is paid once for
// kChannels. More channels at a time would not fit into the caches with a band of rows.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <memory>
#include <new>
#include <vector>

#include "common/lanes.h"
#include "common/parallel_for.h"
#include "common/scalar.h"

namespace pydet {
namespace cpu {

template <class A>
struct ChannelBlock {
  static constexpr int64_t kChannels = Lanes<A>::kCount;

  // to[i * kChannels + c] = planes[c * stride + i] for i < count and c < lanes; the other channels
  // are 0.
  template <class T>
  static void gather(const T* planes, int64_t stride, int64_t lanes, int64_t count, A* to) {
    if (lanes == kChannels && count >= kChannels) {
      for (int64_t i = 0; i < count; i += kChannels) {
        const int64_t at = std::min(i, count - kChannels);  // the last one ends with the row
        Lanes<A>::transpose(planes + at, stride, to + at * kChannels, kChannels);
      }
      return;
    }
    for (int64_t i = 0; i < count; ++i) {
      for (int64_t c = 0; c < kChannels; ++c)
        to[i * kChannels + c] = c < lanes ? load(planes + c * stride + i) : A(0);
    }
  }

  // planes[c * stride + i] = from[i * kChannels + c] for i < count and c < lanes.
  template <class T>
  static void scatter(const A* from, int64_t lanes, int64_t count, T* planes, int64_t stride) {
    if (lanes == kChannels && count >= kChannels) {
      for (int64_t i = 0; i < count; i += kChannels) {
        const int64_t at = std::min(i, count - kChannels);
        Lanes<A>::transpose(from + at * kChannels, kChannels, planes + at, stride);
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

// A turned map of which only the parts are made that are asked for.
template <class T>
class TurnedMap {
 public:
  using A = acc_t<T>;

  // `lanes` planes from `planes` on.
  void reset(const T* planes, int64_t height, int64_t width, int64_t lanes) {
    planes_ = planes;
    plane_ = height * width;
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
      ChannelBlock<A>::gather(planes_ + y * width_ + x, plane_, lanes_,
                              std::min(kPiece, width_ - x),
                              cells_ + y * row_stride() + x * ChannelBlock<A>::kChannels);
    }
  }

  const A* cells() const { return cells_; }
  int64_t row_stride() const { return turned_width(width_) * ChannelBlock<A>::kChannels; }

 private:
  static constexpr int64_t kPiece = 16;  // a cache line of a plane of floats

  const T* planes_ = nullptr;
  int64_t plane_ = 0, width_ = 0, lanes_ = 0, pieces_ = 0;
  A* cells_ = nullptr;
  Scratch<A> scratch_;
  std::vector<char> ready_;  // of each piece of each row
};

// Calls body(state, task) for each task below `count`, with one State a thread that takes part.
template <class State, class Body>
void parallel_tasks(int64_t count, const Body& body) {
  std::atomic<int64_t> next{0};
  parallel_for(std::min(num_threads(), count), 1, [&](int64_t, int64_t) {
    State state;
    for (int64_t task = next++; task < count; task = next++) body(state, task);
  });
}

}  // namespace cpu
}  // namespace pydet
