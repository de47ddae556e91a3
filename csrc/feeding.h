// How the copy engine is kept busy with the tiles of a product of rows by rows, of which blocks of a cluster share the
// rows, the columns, or both: `across` of them stand side by side, `along` below one another.
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
  return {(row * work.along + rank / work.across) * rows, (column * work.across + rank % work.across) * columns};
}

// Whether two blocks of a cluster share rows or columns, or are the same: each then reads what the other has copied.
template <typename Work>
__device__ bool share(const Work& work, int one, int other) {
  return one / work.across == other / work.across || one % work.across == other % work.across;
}

// With how many blocks one shares, itself included.
template <typename Work>
__device__ int sharers(const Work& work) {
  return work.across + work.along - 1;
}

// What one thread does for its block: for each step of each tile it waits for a stage and has both operands copied there,
// its part of them for all blocks that share them. apart: rows of the right operand between its two halves of a tile.
template <typename Shape, int kDepth, int kColumns, typename Work>
__device__ __forceinline__ void feed(const Work& work, const CUtensorMap& left_map, const CUtensorMap& right_map,
                                     unsigned char* left, unsigned char* right, uint64_t* full, uint64_t* empty,
                                     int cluster, int clusters, int tiles, int rank, int apart) {
  const bool shares_rows = work.across > 1, shares_columns = work.along > 1;
  const int above = rank / work.across, before = rank % work.across;
  // Of one row of blocks, and of one column: masks.
  const int beside = ((1 << work.across) - 1) << above * work.across;
  const int below = (shares_columns ? 1 | 1 << work.across : 1) << before;
  const int rows = Shape::kRows / work.across, own = before * rows;
  const int piece = above, pieces = shares_columns ? above + 1 : 2;
  Ring<Shape::kStages> ring;
  for (int tile = cluster; tile < tiles; tile += clusters) {
    const Spot spot = spot_of(work, tile, rank, Shape::kRows, kColumns);
    for (int step = 0; step < work.steps; ++step, ring.next()) {
      wait(empty + ring.stage, ring.turn ^ 1);
      expect(full + ring.stage, Shape::kLeft + Shape::kRight);
      copy(left + ring.stage * Shape::kLeft + own * kDepth * 2, left_map, full + ring.stage, beside, shares_rows,
           step * kDepth, 0, spot.row + own);
      for (int half = piece; half < pieces; ++half) {
        copy(right + ring.stage * Shape::kRight + half * (Shape::kRight / 2), right_map, full + ring.stage, below,
             shares_columns, step * kDepth, 0, half * apart + spot.column);
      }
    }
  }
}

}  // namespace rewriter::hopper
