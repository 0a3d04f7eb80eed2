// SPDX-License-Identifier: Apache-2.0
// Greedy suppression within one group of boxes on the CPU, by sets of bits. Each axis is cut into
// bins. For each bin one set holds the boxes that begin in it or before, another those that end in
// it or behind. Four sets, two an axis, share the boxes that a given one may hide, whatever its
// size; those alone are compared with it.
//
// The bins only ever leave out what cannot be hidden; the result does not depend on them.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>

#include "common/box.h"
#include "common/suppression.h"

namespace pydet {
namespace cpu {

// Boxes whose bits share a word; boxes that are compared with one at a time.
constexpr int kWord = 64, kCompared = 8;
constexpr int kMostBins = 128;

// The bits of 512 boxes: a cache line, and two vectors, as in common/lanes.h.
constexpr int kLineWords = 8;
constexpr int64_t kLine = kWord * kLineWords;

struct alignas(64) BitLine {
  typedef uint64_t Half __attribute__((vector_size(32), may_alias));
  uint64_t words[kLineWords];

  Half* halves() { return reinterpret_cast<Half*>(words); }
  const Half* halves() const { return reinterpret_cast<const Half*>(words); }

  void join(const BitLine& other) {
    for (int i = 0; i < 2; ++i) halves()[i] |= other.halves()[i];
  }

  // Becomes what is in all five; whether that is anything.
  bool meet(const BitLine& a, const BitLine& b, const BitLine& c, const BitLine& d,
            const BitLine& e) {
    for (int i = 0; i < 2; ++i) {
      halves()[i] = a.halves()[i] & b.halves()[i] & c.halves()[i] & d.halves()[i] & e.halves()[i];
    }
    const Half any = halves()[0] | halves()[1];
    return (any[0] | any[1] | any[2] | any[3]) != 0;
  }
};

// Numbers the bins of one axis. A larger coordinate never has a smaller number: all that
// correctness asks for.
template <class A>
class Bins {
 public:
  // Bins of equal width for most of the values, which are put in order; those far from all others
  // share the outer bins.
  Bins(int64_t count, A* values) {
    std::sort(values, values + count);
    const A low = values[count / 16], high = values[count - 1 - count / 16];
    const A margin = (high - low) / 8;
    first_ = low - margin;
    const A scale = A(1) / (high + margin - first_);
    scale_ = scale - scale == A(0) ? scale : A(0);
  }

  int operator()(A value, int num_bins) const {
    const A place = (value - first_) * (scale_ * static_cast<A>(num_bins));
    return place > A(0) ? static_cast<int>(min_of(place, static_cast<A>(num_bins - 1))) : 0;
  }

 private:
  A first_, scale_;
};

// The bins of an image, by a sample of its boxes.
template <class A>
struct PlaneBins {
  Bins<A> x, y;

  static PlaneBins of(int64_t count, const Box<A>* boxes) {
    constexpr int64_t kSample = 64;
    A xs[kSample], ys[kSample];
    const int64_t sample = std::min(count, kSample);
    int64_t used = 0;
    for (int64_t i = 0; i < sample; ++i) {
      const Box<A>& box = boxes[i * count / sample];
      if (!can_overlap(box, area(box))) continue;
      xs[used] = A(0.5) * box.x1 + A(0.5) * box.x2;
      ys[used++] = A(0.5) * box.y1 + A(0.5) * box.y2;
    }
    if (used == 0) {  // nothing overlaps: any bins will do
      xs[0] = ys[0] = A(0);
      used = 1;
    }
    return {Bins<A>(used, xs), Bins<A>(used, ys)};
  }
};

// Memory for one group at a time, of at most `most` boxes.
template <class A>
struct BitScratch {
  std::unique_ptr<A[]> coordinates;
  std::unique_ptr<uint16_t[]> bins;
  std::unique_ptr<BitLine[]> undecided, sets;

