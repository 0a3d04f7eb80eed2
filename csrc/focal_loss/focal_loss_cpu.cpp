// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <limits>
#include <type_traits>

#include "common/focal.h"
#include "common/isa.h"
#include "common/parallel_for.h"
#include "focal_loss/focal_loss.h"

namespace pydet {
namespace cpu {
namespace {

// Elements that are computed together, in buffers that stay in the first-level cache: one loop
// without branches, which the compiler vectorises, then what only some rows need.
constexpr int64_t kChunk = 1024;

// The elements p[0, count) as numbers to compute with: themselves, or converted in `buffer`.
inline const float* widened(const float* p, int64_t, float*) { return p; }
inline const double* widened(const double* p, int64_t, double*) { return p; }
template <class T>
const float* widened(const T* p, int64_t count, float* buffer) {
  for (int64_t i = 0; i < count; ++i) buffer[i] = load(p + i);
  return buffer;
}

// Calls body with gamma as a constant of the type.
template <class Body>
void with_gamma(double gamma, const Body& body) {
  if (gamma == 2) return body(std::integral_constant<int, 2>{});
  if (gamma == 1) return body(std::integral_constant<int, 1>{});
  if (gamma == 0) return body(std::integral_constant<int, 0>{});
  body(std::integral_constant<int, kAnyGamma>{});
}

// Mends the rows of labels that are not background. The chunk begins at element `begin`; `values`
// were computed as if all were negatives, and positive(i) is the value of a positive.
template <class T, class A, class Positive>
void mend_rows(const FocalLossArgs<T>& args, int64_t begin, int64_t count, A* values,
               const Positive& positive) {
  const int64_t classes = args.num_classes;
  int64_t row = begin / classes;
  for (int64_t start = row * classes - begin; start < count; start += classes, ++row) {
    const int64_t label = args.labels[row];
    if (label == kBackground) continue;
    if (label >= 0 && label < classes) {
      const int64_t i = start + label;
      if (i >= 0 && i < count) values[i] = positive(i);
      continue;
    }
    const A fill = label == kIgnored ? A(0) : std::numeric_limits<A>::quiet_NaN();
    for (int64_t i = std::max<int64_t>(0, start); i < std::min(start + classes, count); ++i)
      values[i] = fill;
  }
}

// The sum of values[0, count), by halves: the order does not depend on the width of the vectors.
template <class A>
A folded_sum(A* values, int64_t count) {
  while (count > 1) {
    const int64_t pairs = count / 2, rest = count - pairs;
    for (int64_t i = 0; i < pairs; ++i) values[i] += values[rest + i];
    count = rest;
  }
  return values[0];
}

template <class T>
struct FocalLossPiece {
  // Elements [begin, end): their losses, or the sum of them.
  static void run(const FocalLossArgs<T>* args, int64_t begin, int64_t end, T* loss, double* sum) {
    using A = acc_t<T>;
    const FocalWeights<A> weights = focal_weights<A>(args->alpha);
    const A gamma = static_cast<A>(args->gamma);
    A x_buffer[kChunk], t_buffer[kChunk], values[kChunk];
    double total = 0;
    for (; begin < end; begin += kChunk) {
      const int64_t count = std::min(kChunk, end - begin);
      const A* x = widened(args->inputs + begin, count, x_buffer);
      with_gamma(args->gamma, [&](auto constant) {
        constexpr int kGamma = decltype(constant)::value;
        if (args->labels != nullptr) {
          for (int64_t i = 0; i < count; ++i)
            values[i] = weights.negative * focal_negative<kGamma>(x[i], gamma);
          mend_rows(*args, begin, count, values, [&](int64_t i) {
            return weights.positive * focal_negative<kGamma>(-x[i], gamma);
          });
        } else {
          const A* t = widened(args->targets + begin, count, t_buffer);
          for (int64_t i = 0; i < count; ++i)
            values[i] = focal_soft<kGamma>(x[i], t[i], gamma, weights);
        }
      });
      if (loss != nullptr) {
        for (int64_t i = 0; i < count; ++i) store(loss + begin + i, values[i]);
      } else {
        total += folded_sum(values, count);
      }
    }
    if (sum != nullptr) *sum = total;
  }
};

template <class T>
struct FocalLossBackwardPiece {
  // The gradient of elements [begin, end), from one number for each or from grad_sum for all.
  static void run(const FocalLossArgs<T>* args, bool wrt_targets, int64_t begin, int64_t end,
                  const T* grad_loss, acc_t<T> grad_sum, T* grad) {
    using A = acc_t<T>;
    const FocalWeights<A> weights = focal_weights<A>(args->alpha);
    const A gamma = static_cast<A>(args->gamma);
    A x_buffer[kChunk], t_buffer[kChunk], g_buffer[kChunk], values[kChunk];
    if (grad_loss == nullptr) std::fill(g_buffer, g_buffer + kChunk, grad_sum);
    for (; begin < end; begin += kChunk) {
      const int64_t count = std::min(kChunk, end - begin);
      const A* x = widened(args->inputs + begin, count, x_buffer);
      const A* g = grad_loss == nullptr ? g_buffer : widened(grad_loss + begin, count, g_buffer);
      with_gamma(args->gamma, [&](auto constant) {
        constexpr int kGamma = decltype(constant)::value;
        if (args->labels != nullptr) {
          for (int64_t i = 0; i < count; ++i)
            values[i] = g[i] * (weights.negative * focal_negative_backward<kGamma>(x[i], gamma));
          mend_rows(*args, begin, count, values, [&](int64_t i) {
            return -g[i] * (weights.positive * focal_negative_backward<kGamma>(-x[i], gamma));
          });
          return;
        }
        const A* t = widened(args->targets + begin, count, t_buffer);
        if (wrt_targets) {
          for (int64_t i = 0; i < count; ++i)
            values[i] = g[i] * focal_soft_backward_target<kGamma>(x[i], t[i], gamma, weights);
        } else {
          for (int64_t i = 0; i < count; ++i)
            values[i] = g[i] * focal_soft_backward<kGamma>(x[i], t[i], gamma, weights);
        }
      });
      for (int64_t i = 0; i < count; ++i) store(grad + begin + i, values[i]);
    }
  }
};

// Calls body(piece, segment, begin, end) for every piece of every segment.
template <class Body>
void for_each_piece(int64_t count, int64_t segments, const Body& body) {
  if (count == 0) return;
  const int64_t length = count / segments, pieces = focal_loss_pieces(length, 1);
  const int64_t grain = std::max<int64_t>(1, kFocalPiece / length);  // of very short segments
  parallel_for(segments * pieces, grain, [=](int64_t first, int64_t last) {
    for (int64_t piece = first; piece < last; ++piece) {
      const int64_t segment = piece / pieces, offset = piece % pieces * kFocalPiece;
      const int64_t end = segment * length + std::min(offset + kFocalPiece, length);
      body(piece, segment, segment * length + offset, end);
    }
  });
}

}  // namespace

template <class T>
void focal_loss(const FocalLossArgs<T>& args, T* loss) {
  for_each_piece(args.count, 1, [&](int64_t, int64_t, int64_t begin, int64_t end) {
    run_on_best_isa<FocalLossPiece<T>>(&args, begin, end, loss, static_cast<double*>(nullptr));
  });
}

template <class T>
void focal_loss_sums(const FocalLossArgs<T>& args, double* partials, acc_t<T>* sums) {
  for_each_piece(args.count, args.segments,
                 [&](int64_t piece, int64_t, int64_t begin, int64_t end) {
                   run_on_best_isa<FocalLossPiece<T>>(&args, begin, end, static_cast<T*>(nullptr),
                                                      partials + piece);
                 });
  if (args.segments == 0) return;
  const int64_t pieces = focal_loss_pieces(args.count / args.segments, 1);
  for (int64_t segment = 0; segment < args.segments; ++segment) {
    double sum = 0;
    for (int64_t piece = 0; piece < pieces; ++piece) sum += partials[segment * pieces + piece];
    sums[segment] = static_cast<acc_t<T>>(sum * args.scale);
  }
}

template <class T>
void focal_loss_backward(const FocalLossArgs<T>& args, bool wrt_targets, const T* grad_loss,
                         const acc_t<T>* grad_sums, T* grad) {
  using A = acc_t<T>;
  const int64_t segments = grad_loss == nullptr ? args.segments : 1;
  for_each_piece(args.count, segments, [&](int64_t, int64_t segment, int64_t begin, int64_t end) {
    const A grad_sum =
        grad_loss == nullptr ? static_cast<A>(grad_sums[segment] * args.scale) : A(0);
    run_on_best_isa<FocalLossBackwardPiece<T>>(&args, wrt_targets, begin, end, grad_loss, grad_sum,
                                               grad);
  });
}

template void focal_loss(const FocalLossArgs<float>&, float*);
template void focal_loss(const FocalLossArgs<double>&, double*);
template void focal_loss(const FocalLossArgs<Half>&, Half*);
template void focal_loss(const FocalLossArgs<BFloat16>&, BFloat16*);

template void focal_loss_sums(const FocalLossArgs<float>&, double*, float*);
template void focal_loss_sums(const FocalLossArgs<double>&, double*, double*);
template void focal_loss_sums(const FocalLossArgs<Half>&, double*, float*);
template void focal_loss_sums(const FocalLossArgs<BFloat16>&, double*, float*);

template void focal_loss_backward(const FocalLossArgs<float>&, bool, const float*, const float*,
                                  float*);
template void focal_loss_backward(const FocalLossArgs<double>&, bool, const double*, const double*,
                                  double*);
template void focal_loss_backward(const FocalLossArgs<Half>&, bool, const Half*, const float*,
                                  Half*);
template void focal_loss_backward(const FocalLossArgs<BFloat16>&, bool, const BFloat16*,
                                  const float*, BFloat16*);

}  // namespace cpu
}  // namespace pydet
