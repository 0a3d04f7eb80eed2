// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cstring>
#include <limits>
#include <memory>
#include <vector>

#include "common/isa.h"
#include "common/parallel_for.h"
#include "match_anchors/match_anchors.h"
#include "match_anchors/match_anchors_block.h"

namespace pydet {
namespace cpu {
namespace {

// Matches the anchors of one block in the images [image_begin, image_end), and notes the highest
// quality of each ground truth. Thresholds of minus infinity give every anchor its own best.
template <class T, Isa kIsa>
struct MatchBlock {
  using A = acc_t<T>;

  static void run(const Job<T>* job, int64_t number, int64_t image_begin, int64_t image_end,
                  A fg_iou_threshold, A bg_iou_threshold, bool note_highest) {
    const int64_t begin = number * kBlock, count = std::min(kBlock, job->num_anchors - begin);
    Hull<A> hull{};
    Block<A> block;
    bool loaded = false;  // only where something touches the block
    for (int64_t b = image_begin; b < image_end; ++b) {
      const T* anchors = job->anchors_of(b) + 4 * begin;
      if (b == image_begin || job->own_anchors) {
        hull = Hull<A>::of(anchors, count);
        loaded = false;
      }
      const auto load_block = [&] {
        if (!loaded) block.load_from(anchors, count, hull.has_nan);
        loaded = true;
      };
      const Image<A>& image = job->images[b];
      const bits_t<A> first = image.num_truths > 0 ? image.truths[0].index : -1;
      alignas(64) bits_t<A> best[kBlock], argmax[kBlock];
      bool touched = false;
      for (int64_t from = 0; from < image.num_truths; from += kBoundsLanes) {
        uint32_t meets = image.bounds[from / kBoundsLanes].template meets<kIsa>(hull.box);
        if (meets != 0 && !touched) {
          touched = true;
          load_block();
          for (int64_t j = 0; j < kBlock; ++j) {
            best[j] = 0;
            argmax[j] = first;
          }
        }
        for (; meets != 0; meets &= meets - 1) {
          const int64_t k = from + __builtin_ctz(meets);
          const bits_t<A> highest = sweep(block, image.truths[k], best, argmax);
          if (note_highest && highest > 0)
            raise_to(image.highest + k, static_cast<uint64_t>(highest), 8 * sizeof(A), number);
        }
      }
      int64_t* idxs = job->matched_idxs + b * job->num_anchors + begin;
      A* ious = job->matched_ious + b * job->num_anchors + begin;
      if (touched) {
        std::memcpy(ious, best, count * sizeof(A));
        decide(best, fg_iou_threshold, bg_iou_threshold, argmax);
        for (int64_t j = 0; j < count; ++j) idxs[j] = argmax[j];
      } else {
        std::fill_n(ious, count, A(0));
        std::fill_n(idxs, count,
                    decide_match(A(0), int64_t{first}, fg_iou_threshold, bg_iou_threshold));
      }
      if (hull.has_nan) {
        load_block();
        for (int64_t j = 0; j < count; ++j) idxs[j] = block.valid[j] ? idxs[j] : kBackground;
      }
      for (int64_t k = 0; k < image.num_ignored; ++k) {
        if (!hull.touches(image.ignored[k].box)) continue;
        load_block();
        ignore(block, image.ignored[k].box, count, idxs);
      }
    }
  }

  // Compares one ground truth with all anchors of the block; returns its highest quality.
  static bits_t<A> sweep(const Block<A>& block, const Truth<A>& truth, bits_t<A>* best,
                         bits_t<A>* argmax) {
    const Box<A> box = truth.box;
    const A area_gt = truth.area;
    const bits_t<A> index = truth.index;
    bits_t<A> highest = 0;
    for (int64_t j = 0; j < kBlock; ++j) {
      const bits_t<A> quality =
          to_bits(match_quality(intersection(block.box(j), box), block.area[j], area_gt));
      // All bits or none: of a condition compilers make a branch around the store.
      const bits_t<A> higher = -static_cast<bits_t<A>>(quality > best[j]);
      argmax[j] = (index & higher) | (argmax[j] & ~higher);
      best[j] = std::max(quality, best[j]);
      highest = std::max(quality, highest);
    }
    return highest;
  }

  // Turns the number of the best ground truth into the result.
  static void decide(const bits_t<A>* best, A fg_iou_threshold, A bg_iou_threshold,
                     bits_t<A>* argmax) {
    for (int64_t j = 0; j < kBlock; ++j)
      argmax[j] =
          decide_match(from_bits<A>(best[j]), argmax[j], fg_iou_threshold, bg_iou_threshold);
  }

  static void ignore(const Block<A>& block, const Box<A>& box, int64_t count, int64_t* idxs) {
    for (int64_t j = 0; j < count; ++j) {
      const bool covered = lies_in_ignored(intersection(block.box(j), box), block.area[j]);
      idxs[j] = covered && idxs[j] < 0 ? kIgnored : idxs[j];
    }
  }
};

// The low-quality rule for one ground truth: each anchor that ties with its highest quality gets
// its own best ground truth back. Only the blocks from the first to the last with such an anchor
// are looked at. Several ground truths may restore one anchor at once, to the same index.
template <class T>
struct RestoreTies {
  using A = acc_t<T>;

