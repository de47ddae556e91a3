// What the kernel in quantised.cu is told, and where its instances are.
#pragma once

#include "stages.h"

namespace rewriter::quantised {

// Of 16 bits, so that a step's rows are 128 bytes: as many elements of eight bits again.
constexpr int kDepth = 64;
constexpr int kColumns = 160;

// kBlocks: of 64 rows, for each group of four warps.
template <int kBlocks>
struct Tile : hopper::Stages<128 * kBlocks, kColumns, kDepth> {
  static_assert(Tile::kRight / 2 % hopper::kAlignment == 0);
};

struct Work {
  int rows, results;              // of the whole result
  int steps;                      // of 128 elements along the depth
  int row_groups, column_groups;  // of tiles, a group for each cluster
  int band;                       // row groups that are done before the next ones: their operands stay in L2
  int across, along;              // blocks of a cluster that share rows, and columns
  const float *row_scales, *column_scales;
  const void *bias, *residual;
  void* result;
};

// An instance: its address as launches take it, the rows of a block, the shared memory that it needs. Its arguments: both
// operands for the copy engine, Work.
struct Kernel {
  const void* address;
  int rows, shared;
};

// The instance for blocks of 128 or 256 rows, without an address for others.
Kernel kernel(int rows, bool f16);

}  // namespace rewriter::quantised