  explicit BitScratch(int64_t most) {
    const int64_t lines = (most + kLine - 1) / kLine;  // what a group needs never exceeds this
    coordinates.reset(new A[5 * lines * kLine]);
    bins.reset(new uint16_t[4 * lines * kLine]);
    undecided.reset(new BitLine[lines]);
    sets.reset(new BitLine[lines * 4 * kMostBins]);
  }
};

// The boxes of one group in score order, and which of them are still to be decided.
template <class A>
class BitGroup {
 public:
  BitGroup(int64_t count, const Box<A>* boxes, const SuppressionRule<A>& rule,
           const PlaneBins<A>& plane, BitScratch<A>* scratch)
      : rule_(rule),
        plane_(plane),
        lines_((count + kLine - 1) / kLine),
        room_((count + kWord - 1) / kWord * kWord),
        num_bins_(static_cast<int>(std::clamp<int64_t>(count / 16, 16, kMostBins))),
        x1_(scratch->coordinates.get()),
        y1_(x1_ + room_),
        x2_(y1_ + room_),
        y2_(x2_ + room_),
        area_(y2_ + room_),
        undecided_(scratch->undecided.get()),
        sets_(scratch->sets.get()) {
    for (int64_t k = 0; k < room_; ++k) {
      const Box<A> box = k < count ? boxes[k] : Box<A>{};
      x1_[k] = box.x1;
      y1_[k] = box.y1;
      x2_[k] = box.x2;
      y2_[k] = box.y2;
    }
    for (int64_t k = 0; k < room_; ++k) area_[k] = area(box(k));
    for (int64_t word = 0; word < lines_ * kLineWords; ++word) {
      const int64_t left = std::clamp<int64_t>(count - word * kWord, 0, kWord);
      undecided(word) = left == kWord ? ~uint64_t{0} : (uint64_t{1} << left) - 1;
    }
    fill_sets(count, scratch->bins.get());
  }

  // Calls keep(k) for each box that none before it hides, in their order, `limit` times at most.
  template <class Keep>
  void run(int64_t limit, const Keep& keep) {
    int64_t num_kept = 0;
    for (int64_t word = 0; word < room_ / kWord; ++word) {
      while (undecided(word) != 0 && num_kept < limit) {
        const int64_t k = word * kWord + __builtin_ctzll(undecided(word));
        undecided(word) &= undecided(word) - 1;
        keep(k);
        ++num_kept;
        if (can_overlap(box(k), area_[k])) strike_out(k);
      }
    }
  }

 private:
  // The sets of an axis: boxes that begin in a bin or before, boxes that end in it or behind.
  enum Set { kBeginX, kBeginY, kEndX, kEndY };

  Box<A> box(int64_t k) const { return {x1_[k], y1_[k], x2_[k], y2_[k]}; }

  uint64_t& undecided(int64_t word) const {
    return undecided_[word / kLineWords].words[word % kLineWords];
  }

  BitLine* set(int64_t line, Set which, int bin) const {
    return sets_ + (line * 4 + which) * num_bins_ + bin;
  }

  // Parameters by value, so that the loop is one of vectors: no store can change them.
  void number(const Bins<A> axis, const A* values, uint16_t* bins) const {
    for (int64_t k = 0, num_bins = num_bins_, room = room_; k < room; ++k)
      bins[k] = static_cast<uint16_t>(axis(values[k], static_cast<int>(num_bins)));
  }

  void fill_sets(int64_t count, uint16_t* bins) {
    number(plane_.x, x1_, bins + kBeginX * room_);
    number(plane_.y, y1_, bins + kBeginY * room_);
    number(plane_.x, x2_, bins + kEndX * room_);
    number(plane_.y, y2_, bins + kEndY * room_);
    std::fill_n(sets_, lines_ * 4 * num_bins_, BitLine{});
    for (int64_t k = 0; k < count; ++k) {
      if (!can_overlap(box(k), area_[k])) continue;  // in no set: nothing hides it
      const int64_t line = k / kLine, word = k % kLine / kWord;
      const uint64_t bit = uint64_t{1} << k % kWord;
      for (Set which : {kBeginX, kBeginY, kEndX, kEndY})
        set(line, which, bins[which * room_ + k])->words[word] |= bit;
    }
    for (int64_t line = 0; line < lines_; ++line) {
      for (int bin = 1; bin < num_bins_; ++bin) {
        for (Set which : {kBeginX, kBeginY})
          set(line, which, bin)->join(*set(line, which, bin - 1));
        for (Set which : {kEndX, kEndY})
          set(line, which, num_bins_ - 1 - bin)->join(*set(line, which, num_bins_ - bin));
      }
    }
  }

