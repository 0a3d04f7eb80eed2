// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <atomic>
#include <limits>
#include <memory>
#include <vector>

#include "common/isa.h"
#include "common/parallel_for.h"
#include "common/sort_items.h"
#include "common/suppression.h"
#include "nms/nms.h"

namespace pydet {
namespace cpu {
namespace {

// Kept boxes that are compared with a candidate together: one vector register holds one coordinate
// of many.
constexpr int kLanes = 32;

template <class A>
struct Block {
  A x1[kLanes], y1[kLanes], x2[kLanes], y2[kLanes], area[kLanes];

  Box<A> box(int lane) const { return {x1[lane], y1[lane], x2[lane], y2[lane]}; }

  void set(int lane, const Box<A>& box, A box_area) {
    x1[lane] = box.x1;
    y1[lane] = box.y1;
    x2[lane] = box.x2;
    y2[lane] = box.y2;
    area[lane] = box_area;
  }

  // Boxes of NaN: they hide nothing.
  void clear() {
    const A nan = std::numeric_limits<A>::quiet_NaN();
    for (int lane = 0; lane < kLanes; ++lane) set(lane, {nan, nan, nan, nan}, nan);
  }
};

// Whether a box of the block hides the candidate.
template <class A>
bool hides(const Block<A>& block, const Box<A>& box, A box_area, A threshold) {
  int maybe = 0;
  for (int lane = 0; lane < kLanes; ++lane) {
    maybe |= may_exceed(intersection(box, block.box(lane)), box_area, block.area[lane], threshold);
  }
  if (maybe == 0) return false;
  int surely = 0;
  for (int lane = 0; lane < kLanes; ++lane) {
    surely |= iou(intersection(box, block.box(lane)), box_area, block.area[lane]) > threshold;
  }
  return surely != 0;
}

template <class T>
struct SuppressGroup {
  using A = acc_t<T>;

  // Visits the `count` boxes of one class in score order until `limit` of them are kept and marks
  // these in keep[rank]. members[k].index is the rank of the k-th (null: k itself), order[rank] the
  // index of its box. `kept` has room for count / kLanes blocks.
  static void run(int64_t count, int64_t limit, A threshold, const Item* members,
                  const int64_t* order, const T* boxes, Block<A>* kept, uint8_t* keep) {
    Block<A> last;  // the block being filled; only full ones are stored
    last.clear();
    int64_t num_blocks = 0, num_kept = 0;
    int num_last = 0;
    for (int64_t k = 0; k < count && num_kept < limit; ++k) {
      const int64_t rank = members == nullptr ? k : members[k].index;
      const Box<A> box = load_box(boxes, order[rank]);
      const A box_area = area(box);
      const bool overlaps = can_overlap(box, box_area);
      bool hidden = overlaps && hides(last, box, box_area, threshold);
      for (int64_t block = 0; overlaps && !hidden && block < num_blocks; ++block) {
        hidden = hides(kept[block], box, box_area, threshold);
      }
      if (hidden) continue;
      keep[rank] = 1;
      ++num_kept;
      if (!overlaps) continue;
      last.set(num_last++, box, box_area);
      if (num_last == kLanes) {
        kept[num_blocks++] = last;
        last.clear();
        num_last = 0;
      }
    }
  }
};

// What one image needs; one a worker, so that nothing is allocated inside of a thread.
template <class T>
struct Workspace {
  using A = acc_t<T>;
  std::unique_ptr<Item[]> items, scratch;
  std::unique_ptr<int64_t[]> order, group_begin;
  std::unique_ptr<Block<A>[]> kept;
  std::unique_ptr<uint8_t[]> keep;

