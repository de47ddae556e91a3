// What the kernel in gated.cu is told, and where its instances are.
#pragma once

#include "stages.h"

namespace rewriter::gated {

constexpr int kDepth = 64;

// kBlocks: of 64 rows, for each group of four warps.
template <int kBlocks, int kResults>
struct Tile : hopper::Stages<128 * kBlocks, 2 * kResults, kDepth> {
  static_assert(Tile::kRight / 2 % hopper::kAlignment == 0 && kResults % 16 == 0);
};

struct Work {
  int rows, results;              // of the whole result
  int steps;                      // of 64 elements along the depth
  int row_groups, column_groups;  // of tiles, a group for each cluster
  int band;                       // row groups that are done before the next ones: their operands stay in L2
  int across, along;              // blocks of a cluster that share rows, and columns
  const void* bias;
  void* result;
};

// An instance: its address as launches take it, the results of a block, the shared memory that it needs. Its arguments:
// x and the weight for the copy engine, Work.
struct Kernel {
  const void* address;
  int rows, columns, shared;
};

// The instance for blocks of rows x columns results, without an address if there is none.
Kernel kernel(int rows, int columns, bool f16);

}  // namespace rewriter::gated