  static void run(const Job<T>* job, int64_t b, int64_t k) {
    const Image<A>& image = job->images[b];
    for_each_tie(*job, b, k, [&](const Block<A>& block, int64_t j, int64_t i) {
      int64_t* idx = job->matched_idxs + b * job->num_anchors + i;
      if (__atomic_load_n(idx, __ATOMIC_RELAXED) < 0) {
        const A best = job->matched_ious[b * job->num_anchors + i];
        __atomic_store_n(idx, own_best(image, block.box(j), block.area[j], best), __ATOMIC_RELAXED);
      }
      return true;
    });
  }

  // Calls body(block, place in the block, anchor) for the anchors that tie with the highest quality
  // of ground truth k of image b, in their order, for as long as it returns true.
  template <class Body>
  static void for_each_tie(const Job<T>& job, int64_t b, int64_t k, const Body& body) {
    const Image<A>& image = job.images[b];
    const Truth<A>& truth = image.truths[k];
    const Highest& highest = image.highest[k];
    const bits_t<A> wanted = static_cast<bits_t<A>>(highest.quality.load());
    const int64_t first = static_cast<int64_t>(~highest.first.load() & kBlockMask);
    const int64_t last = static_cast<int64_t>(highest.last.load() & kBlockMask);
    for (int64_t number = first; number <= last; ++number) {
      const int64_t begin = number * kBlock, count = std::min(kBlock, job.num_anchors - begin);
      const T* anchors = job.anchors_of(b) + 4 * begin;
      const auto hull = Hull<A>::of(anchors, count);
      if (!hull.touches(truth.box)) continue;
      Block<A> block;
      block.load_from(anchors, count, hull.has_nan);
      bool tie[kBlock];
      for (int64_t j = 0; j < kBlock; ++j) {
        const A inter = intersection(block.box(j), truth.box);
        tie[j] = to_bits(match_quality(inter, block.area[j], truth.area)) == wanted;
      }
      for (int64_t j = 0; j < count; ++j) {
        if (tie[j] && !body(block, j, begin + j)) return;
      }
    }
  }

  // The first ground truth with which the anchor has the quality `best`, which is positive.
  static int64_t own_best(const Image<A>& image, const Box<A>& anchor, A area_anchor, A best) {
    for (int64_t k = 0; k < image.num_truths; ++k) {
      const A inter = intersection(anchor, image.truths[k].box);
      if (!(inter > A(0))) continue;
      if (match_quality(inter, area_anchor, image.truths[k].area) == best)
        return image.truths[k].index;
    }
    return kBackground;  // cannot happen: the first pass found one
  }
};

// The rule of SSD: the first anchor with the highest quality of ground truth k, for the ground
// truths that any anchor overlaps.
template <class T>
struct FindBestAnchor {
  static void run(const Job<T>* job, int64_t b, int64_t k, int64_t* best_anchor) {
    const Image<acc_t<T>>& image = job->images[b];
    *best_anchor = -1;
    if (image.highest[k].quality.load() == 0) return;
    RestoreTies<T>::for_each_tie(*job, b, k, [&](const auto&, int64_t, int64_t i) {
      *best_anchor = i;
      return false;
    });
  }
};

template <class T>
void give_best_anchors(const Job<T>& job, int64_t num_images) {
  std::vector<int64_t> best_anchors;
  for (int64_t b = 0; b < num_images; ++b) {
    const Image<acc_t<T>>& image = job.images[b];
    best_anchors.resize(image.num_truths);
    parallel_for(image.num_truths, 8, [&](int64_t begin, int64_t end) {
      for (int64_t k = begin; k < end; ++k)
        run_on_best_isa<FindBestAnchor<T>>(&job, b, k, best_anchors.data() + k);
    });
    // One after the other: of several with one best anchor the last gets it.
    for (int64_t k = 0; k < image.num_truths; ++k) {
      if (best_anchors[k] >= 0)
        job.matched_idxs[b * job.num_anchors + best_anchors[k]] = image.truths[k].index;
    }
  }
}

// The low-quality rule for all images.
template <class T>
void restore_low_quality(const Job<T>& job, int64_t num_images, int64_t blocks) {
  using A = acc_t<T>;
  for (int64_t b = 0; b < num_images; ++b) {
    const Image<A>& image = job.images[b];
    // A ground truth whose highest quality is 0 ties with every anchor: all get their best back.
    const bool all_tie =
        std::any_of(image.highest, image.highest + image.num_truths,
                    [](const Highest& highest) { return highest.quality.load() == 0; });
    if (all_tie) {
      const A none = -std::numeric_limits<A>::infinity();
      parallel_for(blocks, 8, [&](int64_t begin, int64_t end) {
        for (int64_t block = begin; block < end; ++block)
          run_for_isa<MatchBlock, T>(&job, block, b, b + 1, none, none, false);
      });
    } else {
      parallel_for(image.num_truths, 8, [&](int64_t begin, int64_t end) {
        for (int64_t k = begin; k < end; ++k) run_on_best_isa<RestoreTies<T>>(&job, b, k);
      });
    }
  }
}

// The ground truths that take part, sorted into those to match and those to ignore.
template <class T>
struct Truths {
  using A = acc_t<T>;
  std::vector<Truth<A>> matched, ignored;
  std::vector<Bounds<A>> bounds;
  std::unique_ptr<Highest[]> highest;
  std::vector<Image<A>> images;

