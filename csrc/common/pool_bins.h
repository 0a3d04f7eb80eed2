// SPDX-License-Identifier: Apache-2.0
// The bins of RoI pooling along one axis, in whole cells, for host and device.
//
//   first                      last     the corners of the box times spatial_scale, rounded
//    |    bin 0    |    bin 1    |      to the nearest cell, halves away from 0
//   [0 1 2 3)                           bin b has the cells from floor(b * size) up to, not with,
//         [3 4 5 6)                     ceil((b + 1) * size): neighbours share a cell where the
//                                       size of a bin is not whole
#pragma once

#include <cmath>
#include <cstdint>

#include "common/host_device.h"
#include "common/scalar.h"

namespace pydet {

template <class A>
struct PoolAxis {
  int64_t start;
  A bin_size;
};

// Cells from begin up to, not with, end.
struct CellRange {
  int64_t begin, end;
};

// Corners farther than 2^31 cells away are taken as that far: no image is there.
template <class A>
PYDET_HOST_DEVICE int64_t nearest_cell(A position) {
  constexpr A kFar = A(int64_t{1} << 31);
  return static_cast<int64_t>(std::round(min_of(max_of(position, -kFar), kFar)));
}

// `inclusive`: the cell of the high corner belongs to the box. A box has at least one cell.
template <class A>
PYDET_HOST_DEVICE PoolAxis<A> pool_axis(A low, A high, A scale, bool inclusive, int64_t bins) {
  const int64_t start = nearest_cell(low * scale);
  const int64_t size = nearest_cell(high * scale) - start + (inclusive ? 1 : 0);
  return {start, static_cast<A>(max_of<int64_t>(size, 1)) / static_cast<A>(bins)};
}

PYDET_HOST_DEVICE int64_t clamped(int64_t value, int64_t low, int64_t high) {
  return max_of(low, min_of(value, high));
}

// The cells of a bin that are on a map of `cells` cells; none where end <= begin.
template <class A>
PYDET_HOST_DEVICE CellRange bin_cells(const PoolAxis<A>& axis, int64_t bin, int64_t cells) {
  const A low = std::floor(static_cast<A>(bin) * axis.bin_size);
  const A high = std::ceil(static_cast<A>(bin + 1) * axis.bin_size);
  return {clamped(static_cast<int64_t>(low) + axis.start, 0, cells),
          clamped(static_cast<int64_t>(high) + axis.start, 0, cells)};
}

// The bins that can have a cell, begin up to, not with, end; each is to be asked for its cells.
template <class A>
PYDET_HOST_DEVICE CellRange bins_near(const PoolAxis<A>& axis, int64_t cell, int64_t bins) {
  const A offset = static_cast<A>(cell - axis.start);
  const A first = std::floor((offset - A(1)) / axis.bin_size) - A(1);
  const A last = std::ceil((offset + A(1)) / axis.bin_size) + A(1);
  const A most = static_cast<A>(bins);
  return {static_cast<int64_t>(min_of(max_of(first, A(0)), most)),
          static_cast<int64_t>(min_of(max_of(last, A(0)), most))};
}

}  // namespace pydet