  // Strikes out the undecided boxes that box k hides.
  void strike_out(int64_t k) {
    const Box<A> hider = box(k);
    // What is hidden begins before the far end of this box less its share, and ends behind its near
    // end and as much; a coordinate that lies below a number lies below the number rounded.
    const A share = share_of_side(rule_.threshold, area_[k]);
    const A width = share * (hider.x2 - hider.x1), height = share * (hider.y2 - hider.y1);
    const int64_t first = k / kLine;
    const BitLine* begin_x = set(first, kBeginX, plane_.x(hider.x2 - width, num_bins_));
    const BitLine* begin_y = set(first, kBeginY, plane_.y(hider.y2 - height, num_bins_));
    const BitLine* end_x = set(first, kEndX, plane_.x(hider.x1 + width, num_bins_));
    const BitLine* end_y = set(first, kEndY, plane_.y(hider.y1 + height, num_bins_));
    const int64_t stride = 4 * num_bins_;
    for (int64_t line = first, at = 0; line < lines_; ++line, at += stride) {
      BitLine maybe;
      if (!maybe.meet(undecided_[line], begin_x[at], begin_y[at], end_x[at], end_y[at])) continue;
      for (int64_t i = 0; i < kLineWords; ++i) {
        if (maybe.words[i] == 0) continue;
        const int64_t word = line * kLineWords + i;
        undecided(word) &= ~hidden(hider, area_[k], word * kWord, maybe.words[i]);
      }
    }
  }

  // Which of the boxes from `begin` on that have a bit in `maybe` the hider hides.
  uint64_t hidden(const Box<A>& hider, A hider_area, int64_t begin, uint64_t maybe) const {
    uint64_t bits = 0;
    if (rule_.overlap == SuppressionOverlap::kIou) {
      constexpr uint64_t kMask = (uint64_t{1} << kCompared) - 1;
      for (uint64_t left = maybe; left != 0;) {
        const int shift = __builtin_ctzll(left) / kCompared * kCompared;
        left &= ~(kMask << shift);
        bits |= uint64_t{compare(hider, hider_area, begin + shift)} << shift;
      }
      return bits & maybe;
    }
    for (; maybe != 0; maybe &= maybe - 1) {
      const int lane = __builtin_ctzll(maybe);
      const int64_t k = begin + lane;
      bits |= uint64_t{rule_.hides(hider, hider_area, box(k), area_[k])} << lane;
    }
    return bits;
  }

  // A bit for each of the boxes from `begin` on whose IoU exceeds the threshold.
  uint32_t compare(const Box<A>& hider, A hider_area, int64_t begin) const {
    uint32_t bits = 0;
    for (int lane = 0; lane < kCompared; ++lane) {
      const int64_t k = begin + lane;
      const bool exceeds = iou(intersection(hider, box(k)), hider_area, area_[k]) > rule_.threshold;
      bits |= static_cast<uint32_t>(exceeds) << lane;
    }
    return bits;
  }

  const SuppressionRule<A>& rule_;
  const PlaneBins<A>& plane_;
  const int64_t lines_, room_;  // in lines of bits; in boxes, as many as whole words take
  const int num_bins_;
  A *const x1_, *const y1_, *const x2_, *const y2_, *const area_;
  BitLine *const undecided_, *const sets_;
};

}  // namespace cpu
}  // namespace pydet