  Truths(int64_t num_images, int64_t num_gt, const T* gt_boxes, const bool* gt_ignored,
         const int64_t* offsets, bool with_highest) {
    std::vector<int64_t> ends;  // of each image, in `matched` and in `ignored`
    for (int64_t b = 0; b < num_images; ++b) {
      const int64_t begin = offsets ? std::clamp<int64_t>(offsets[b], 0, num_gt) : 0;
      const int64_t end = offsets ? std::clamp(offsets[b + 1], begin, num_gt) : num_gt;
      for (int64_t g = begin; g < end; ++g) {
        const Box<A> box = load_box(gt_boxes, g);
        if (has_nan(box)) continue;
        const bool ignore = gt_ignored != nullptr && gt_ignored[g];
        (ignore ? ignored : matched).push_back({box, area(box), static_cast<int32_t>(g - begin)});
      }
      ends.insert(ends.end(),
                  {static_cast<int64_t>(matched.size()), static_cast<int64_t>(ignored.size())});
    }
    if (with_highest) highest = std::make_unique<Highest[]>(matched.size());
    std::vector<int64_t> bounds_begin;
    int64_t begin = 0, ignored_begin = 0;
    for (int64_t b = 0; b < num_images; ++b) {
      bounds_begin.push_back(static_cast<int64_t>(bounds.size()));
      for (int64_t k = begin; k < ends[2 * b]; ++k) {
        const int lane = static_cast<int>((k - begin) % kBoundsLanes);
        if (lane == 0) bounds.emplace_back().clear();
        bounds.back().set(lane, matched[k].box);
      }
      images.push_back({matched.data() + begin, nullptr,
                        with_highest ? highest.get() + begin : nullptr, ends[2 * b] - begin,
                        ignored.data() + ignored_begin, ends[2 * b + 1] - ignored_begin});
      begin = ends[2 * b];
      ignored_begin = ends[2 * b + 1];
    }
    for (int64_t b = 0; b < num_images; ++b) images[b].bounds = bounds.data() + bounds_begin[b];
  }
};

}  // namespace

template <class T>
void match_anchors(int64_t num_images, int64_t num_anchors, int64_t num_gt, const T* anchors,
                   const T* gt_boxes, const bool* gt_ignored, const int64_t* offsets,
                   MatchParams params, int64_t* matched_idxs, acc_t<T>* matched_ious) {
  using A = acc_t<T>;
  if (num_images == 0 || num_anchors == 0) return;
  const bool need_highest = params.need_highest();
  const Truths<T> truths(num_images, num_gt, gt_boxes, gt_ignored, offsets, need_highest);
  const Job<T> job{anchors,      num_anchors, params.own_anchors, truths.images.data(),
                   matched_idxs, matched_ious};
  const int64_t blocks = (num_anchors + kBlock - 1) / kBlock;
  const A fg = static_cast<A>(params.fg_iou_threshold);
  const A bg = static_cast<A>(params.bg_iou_threshold);
  // With blocks enough for all threads, a block is loaded once for all images.
  const int64_t together = blocks >= 8 * num_threads() ? num_images : 1;
  const int64_t tasks = blocks * (num_images / together);
  // Not a block at a time: it may take less time than to agree on who takes the next.
  const int64_t grain = std::max<int64_t>(4, tasks / (16 * num_threads()));
  parallel_for(tasks, grain, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t image = task / blocks * together;
      run_for_isa<MatchBlock, T>(&job, task % blocks, image, image + together, fg, bg,
                                 need_highest);
    }
  });
  if (params.allow_low_quality_matches) restore_low_quality(job, num_images, blocks);
  if (params.best_anchor_for_each_gt) give_best_anchors(job, num_images);
}

template void match_anchors(int64_t, int64_t, int64_t, const float*, const float*, const bool*,
                            const int64_t*, MatchParams, int64_t*, float*);
template void match_anchors(int64_t, int64_t, int64_t, const double*, const double*, const bool*,
                            const int64_t*, MatchParams, int64_t*, double*);
template void match_anchors(int64_t, int64_t, int64_t, const Half*, const Half*, const bool*,
                            const int64_t*, MatchParams, int64_t*, float*);
template void match_anchors(int64_t, int64_t, int64_t, const BFloat16*, const BFloat16*,
                            const bool*, const int64_t*, MatchParams, int64_t*, float*);

}  // namespace cpu
}  // namespace pydet
