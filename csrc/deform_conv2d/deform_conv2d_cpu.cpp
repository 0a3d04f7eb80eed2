// SPDX-License-Identifier: Apache-2.0
#include <vector>

#include "common/isa.h"
#include "common/parallel_for.h"
#include "deform_conv2d/deform_conv2d.h"

namespace pydet {
namespace cpu {
namespace {

// The neighbours of all points of one tap, as a structure of arrays; weights include the mask. A
// neighbour of weight 0 has an offset that can be read.
template <class A>
struct Points {
  std::vector<int32_t> offset[4];
  std::vector<A> weight[4];
};

// For each offset group and tap.
template <class T>
std::vector<Points<acc_t<T>>> points_of(const DeformConvParams<T>& params) {
  using A = acc_t<T>;
  const int64_t taps = params.kernel_height * params.kernel_width;
  std::vector<Points<A>> all(params.offset_groups * taps);
  parallel_for(params.offset_groups * taps, 1, [&](int64_t begin, int64_t) {
    Points<A>& points = all[begin];
    for (int i = 0; i < 4; ++i) {
      points.offset[i].resize(params.count);
      points.weight[i].resize(params.count);
    }
    for (int64_t p = 0; p < params.count; ++p) {
      const DeformPoint<A> point = deform_point(params, begin / taps, begin % taps, p);
      const Neighbours<A> near = neighbours<A>(point.y, point.x, params.width, 1);
      for (int i = 0; i < 4; ++i) {
        points.offset[i][p] = static_cast<int32_t>(near.offset[i]);
        // A mask that is NaN or infinite does not count where nothing is sampled.
        points.weight[i][p] = near.weight[i] == A(0) ? A(0) : near.weight[i] * point.mask;
      }
    }
  });
  return all;
}

// One row of columns: a channel at all points of a tap.
template <class T>
struct GatherRow {
  using A = acc_t<T>;

  static void run(int64_t count, const Points<A>* points, const T* channel, T* row) {
    const int32_t* offset[4];
    const A* weight[4];
    for (int i = 0; i < 4; ++i) {
      offset[i] = points->offset[i].data();
      weight[i] = points->weight[i].data();
    }
    for (int64_t p = 0; p < count; ++p) {
      A value = A(0);
      for (int i = 0; i < 4; ++i) {
        const A w = weight[i][p], cell = load(channel + offset[i][p]);
        value += w != A(0) ? w * cell : A(0);
      }
      store(row + p, value);
    }
  }
};

}  // namespace

template <class T>
void deform_im2col(const DeformConvParams<T>& params, T* columns) {
  if (params.height * params.width == 0) {
    for (int64_t k = 0; k < params.channels * params.kernel_height * params.kernel_width; ++k) {
      for (int64_t p = 0; p < params.count; ++p) store(columns + k * params.count + p, acc_t<T>(0));
    }
    return;
  }
  const std::vector<Points<acc_t<T>>> points = points_of(params);
  const int64_t taps = params.kernel_height * params.kernel_width;
  const int64_t channels_a_group = params.channels / params.offset_groups;
  parallel_for(params.channels, 1, [&](int64_t c, int64_t) {
    const T* channel = params.input + c * params.height * params.width;
    for (int64_t k = 0; k < taps; ++k) {
      run_on_best_isa<GatherRow<T>>(params.count, &points[c / channels_a_group * taps + k], channel,
                                    columns + (c * taps + k) * params.count);
    }
  });
}

template <class T>
void deform_col2im(const DeformConvParams<T>& params, const T* grad_columns, acc_t<T>* grad_input) {
  using A = acc_t<T>;
  if (params.height * params.width == 0) return;
  const std::vector<Points<A>> points = points_of(params);
  const int64_t taps = params.kernel_height * params.kernel_width;
  const int64_t channels_a_group = params.channels / params.offset_groups;
  parallel_for(params.channels, 1, [&](int64_t c, int64_t) {
    A* channel = grad_input + c * params.height * params.width;
    for (int64_t k = 0; k < taps; ++k) {
      const Points<A>& near = points[c / channels_a_group * taps + k];
      const T* row = grad_columns + (c * taps + k) * params.count;
      for (int64_t p = 0; p < params.count; ++p) {
        const A grad = load(row + p);
        for (int i = 0; i < 4; ++i) {
          const A weight = near.weight[i][p];
          if (weight != A(0)) channel[near.offset[i][p]] += weight * grad;
        }
      }
    }
  });
}

template <class T>
void deform_col2points(const DeformConvParams<T>& params, const T* grad_columns, T* grad_offset,
                       T* grad_mask) {
  using A = acc_t<T>;
  const int64_t taps = params.kernel_height * params.kernel_width;
  const int64_t positions = params.out_height * params.out_width;
  const int64_t channels_a_group = params.channels / params.offset_groups;
  const int64_t cells = params.height * params.width;
  parallel_for(params.offset_groups * taps, 1, [&](int64_t gk, int64_t) {
    const int64_t g = gk / taps, k = gk % taps;
    for (int64_t p = 0; p < params.count; ++p) {
      const DeformPoint<A> point = deform_point(params, g, k, p);
      const Neighbours<A> near = neighbours<A>(point.y, point.x, params.width, 1);
      BilinearValue<A> sum{};
      for (int64_t i = 0; i < channels_a_group && point.counts(); ++i) {
        const int64_t c = g * channels_a_group + i;
        const A grad = load(grad_columns + (c * taps + k) * params.count + p);
        sum.add(grad, deform_slopes(point, near, params.input + c * cells));
      }
      T* to = grad_offset + gk * 2 * positions + params.begin + p;
      store(to, point.counts() ? point.mask * sum.slope_y : A(0));
      store(to + positions, point.counts() ? point.mask * sum.slope_x : A(0));
      if (grad_mask != nullptr) store(grad_mask + gk * positions + params.begin + p, sum.value);
    }
  });
}

template void deform_im2col(const DeformConvParams<float>&, float*);
template void deform_im2col(const DeformConvParams<double>&, double*);
template void deform_im2col(const DeformConvParams<Half>&, Half*);
template void deform_im2col(const DeformConvParams<BFloat16>&, BFloat16*);

template void deform_col2im(const DeformConvParams<float>&, const float*, float*);
template void deform_col2im(const DeformConvParams<double>&, const double*, double*);
template void deform_col2im(const DeformConvParams<Half>&, const Half*, float*);
template void deform_col2im(const DeformConvParams<BFloat16>&, const BFloat16*, float*);

template void deform_col2points(const DeformConvParams<float>&, const float*, float*, float*);
template void deform_col2points(const DeformConvParams<double>&, const double*, double*, double*);
template void deform_col2points(const DeformConvParams<Half>&, const Half*, Half*, Half*);
template void deform_col2points(const DeformConvParams<BFloat16>&, const BFloat16*, BFloat16*,
                                BFloat16*);

}  // namespace cpu
}  // namespace pydet
