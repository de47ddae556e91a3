// How the copy engine is kept busy with the tiles of a product of rows by rows, of which two blocks of a cluster share the
// rows or the columns.
#pragma once

#include "hopper.h"
#include "products.h"

#include <cuda.h>

#include <cstdint>

namespace rewriter::hopper {

// Where a block's tile begins in the result.
struct Spot {
  int row, column;
};

// Clusters that run at the same time work on neighbours: a band's rows first, then the next columns. rows, columns: of a
// tile.
template <typename Work>
__device__ Spot spot_of(const Work& work, int tile, int rank, int rows, int columns) {
  const int whole = work.band * work.column_groups;
  const int first = tile / whole * work.band, inside = tile % whole;
  const int height = min(work.band, work.row_groups - first);
  const int row = first + inside % height, column = inside / height;
  return {(row * work.along + (work.along > 1 ? rank : 0)) * rows,
          (column * work.across + (work.across > 1 ? rank : 0)) * columns};
}

// What one thread does for its block: for each step of each tile it waits for a stage and has both operands copied there,
// its part of them for both blocks where they share. apart: rows of the right operand between its two halves of a tile.
template <typename Shape, int kDepth, int kColumns, typename Work>
__device__ __forceinline__ void feed(const Work& work, const CUtensorMap& left_map, const CUtensorMap& right_map,
                                     unsigned char* left, unsigned char* right, uint64_t* full, uint64_t* empty,
                                     int cluster, int clusters, int tiles, int rank, int apart) {
  const bool shares_rows = work.across > 1, shares_columns = work.along > 1;
  const int rows = Shape::kRows / work.across, own = shares_rows ? rank * rows : 0;
  const int piece = shares_columns ? rank : 0, pieces = shares_columns ? rank + 1 : 2;
  Ring<Shape::kStages> ring;
  for (int tile = cluster; tile < tiles; tile += clusters) {
    const Spot spot = spot_of(work, tile, rank, Shape::kRows, kColumns);
    for (int step = 0; step < work.steps; ++step, ring.next()) {
      wait(empty + ring.stage, ring.turn ^ 1);
      expect(full + ring.stage, Shape::kLeft + Shape::kRight);
      copy(left + ring.stage * Shape::kLeft + own * kDepth * 2, left_map, full + ring.stage, 3, shares_rows,
           step * kDepth, 0, spot.row + own);
      for (int half = piece; half < pieces; ++half) {
        copy(right + ring.stage * Shape::kRight + half * (Shape::kRight / 2), right_map, full + ring.stage, 3,
             shares_columns, step * kDepth, 0, half * apart + spot.column);
      }
    }
  }
}

}  // namespace rewriter::hopper
