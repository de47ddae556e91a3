// What the kernel in quantised.cu is told, and where its instances are.
#pragma once

#include "stages.h"

namespace rewriter::quantised {

// Of 16 bits, so that a step's rows are 128 bytes: as many elements of eight bits again.
constexpr int kDepth = 64;
constexpr int kColumns = 160;

// kBlocks: of 64 rows, for each group of four warps; kGroups: that share a tile, both or one.
template <int kBlocks, int kGroups>
struct Tile : hopper::Stages<64 * kBlocks * kGroups, kColumns, kDepth> {
  static_assert(Tile::kRight / 2 % hopper::kAlignment == 0);
};

struct Work {
  int rows, results;              // of the whole result
  int apart;                      // rows of the weight between those for both halves of a tile's columns
  int steps;                      // of 128 elements along the depth
  int row_groups, column_groups;  // of tiles, a group for each cluster
  int band;                       // row groups that are done before the next ones: their operands stay in L2
  int across, along;              // blocks of a cluster that share rows, and columns
  const float *row_scales, *column_scales;
  const void *bias, *residual;
  void* result;
};

// An instance: its address as launches take it, the rows and the results of a block, the shared memory that it needs. Its
// arguments: both operands for the copy engine, Work.
struct Kernel {
  const void* address;
  int rows, results, shared;
};

// The instance for tiles of 128 or 256 rows, without an address for others. gated: half of a tile's columns are gates;
// alternate: each group has tiles of its own, of 128 rows.
Kernel kernel(int rows, bool f16, bool gated, bool alternate);

}  // namespace rewriter::quantised
