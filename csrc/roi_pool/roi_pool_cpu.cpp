// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cstring>
#include <limits>
#include <tuple>
#include <type_traits>
#include <vector>

#include "common/isa.h"
#include "common/parallel_for.h"
#include "roi_pool/roi_pool.h"

namespace pydet {
namespace cpu {
namespace {

// Channels that are pooled side by side, and columns that are read at once.
constexpr int64_t kLanes = 16;
// RoIs a task; tasks of the same channels follow each other, so their maps stay in the cache.
constexpr int64_t kRois = 64;

// Vectors by the compiler's extension, because its own vectorizer gives up on these loops.
template <class A>
struct Vector {
  static constexpr int64_t kSize = 32 / sizeof(A);
  using Index = std::conditional_t<sizeof(A) == 8, int64_t, int32_t>;
  typedef A Values __attribute__((vector_size(32)));
  typedef Index Indices __attribute__((vector_size(32)));
};

template <class A>
using index_t = typename Vector<A>::Index;

// The largest cell of each column of one row of bins: first the rows are folded into a line, the
// channels of a column next to each other, then the columns of each bin.
template <class A>
struct Line {
  std::vector<A> best;          // [W, kLanes]
  std::vector<index_t<A>> row;  // [W, kLanes], the first row with the largest cell
};

template <class A>
constexpr A kLeast = -std::numeric_limits<A>::infinity();

template <class T, class Values>
void load_vector(const T* from, Values& values) {
  acc_t<T> elements[sizeof(Values) / sizeof(acc_t<T>)];
  if constexpr (std::is_same_v<T, acc_t<T>>) {
    std::memcpy(&values, from, sizeof(values));
  } else {
    for (size_t i = 0; i < sizeof(values) / sizeof(elements[0]); ++i) elements[i] = load(from + i);
    std::memcpy(&values, elements, sizeof(values));
  }
}

// Folds rows [y.begin, y.end) of `count` cells side by side, `row_stride` apart. Of NaN no
// comparison holds.
template <class T, bool kIndexed>
void fold_rows(const T* cells, int64_t row_stride, CellRange y, int64_t count, acc_t<T>* best,
               index_t<acc_t<T>>* row) {
  using A = acc_t<T>;
  using V = Vector<A>;
  const index_t<A> begin = static_cast<index_t<A>>(y.begin), end = static_cast<index_t<A>>(y.end);
  int64_t j = 0;
  for (; j + V::kSize <= count; j += V::kSize) {
    typename V::Values largest = typename V::Values{} + kLeast<A>, values;
    typename V::Indices first = {};
    for (index_t<A> i = begin; i < end; ++i) {
      load_vector(cells + i * row_stride + j, values);
      if constexpr (kIndexed) first = values > largest ? typename V::Indices{} + i : first;
      largest = values > largest ? values : largest;
    }
    std::memcpy(best + j, &largest, sizeof(largest));
    if constexpr (kIndexed) std::memcpy(row + j, &first, sizeof(first));
  }
  for (; j < count; ++j) {
    A largest = kLeast<A>;
    index_t<A> first = 0;
    for (index_t<A> i = begin; i < end; ++i) {
      const A value = load(cells + i * row_stride + j);
      if (value > largest) {
        largest = value;
        first = i;
      }
    }
    best[j] = largest;
    if constexpr (kIndexed) row[j] = first;
  }
}

// Folds the columns of a line, at least one.
template <class A, bool kIndexed>
void fold_columns(const Line<A>& line, int64_t width, CellRange x, A* best, index_t<A>* index) {
  using V = Vector<A>;
  for (int64_t part = 0; part < kLanes; part += V::kSize) {
    typename V::Values largest = typename V::Values{} + kLeast<A>, values;
    typename V::Indices first = typename V::Indices{} - 1, cell;
    for (int64_t j = x.begin; j < x.end; ++j) {
      load_vector(line.best.data() + j * kLanes + part, values);
      if constexpr (kIndexed) {
        std::memcpy(&cell, line.row.data() + j * kLanes + part, sizeof(cell));
        cell = cell * static_cast<index_t<A>>(width) + static_cast<index_t<A>>(j);
        // A later column may have an equal cell in an earlier row.
        first = (values > largest) | ((values == largest) & (cell < first)) ? cell : first;
      }
      largest = values > largest ? values : largest;
    }
    std::memcpy(best + part, &largest, sizeof(largest));
    if constexpr (kIndexed) std::memcpy(index + part, &first, sizeof(first));
  }
}

template <class T, bool kIndexed>
void fold_channels_first(const T* map, int64_t plane, int64_t width, int64_t lanes, CellRange y,
                         CellRange x, Line<acc_t<T>>& line) {
  acc_t<T> best[kLanes];
  index_t<acc_t<T>> row[kLanes];
  for (int64_t lane = 0; lane < lanes; ++lane) {
    for (int64_t begin = x.begin; begin < x.end; begin += kLanes) {
      // Whole vectors wherever the row is long enough: what lies outside of the box is not used.
      const int64_t first = width < kLanes ? begin : std::min(begin, width - kLanes);
      const int64_t count = width < kLanes ? x.end - begin : kLanes;
      fold_rows<T, kIndexed>(map + lane * plane + first, width, y, count, best, row);
      for (int64_t j = begin - first; j < std::min(count, x.end - first); ++j) {
        line.best[(first + j) * kLanes + lane] = best[j];
        if constexpr (kIndexed) line.row[(first + j) * kLanes + lane] = row[j];
      }
    }
  }
}

template <class T, bool kIndexed>
void fold_channels_last(const T* map, int64_t channels, int64_t width, int64_t lanes, CellRange y,
                        CellRange x, Line<acc_t<T>>& line) {
  for (int64_t j = x.begin; j < x.end; ++j) {
    fold_rows<T, kIndexed>(map + j * channels, width * channels, y, lanes,
                           line.best.data() + j * kLanes,
                           kIndexed ? line.row.data() + j * kLanes : nullptr);
  }
}

// Calls consume(bin, best, index) for each bin of a RoI, with kLanes values each: the largest cell
// and, if kIndexed, which cell of the map it is, or -1. An empty bin has 0 and -1.
template <class T, bool kIndexed, class Consume>
void pool(const RoiPoolParams<acc_t<T>>& params, int64_t r, int64_t channel, int64_t lanes,
          const T* input, Line<acc_t<T>>& line, const Consume& consume) {
  using A = acc_t<T>;
  const RoiPoolPlace<A> place = roi_pool_place(params, r);
  const int64_t width = params.width, plane = params.height * width;
  const T* map = input + std::max<int64_t>(place.image, 0) * params.channels * plane +
                 channel * (params.channels_last ? 1 : plane);
  const CellRange columns{bin_cells(place.x, 0, width).begin,
                          bin_cells(place.x, params.pooled_width - 1, width).end};
  CellRange folded{0, 0};  // the rows in the line: those of the bin before may be the same
  for (int64_t ph = 0; ph < params.pooled_height; ++ph) {
    const CellRange y = bin_cells(place.y, ph, params.height);
    const bool empty = place.image < 0 || y.end <= y.begin;
    const bool ready = empty || (y.begin == folded.begin && y.end == folded.end);
    folded = y;
    if (!ready && params.channels_last) {
      fold_channels_last<T, kIndexed>(map, params.channels, width, lanes, y, columns, line);
    } else if (!ready) {
      fold_channels_first<T, kIndexed>(map, plane, width, lanes, y, columns, line);
    }
    for (int64_t pw = 0; pw < params.pooled_width; ++pw) {
      const CellRange x = bin_cells(place.x, pw, width);
      A best[kLanes] = {};
      index_t<A> index[kLanes];
      if (empty || x.end <= x.begin) {
        std::fill_n(index, kLanes, index_t<A>(-1));
      } else {
        fold_columns<A, kIndexed>(line, width, x, best, index);
      }
      consume(ph * params.pooled_width + pw, best, index);
    }
  }
}

template <class A>
Line<A> make_line(int64_t width, bool indexed) {
  return {std::vector<A>(width * kLanes), std::vector<index_t<A>>(indexed ? width * kLanes : 0)};
}

// Offsets of element (r, channel, bin) of out and of (image, channel, cell) of a map: a start, and
// strides of the channel and of the bin or cell.
struct Strides {
  int64_t start, channel, place;
};

Strides strides_of(bool channels_last, int64_t channels, int64_t places, int64_t first,
                   int64_t channel) {
  const int64_t start = first * channels * places;
  return channels_last ? Strides{start + channel, 1, channels}
                       : Strides{start + channel * places, places, 1};
}

// The RoIs in an order in which neighbours in the list are neighbours on the map, so that most
// cells come from the cache: by image, by bands of rows, by column. It depends on the RoIs alone.
template <class A>
std::vector<int64_t> order_of(const RoiPoolParams<A>& params) {
  constexpr int64_t kBand = 16;
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

// RoIs [begin, end) of an order and `lanes` channels from `channel` on of out; of `values` where
// there are any.
template <class T>
struct RoiPoolRois {
  using A = acc_t<T>;

  static void run(const RoiPoolParams<A>* params, const int64_t* begin, const int64_t* end,
                  int64_t channel, const T* input, const T* values, Line<A>* line, T* out) {
    const int64_t lanes = std::min(kLanes, params->channels - channel);
    const int64_t bins = params->pooled_height * params->pooled_width;
    for (const int64_t* next = begin; next < end; ++next) {
      const int64_t r = *next;
      const Strides to = strides_of(params->channels_last, params->channels, bins, r, channel);
      if (values == nullptr) {
        pool<T, false>(*params, r, channel, lanes, input, *line,
                       [&](int64_t bin, const A* best, const index_t<A>*) {
                         T* element = out + to.start + bin * to.place;
                         for (int64_t i = 0; i < lanes; ++i)
                           store(element + i * to.channel, best[i]);
                       });
        continue;
      }
      const int64_t image = std::max<int64_t>(roi_pool_place(*params, r).image, 0);
      const Strides from = strides_of(params->channels_last, params->channels,
                                      params->height * params->width, image, channel);
      pool<T, true>(*params, r, channel, lanes, input, *line,
                    [&](int64_t bin, const A*, const index_t<A>* index) {
                      T* element = out + to.start + bin * to.place;
                      for (int64_t i = 0; i < lanes; ++i) {
                        const T* value = values + from.start + i * from.channel;
                        store(element + i * to.channel,
                              index[i] < 0 ? A(0) : load(value + index[i] * from.place));
                      }
                    });
    }
  }
};

// The gradient of `lanes` channels from `channel` on of one image.
template <class T>
struct RoiPoolGradient {
  using A = acc_t<T>;

  static void run(const RoiPoolParams<A>* params, const int64_t* begin, const int64_t* end,
                  int64_t image, int64_t channel, const T* input, const T* grad_out, Line<A>* line,
                  A* grad_input) {
    const int64_t lanes = std::min(kLanes, params->channels - channel);
    const int64_t bins = params->pooled_height * params->pooled_width;
    const int64_t cells = params->height * params->width;
    const Strides to = strides_of(params->channels_last, params->channels, cells, image, channel);
    // Channels that are last would scatter their sums over all of the map's pages.
    std::vector<A> own(params->channels_last ? cells * kLanes : 0);
    A* sums = params->channels_last ? own.data() : grad_input + to.start;
    const Strides at = params->channels_last ? Strides{0, 1, kLanes} : Strides{0, cells, 1};
    if (!params->channels_last) std::fill_n(sums, lanes * cells, A(0));
    for (const int64_t* next = begin; next < end; ++next) {
      const int64_t r = *next;
      if (roi_pool_place(*params, r).image != image) continue;
      const Strides from = strides_of(params->channels_last, params->channels, bins, r, channel);
      pool<T, true>(*params, r, channel, lanes, input, *line,
                    [&](int64_t bin, const A*, const index_t<A>* index) {
                      const T* grad = grad_out + from.start + bin * from.place;
                      for (int64_t i = 0; i < lanes; ++i) {
                        if (index[i] < 0) continue;
                        sums[i * at.channel + index[i] * at.place] += load(grad + i * from.channel);
                      }
                    });
    }
    for (int64_t cell = 0; cell < cells && params->channels_last; ++cell) {
      std::copy_n(sums + cell * kLanes, lanes, grad_input + to.start + cell * to.place);
    }
  }
};

template <class T>
void pool_all(const RoiPoolParams<acc_t<T>>& params, const T* input, const T* values, T* out) {
  const int64_t chunks = (params.num_rois + kRois - 1) / kRois;
  const int64_t blocks = (params.channels + kLanes - 1) / kLanes;
  const std::vector<int64_t> order = order_of(params);
  parallel_for(blocks * chunks, 1, [&](int64_t task, int64_t) {
    Line<acc_t<T>> line = make_line<acc_t<T>>(params.width, values != nullptr);
    const int64_t begin = task % chunks * kRois, end = std::min(begin + kRois, params.num_rois);
    run_on_best_isa<RoiPoolRois<T>>(&params, order.data() + begin, order.data() + end,
                                    task / chunks * kLanes, input, values, &line, out);
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
  const int64_t blocks = (params.channels + kLanes - 1) / kLanes;
  const std::vector<int64_t> order = order_of(params);
  parallel_for(params.batch * blocks, 1, [&](int64_t task, int64_t) {
    Line<acc_t<T>> line = make_line<acc_t<T>>(params.width, true);
    run_on_best_isa<RoiPoolGradient<T>>(&params, order.data(), order.data() + order.size(),
                                        task / blocks, task % blocks * kLanes, input, grad_out,
                                        &line, grad_input);
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