  explicit Workspace(int64_t num_boxes)
      : items(new Item[num_boxes]),
        scratch(new Item[num_boxes]),
        order(new int64_t[num_boxes]),
        group_begin(new int64_t[num_boxes + 1]),
        kept(new Block<A>[num_boxes / kLanes]),
        keep(new uint8_t[num_boxes]) {}
};

// Boxes that a thread takes at a time, about.
constexpr int64_t kGrain = 2048;

// Suppresses among the first `count` boxes in score order and marks the kept ones in w.keep.
template <class T>
void suppress(int64_t count, const NmsParams& p, const T* boxes, const int64_t* idxs,
              Workspace<T>& w) {
  using A = acc_t<T>;
  const A threshold = threshold_below<A>(p.iou_threshold);
  std::fill_n(w.keep.get(), count, uint8_t{0});
  if (idxs == nullptr) {
    run_on_best_isa<SuppressGroup<T>>(
        count, p.max_output, threshold, static_cast<const Item*>(nullptr),
        static_cast<const int64_t*>(w.order.get()), boxes, w.kept.get(), w.keep.get());
    return;
  }
  for (int64_t rank = 0; rank < count; ++rank) {
    w.items[rank] = {static_cast<uint64_t>(idxs[w.order[rank]]), rank};
  }
  int64_t num_groups = 0;
  const Item* members =
      group_items(count, w.items.get(), w.scratch.get(), w.group_begin.get(), &num_groups);
  parallel_for(num_groups, kGrain * num_groups / std::max<int64_t>(1, count),
               [&](int64_t first, int64_t end) {
                 for (int64_t group = first; group < end; ++group) {
                   const int64_t begin = w.group_begin[group];
                   // A group fills at most floor(size / kLanes) blocks, so those that start at
                   // floor(begin / kLanes) end before the next group's.
                   run_on_best_isa<SuppressGroup<T>>(
                       w.group_begin[group + 1] - begin, p.max_output, threshold, members + begin,
                       static_cast<const int64_t*>(w.order.get()), boxes,
                       w.kept.get() + begin / kLanes, w.keep.get());
                 }
               });
}

// One image: fills its row of keep and returns the number of kept boxes.
template <class T>
int64_t nms_image(const NmsParams& p, const T* boxes, const T* scores, const int64_t* idxs,
                  Workspace<T>& w, int64_t* keep) {
  const acc_t<T> score_threshold = rounded_to<T>(p.score_threshold);
  int64_t count = 0;
  for (int64_t i = 0; i < p.num_boxes; ++i) {
    const acc_t<T> score = load(scores + i);
    if (!p.filter_scores || score > score_threshold) w.items[count++] = {score_key(score), i};
  }
  const Item* sorted = sort_items(count, w.items.get(), w.scratch.get());
  for (int64_t rank = 0; rank < count; ++rank) w.order[rank] = sorted[rank].index;

  // Often a few of the best boxes fill the output: try with those first. Eight times as many at
  // each further try, so all failed ones together cost little.
  int64_t num_kept = 0, prefix = std::min(count, std::max<int64_t>(4096, 8 * p.max_output));
  while (true) {
    suppress(prefix, p, boxes, idxs, w);
    num_kept = 0;
    for (int64_t rank = 0; rank < prefix && num_kept < p.max_output; ++rank) {
      if (w.keep[rank] != 0) keep[num_kept++] = w.order[rank];
    }
    if (num_kept == p.max_output || prefix == count) break;
    prefix = std::min(count, 8 * prefix);
  }
  std::fill(keep + num_kept, keep + p.max_output, int64_t{-1});
  return num_kept;
}

}  // namespace

template <class T>
void nms(const NmsParams& params, const T* boxes, const T* scores, const int64_t* idxs,
         int64_t* keep, int64_t* counts) {
  const int64_t n = params.num_boxes;
  const int64_t workers = std::min(params.batch, num_threads());
  std::vector<Workspace<T>> workspaces;
  for (int64_t i = 0; i < workers; ++i) workspaces.emplace_back(n);
  std::atomic<int64_t> next{0};
  parallel_for(workers, 1, [&](int64_t worker, int64_t) {
    for (int64_t b = next++; b < params.batch; b = next++) {
      counts[b] = nms_image(params, boxes + 4 * b * n, scores + b * n,
                            idxs == nullptr ? nullptr : idxs + b * n, workspaces[worker],
                            keep + b * params.max_output);
    }
  });
}

template void nms(const NmsParams&, const float*, const float*, const int64_t*, int64_t*, int64_t*);
template void nms(const NmsParams&, const double*, const double*, const int64_t*, int64_t*,
                  int64_t*);
template void nms(const NmsParams&, const Half*, const Half*, const int64_t*, int64_t*, int64_t*);
template void nms(const NmsParams&, const BFloat16*, const BFloat16*, const int64_t*, int64_t*,
                  int64_t*);

}  // namespace cpu
}  // namespace pydet
