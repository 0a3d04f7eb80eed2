// SPDX-License-Identifier: Apache-2.0
#include <cmath>
#include <type_traits>

#include "common/decayed_output.cuh"
#include "common/launch.cuh"
#include "common/rank.cuh"
#include "common/suppression.h"
#include "matrix_nms/matrix_nms.h"

// The boxes of each image are sorted by score. Then all pairs of a box and a better one are looked
// at twice, tile by tile, in any order: once for the peaks, once for the decays. Tiles meet in
// atomic minima and maxima, which give the same bits whoever comes first.

namespace pydet {
namespace cuda {
namespace {

constexpr int kThreads = 256;            // boxes (rows) of a tile, one a thread
constexpr int kColumns = 64;             // better boxes (columns): few, so that tiles are many
constexpr int64_t kMaxImages = 1 << 10;  // a launch has blocks for; they stride over more
constexpr int64_t kMaxBlocks = 1 << 12;  // of tiles

// Numbers that are not negative are ordered as their bits are.
template <class A>
using word_t = std::conditional_t<sizeof(A) == 4, unsigned int, unsigned long long>;

__device__ unsigned int to_word(float value) { return bits_from_float(value); }
__device__ unsigned long long to_word(double value) { return bits_from_double(value); }
__device__ float from_word(unsigned int word) { return float_from_bits(word); }
__device__ double from_word(unsigned long long word) { return double_from_bits(word); }

// The workspace: where each part starts, in bytes.
struct Layout {
  size_t valid, peaks, values, decayed, total;
  PairSortLayout rank;
};

template <class A>
struct Work {
  Decay method;
  int64_t batch, num_boxes;
  const int64_t* order;  // [batch, num_boxes] box numbers over all images, by score
  int64_t* valid;        // [batch] how many of them take part
  word_t<A>* peaks;      // [batch, num_boxes] by rank
  word_t<A>* values;     // [batch, num_boxes] by rank, see MatrixDecay
  A* decayed;            // [batch, num_boxes] by box
};

template <class A>
struct alignas(16) Candidate {  // so that one load of 128 bits reads four coordinates
  Box<A> box;
  A area;  // NaN for a box that overlaps nothing: then no comparison below is true
  A peak;
  int64_t label;
};

template <class T>
__device__ Candidate<acc_t<T>> load_candidate(const T* boxes, const int64_t* idxs, int64_t index) {
  using A = acc_t<T>;
  const Box<A> box = load_box(boxes, index);
  const A box_area = area(box);
  return {box, can_overlap(box, box_area) ? box_area : static_cast<A>(NAN), A(0),
          idxs == nullptr ? 0 : idxs[index]};
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    matrix_nms_start_kernel(Work<acc_t<T>> work, acc_t<T> score_threshold, const T* scores) {
  using A = acc_t<T>;
  const int64_t first = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  const int64_t stride = int64_t{gridDim.x} * kThreads;
  const word_t<A> start = to_word(MatrixDecay<A>(work.method).value);
  for (int64_t i = first; i < work.batch * work.num_boxes; i += stride) {
    work.peaks[i] = 0;
    work.values[i] = start;
    work.decayed[i] = A(-1);
    const int64_t image = i / work.num_boxes, rank = i % work.num_boxes;
    const int64_t valid = count_ranked(rank, work.num_boxes, true, score_threshold, scores,
                                       work.order + image * work.num_boxes);
    if (valid >= 0) work.valid[image] = valid;
  }
}

// A tile is kThreads boxes (rows, a thread each) against kColumns that may be better (columns).
// Every branch around a barrier depends on the tile alone.
template <class T, bool kFindPeaks>
__global__ void __launch_bounds__(kThreads)
    matrix_nms_tile_kernel(Work<acc_t<T>> work, const T* boxes, const int64_t* idxs) {
  using A = acc_t<T>;
  __shared__ Candidate<A> columns[kColumns];
  const int thread = static_cast<int>(threadIdx.x);
  for (int64_t image = blockIdx.y; image < work.batch; image += gridDim.y) {
    const int64_t first_box = image * work.num_boxes, rows = work.valid[image];
    const int64_t* order = work.order + first_box;
    const int64_t groups = ceil_div<int64_t>(rows, kThreads);
    const int64_t tiles = groups * ceil_div<int64_t>(rows, kColumns);
    for (int64_t tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
      const int64_t row = tile % groups * kThreads + thread, begin = tile / groups * kColumns;
      if (begin >= row - thread + kThreads) continue;  // no better boxes there
      __syncthreads();  // the columns of the tile before are not needed any more
      if (thread < kColumns && begin + thread < rows) {
        columns[thread] = load_candidate(boxes, idxs, order[begin + thread]);
        if (!kFindPeaks) {
          columns[thread].peak = from_word(work.peaks[first_box + begin + thread]);
        }
      }
      __syncthreads();
      if (row >= rows) continue;
      const Candidate<A> own = load_candidate(boxes, idxs, order[row]);
      const int count = static_cast<int>(min_of<int64_t>(kColumns, row - begin));
      A peak = 0;
      MatrixDecay<A> decay(work.method);
      for (int j = 0; j < count; ++j) {
        const Candidate<A>& other = columns[j];
        if (other.label != own.label) continue;
        const A inter = intersection(own.box, other.box);
        if (!(inter > A(0))) continue;
        const A overlap = iou(inter, own.area, other.area);
        if (kFindPeaks) {
          peak = max_of(overlap, peak);  // in this order NaN is not taken
        } else if (work.method == Decay::kLinear) {
          decay.value = min_of(MatrixDecay<A>::linear(overlap, other.peak), decay.value);
        } else {
          decay.value = max_of(MatrixDecay<A>::gaussian(overlap, other.peak), decay.value);
        }
      }
      if (kFindPeaks) {
        if (peak > A(0)) atomicMax(work.peaks + first_box + row, to_word(peak));
      } else if (work.method == Decay::kLinear) {
        atomicMin(work.values + first_box + row, to_word(decay.value));
      } else {
        atomicMax(work.values + first_box + row, to_word(decay.value));
      }
    }
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    matrix_nms_decay_kernel(Work<acc_t<T>> work, acc_t<T> sigma, const T* scores) {
  const int64_t stride = int64_t{gridDim.x} * kThreads;
  for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < work.batch * work.num_boxes;
       i += stride) {
    if (i % work.num_boxes >= work.valid[i / work.num_boxes]) continue;
    MatrixDecay<acc_t<T>> decay(work.method);
    decay.value = from_word(work.values[i]);
    const int64_t index = work.order[i];
    work.decayed[index] = load(scores + index) * decay.weight(sigma);
  }
}

template <class T>
const char* make_layout(const MatrixNmsParams& p, Layout* layout) {
  const Places take(&layout->total);
  const int64_t total = p.batch * p.num_boxes;
  layout->valid = take(p.batch * sizeof(int64_t));
  layout->peaks = take(total * sizeof(acc_t<T>));
  layout->values = take(total * sizeof(acc_t<T>));
  layout->decayed = take(total * sizeof(acc_t<T>));
  return make_pair_sort_layout(total, take, &layout->rank);
}

// Fills work.decayed.
template <class T>
const char* find_decays(const MatrixNmsParams& p, const Layout& layout, const T* boxes,
                        const T* scores, const int64_t* idxs, char* bytes, Work<acc_t<T>> work,
                        CUstream_st* stream) {
  using A = acc_t<T>;
  const A score_threshold = rounded_to<T>(p.score_threshold);
  const char* error = rank_boxes(p.batch, p.num_boxes, true, score_threshold, scores, layout.rank,
                                 bytes, &work.order, stream);
  if (error != nullptr) return error;
  const unsigned int grid = grid_size(p.batch * p.num_boxes, kThreads);
  launch(matrix_nms_start_kernel<T>, grid, kThreads, 0, stream, work, score_threshold, scores);
  if (const char* launched = launch_error()) return launched;
  const int64_t images = min_of<int64_t>(p.batch, kMaxImages);
  const int64_t most =
      ceil_div<int64_t>(p.num_boxes, kThreads) * ceil_div<int64_t>(p.num_boxes, kColumns);
  const int64_t enough = max_of<int64_t>(1, kMaxBlocks / images);
  const dim3 tiles(static_cast<unsigned int>(min_of(most, enough)),
                   static_cast<unsigned int>(images));
  launch(matrix_nms_tile_kernel<T, true>, tiles, kThreads, 0, stream, work, boxes, idxs);
  if (const char* launched = launch_error()) return launched;
  launch(matrix_nms_tile_kernel<T, false>, tiles, kThreads, 0, stream, work, boxes, idxs);
  if (const char* launched = launch_error()) return launched;
  launch(matrix_nms_decay_kernel<T>, grid, kThreads, 0, stream, work, sigma_of<A>(p.sigma), scores);
  return launch_error();
}

}  // namespace

template <class T>
const char* matrix_nms_workspace_bytes(const MatrixNmsParams& params, size_t* bytes) {
  Layout layout;
  const char* error = make_layout<T>(params, &layout);
  *bytes = layout.total;
  return error;
}

template <class T>
const char* matrix_nms(const MatrixNmsParams& params, const T* boxes, const T* scores,
                       const int64_t* idxs, int64_t* keep, T* decayed, int64_t* counts,
                       void* workspace, CUstream_st* stream) {
  using A = acc_t<T>;
  const MatrixNmsParams& p = params;
  if (p.batch == 0) return nullptr;
  Layout layout;
  if (const char* error = make_layout<T>(p, &layout)) return error;
  char* bytes = static_cast<char*>(workspace);
  const Work<A> work{p.method,
                     p.batch,
                     p.num_boxes,
                     nullptr,
                     reinterpret_cast<int64_t*>(bytes + layout.valid),
                     reinterpret_cast<word_t<A>*>(bytes + layout.peaks),
                     reinterpret_cast<word_t<A>*>(bytes + layout.values),
                     reinterpret_cast<A*>(bytes + layout.decayed)};
  if (p.num_boxes > 0) {
    const char* error = find_decays(p, layout, boxes, scores, idxs, bytes, work, stream);
    if (error != nullptr) return error;
  }
  return write_by_score(p.batch, p.num_boxes, p.max_output, rounded_to<T>(p.score_threshold),
                        static_cast<const A*>(work.decayed), layout.rank, bytes, keep, decayed,
                        counts, stream);
}

template const char* matrix_nms_workspace_bytes<float>(const MatrixNmsParams&, size_t*);
template const char* matrix_nms_workspace_bytes<double>(const MatrixNmsParams&, size_t*);
template const char* matrix_nms_workspace_bytes<Half>(const MatrixNmsParams&, size_t*);
template const char* matrix_nms_workspace_bytes<BFloat16>(const MatrixNmsParams&, size_t*);
template const char* matrix_nms(const MatrixNmsParams&, const float*, const float*, const int64_t*,
                                int64_t*, float*, int64_t*, void*, CUstream_st*);
template const char* matrix_nms(const MatrixNmsParams&, const double*, const double*,
                                const int64_t*, int64_t*, double*, int64_t*, void*, CUstream_st*);
template const char* matrix_nms(const MatrixNmsParams&, const Half*, const Half*, const int64_t*,
                                int64_t*, Half*, int64_t*, void*, CUstream_st*);
template const char* matrix_nms(const MatrixNmsParams&, const BFloat16*, const BFloat16*,
                                const int64_t*, int64_t*, BFloat16*, int64_t*, void*, CUstream_st*);

}  // namespace cuda
}  // namespace pydet
