// SPDX-License-Identifier: Apache-2.0
#include <cmath>

#include "common/launch.cuh"
#include "common/rank.cuh"
#include "common/suppression.h"
#include "nms/nms.h"

// The boxes of all images are sorted by (image, score), stable. Then each image goes through its
// candidates tile by tile, all images at once, two kernels a tile:
//   1. nms_mask_kernel compares the tile with the boxes kept so far (-> hidden: a bit a candidate)
//      and, above the diagonal, with itself (-> mask: a bit a pair);
//   2. nms_resolve_kernel, a block an image, walks the tile in order and appends what it keeps.
// So there is no N x N mask, and an image that is done costs its blocks one look. Classes are
// compared in the pair test: that costs less than sorting by them, and the result is in order.

namespace pydet {
namespace cuda {
namespace {

constexpr int kThreads = 256;          // candidates a block of the mask kernel takes
constexpr int kWord = 64;              // candidates a word of the mask
constexpr int64_t kMaxTile = 2048;     // candidates of an image a step
constexpr int64_t kMaxMask = 1 << 28;  // bytes that the masks of all images may take, about
constexpr int kMaxWords = kMaxTile / kWord;
constexpr int64_t kMaxImages = 1 << 10;  // a launch has blocks for; they stride over more
constexpr int64_t kMaxBlocks = 1 << 11;  // of the mask kernel: all GPUs a few times over
constexpr int kWarp = 32;
constexpr int kResolveThreads = 512;
static_assert(kMaxWords <= kWarp, "each lane of a warp strikes out in one word of the tile");

// The workspace: where each part starts, in bytes, and how long the tiles are.
struct Layout {
  int64_t tile;
  size_t valid, hidden, mask, total;
  PairSortLayout rank;
};

// What the kernels of a tile share. Arrays of all images, image b from b times its row on.
struct Tiles {
  int64_t size, begin;   // candidates a tile; the first one of this tile
  const int64_t* order;  // [batch, num_boxes] box numbers over all images, sorted
  int64_t* valid;        // [batch] how many of them take part
  uint32_t* hidden;      // [batch, size / 32] candidates that a box kept before the tile hides
  uint64_t* mask;        // [batch, size, size / 64] bit j of row i: candidate i hides candidate j,
                         // one behind it; in the words of the diagonal j hides i and is before it
};

template <class A>
struct alignas(16) Candidate {  // so that one load of 128 bits reads four coordinates
  Box<A> box;
  A area;  // NaN for a box that overlaps nothing: then no comparison below is true
  int64_t label;
};

template <class A>
__device__ Candidate<A> no_candidate() {
  const A nan = static_cast<A>(NAN);
  return {{nan, nan, nan, nan}, nan, 0};
}

template <class T>
__device__ Candidate<acc_t<T>> load_candidate(const T* boxes, const int64_t* idxs, int64_t index) {
  const Box<acc_t<T>> box = load_box(boxes, index);
  const acc_t<T> box_area = area(box);
  if (!can_overlap(box, box_area)) return no_candidate<acc_t<T>>();
  return {box, box_area, idxs == nullptr ? 0 : idxs[index]};
}

template <class A>
__device__ bool hides(const SuppressionRule<A>& rule, const Candidate<A>& a,
                      const Candidate<A>& b) {
  return a.label == b.label && rule.hides(a.box, a.area, b.box, b.area);
}

// Empties the outputs and finds how many boxes of each image take part: the rest stand behind them.
template <class T>
__global__ void __launch_bounds__(kThreads)
    nms_start_kernel(NmsParams p, acc_t<T> score_threshold, Tiles tiles, const T* scores,
                     int64_t* keep, int64_t* counts) {
  const int64_t first = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  const int64_t stride = int64_t{gridDim.x} * kThreads;
  for (int64_t i = first; i < p.batch * p.max_output; i += stride) keep[i] = -1;
  for (int64_t i = first; i < p.batch * (tiles.size / kWarp); i += stride) tiles.hidden[i] = 0;
  for (int64_t image = first; image < p.batch; image += stride) counts[image] = 0;
  for (int64_t i = first; i < p.batch * p.num_boxes; i += stride) {
    const int64_t image = i / p.num_boxes, rank = i % p.num_boxes;
    const int64_t valid = count_ranked(rank, p.num_boxes, p.filter_scores, score_threshold, scores,
                                       tiles.order + image * p.num_boxes);
    if (valid >= 0) tiles.valid[image] = valid;
  }
}

// A piece of work is kThreads candidates (rows) against kWord boxes (columns): of the tile itself,
// or of those kept so far. Every branch around a barrier depends on the piece and image alone.
template <class T>
__global__ void __launch_bounds__(kThreads)
    nms_mask_kernel(NmsParams p, SuppressionRule<acc_t<T>> rule, Tiles tiles, const T* boxes,
                    const int64_t* idxs, const int64_t* keep, const int64_t* counts) {
  using A = acc_t<T>;
  __shared__ Candidate<A> columns[kWord];
  const int thread = static_cast<int>(threadIdx.x);
  for (int64_t image = blockIdx.y; image < p.batch; image += gridDim.y) {
    const int64_t rows = min_of(tiles.size, tiles.valid[image] - tiles.begin);
    const int64_t num_kept = counts[image];
    if (rows <= 0 || num_kept >= p.max_output) continue;
    const int64_t first_box = image * p.num_boxes;
    const int64_t* order = tiles.order + first_box + tiles.begin;
    const int64_t words = ceil_div<int64_t>(rows, kWord);
    const int64_t row_groups = ceil_div<int64_t>(rows, kThreads);
    const int64_t pieces = row_groups * (words + ceil_div<int64_t>(num_kept, kWord));
    for (int64_t piece = blockIdx.x; piece < pieces; piece += gridDim.x) {
      const int64_t row = piece % row_groups * kThreads + thread;
      const int64_t word = piece / row_groups;
      const bool inside = word < words;                            // the columns are of the tile
      if (inside && (word + 1) * kWord <= row - thread) continue;  // all below the diagonal
      __syncthreads();  // the columns of the piece before are not needed any more
      if (thread < kWord) {
        const int64_t column = (inside ? word : word - words) * kWord + thread;
        columns[thread] = no_candidate<A>();
        if (column < (inside ? rows : num_kept)) {
          columns[thread] = load_candidate(
              boxes, idxs,
              inside ? order[column] : first_box + keep[image * p.max_output + column]);
        }
      }
      __syncthreads();
      const Candidate<A> candidate =
          row < rows ? load_candidate(boxes, idxs, order[row]) : no_candidate<A>();
      if (inside) {
        if (row >= rows || row / kWord > word) continue;
        uint64_t bits = 0;
        for (int j = 0; j < kWord; ++j) {
          bits |= static_cast<uint64_t>(hides(rule, candidate, columns[j])) << j;
        }
        // Hiding is mutual, so on the diagonal the candidates before this one are those that hide
        // it.
        if (row / kWord == word) bits &= (uint64_t{1} << (row % kWord)) - 1;
        tiles.mask[(image * tiles.size + row) * (tiles.size / kWord) + word] = bits;
      } else {
        bool is_hidden = false;
        for (int j = 0; row < rows && j < kWord && !is_hidden; ++j) {
          is_hidden = hides(rule, columns[j], candidate);
        }
        const uint32_t bits = __ballot_sync(0xffffffffu, is_hidden);
        if (thread % kWarp == 0 && bits != 0) {
          atomicOr(tiles.hidden + image * (tiles.size / kWarp) + row / kWarp, bits);
        }
      }
    }
  }
}

// Which candidates of a word are kept: those alive that none of the kept ones before them hides.
// hiding[k] are the candidates that hide number lane + 32 k; all lanes must call it. Starting from
// all that are alive, each round is right for one more candidate at least, and mostly for all after
// two or three.
__device__ uint64_t kept_of_word(uint64_t alive, const uint64_t (&hiding)[2]) {
  uint64_t kept = alive, before = 0;
  while (kept != before) {  // the same for all lanes
    before = kept;
    const uint64_t low = __ballot_sync(0xffffffffu, (hiding[0] & kept) == 0);
    const uint64_t high = __ballot_sync(0xffffffffu, (hiding[1] & kept) == 0);
    kept = alive & (low | high << kWarp);
  }
  return kept;
}

// One block an image walks its tile, 64 candidates at a time: every warp decides these for itself,
// then each strikes out, in the words behind, what some of the kept ones hide.
__global__ void __launch_bounds__(kResolveThreads)
    nms_resolve_kernel(NmsParams p, Tiles tiles, int64_t* keep, int64_t* counts) {
  __shared__ unsigned long long removed[kMaxWords];
  __shared__ uint64_t diagonal[kMaxTile];
  const int thread = static_cast<int>(threadIdx.x), lane = thread % kWarp, warp = thread / kWarp;
  const int64_t mask_words = tiles.size / kWord;
  for (int64_t image = blockIdx.x; image < p.batch; image += gridDim.x) {
    const int64_t rows = min_of(tiles.size, tiles.valid[image] - tiles.begin);
    int64_t num_kept = counts[image];
    if (rows <= 0 || num_kept >= p.max_output) continue;  // the same for the whole block
    const int64_t* order = tiles.order + image * p.num_boxes + tiles.begin;
    const uint64_t* mask = tiles.mask + image * tiles.size * mask_words;
    uint32_t* hidden = tiles.hidden + image * (tiles.size / kWarp);
    const int words = static_cast<int>(ceil_div<int64_t>(rows, kWord));
    for (int64_t row = thread; row < rows; row += kResolveThreads) {
      diagonal[row] = mask[row * mask_words + row / kWord];
    }
    if (thread < words) {
      const int64_t left = rows - int64_t{thread} * kWord;  // at least 1
      const uint64_t none = left >= kWord ? 0 : ~uint64_t{0} << left;
      removed[thread] = none | hidden[2 * thread] | uint64_t{hidden[2 * thread + 1]} << 32;
      hidden[2 * thread] = hidden[2 * thread + 1] = 0;  // for the next tile
    }
    __syncthreads();
    for (int word = 0; word < words && num_kept < p.max_output; ++word) {
      const uint64_t hiding[2] = {diagonal[word * kWord + lane],
                                  diagonal[word * kWord + kWarp + lane]};
      const uint64_t kept = kept_of_word(~removed[word], hiding);
      if (thread < kWord && (kept >> thread & 1) != 0) {
        const int64_t place = num_kept + __popcll(kept & ((uint64_t{1} << thread) - 1));
        if (place < p.max_output) {
          keep[image * p.max_output + place] =
              order[int64_t{word} * kWord + thread] - image * p.num_boxes;
        }
      }
      num_kept += __popcll(kept);
      const int other = word + 1 + lane;
      if (other < words) {
        const uint64_t* column = mask + int64_t{word} * kWord * mask_words + other;
        unsigned long long bits = 0;
        for (int i = warp; i < kWord; i += kResolveThreads / kWarp) {
          if ((kept >> i & 1) != 0) bits |= column[i * mask_words];
        }
        if (bits != 0) atomicOr(&removed[other], bits);
      }
      __syncthreads();  // also before the next image writes to the shared arrays
    }
    if (thread == 0) counts[image] = min_of(num_kept, p.max_output);
  }
}

const char* make_layout(const NmsParams& p, Layout* layout) {
  int64_t tile =
      min_of(kMaxTile, ceil_div<int64_t>(max_of<int64_t>(1, p.num_boxes), kWord) * kWord);
  while (tile > kThreads && p.batch * tile * tile / 8 > kMaxMask) {
    tile = ceil_div<int64_t>(tile / 2, kWord) * kWord;
  }
  layout->tile = tile;
  const Places take(&layout->total);
  layout->valid = take(p.batch * sizeof(int64_t));
  layout->hidden = take(p.batch * tile / 8);
  layout->mask = take(p.batch * tile * (tile / 8));
  return make_pair_sort_layout(p.batch * p.num_boxes, take, &layout->rank);
}

}  // namespace

const char* nms_workspace_bytes(const NmsParams& params, size_t* bytes) {
  Layout layout;
  const char* error = make_layout(params, &layout);
  *bytes = layout.total;
  return error;
}

template <class T>
const char* nms(const NmsParams& params, const T* boxes, const T* scores, const int64_t* idxs,
                int64_t* keep, int64_t* counts, void* workspace, CUstream_st* stream) {
  const NmsParams& p = params;
  if (p.batch == 0) return nullptr;
  Layout layout;
  if (const char* error = make_layout(p, &layout)) return error;
  char* bytes = static_cast<char*>(workspace);
  const acc_t<T> score_threshold = rounded_to<T>(p.score_threshold);
  Tiles tiles{layout.tile,
              0,
              nullptr,
              reinterpret_cast<int64_t*>(bytes + layout.valid),
              reinterpret_cast<uint32_t*>(bytes + layout.hidden),
              reinterpret_cast<uint64_t*>(bytes + layout.mask)};
  if (p.num_boxes > 0) {
    const char* error = rank_boxes(p.batch, p.num_boxes, p.filter_scores, score_threshold, scores,
                                   layout.rank, bytes, &tiles.order, stream);
    if (error != nullptr) return error;
  }
  const int64_t outputs = p.batch * max_of(max_of(p.num_boxes, p.max_output), tiles.size / kWarp);
  launch(nms_start_kernel<T>, grid_size(outputs, kThreads), kThreads, 0, stream, p, score_threshold,
         tiles, scores, keep, counts);
  if (const char* error = launch_error()) return error;
  const SuppressionRule<acc_t<T>> rule(p.overlap, p.iou_threshold);
  const int64_t images = min_of<int64_t>(p.batch, kMaxImages);
  for (; p.max_output > 0 && tiles.begin < p.num_boxes; tiles.begin += tiles.size) {
    // As many blocks as the pieces need, were the output as full as it can be by now, but no more
    // than fill the device a few times over.
    const int64_t columns = tiles.size + min_of(p.max_output, tiles.begin);
    const int64_t pieces =
        ceil_div<int64_t>(tiles.size, kThreads) * ceil_div<int64_t>(columns, kWord);
    const int64_t enough = max_of<int64_t>(1, kMaxBlocks / images);
    const dim3 grid(static_cast<unsigned int>(min_of(pieces, enough)),
                    static_cast<unsigned int>(images));
    launch(nms_mask_kernel<T>, grid, kThreads, 0, stream, p, rule, tiles, boxes, idxs, keep,
           counts);
    if (const char* error = launch_error()) return error;
    launch(nms_resolve_kernel, static_cast<unsigned int>(images), kResolveThreads, 0, stream, p,
           tiles, keep, counts);
    if (const char* error = launch_error()) return error;
  }
  return nullptr;
}

template const char* nms(const NmsParams&, const float*, const float*, const int64_t*, int64_t*,
                         int64_t*, void*, CUstream_st*);
template const char* nms(const NmsParams&, const double*, const double*, const int64_t*, int64_t*,
                         int64_t*, void*, CUstream_st*);
template const char* nms(const NmsParams&, const Half*, const Half*, const int64_t*, int64_t*,
                         int64_t*, void*, CUstream_st*);
template const char* nms(const NmsParams&, const BFloat16*, const BFloat16*, const int64_t*,
                         int64_t*, int64_t*, void*, CUstream_st*);

}  // namespace cuda
}  // namespace pydet
