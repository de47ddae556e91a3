// What the kernel in quantised.cu is told, and where its instances are.
#pragma once

#include "stages.h"

namespace rewriter::quantised {

// Of 16 bits, so that a step's rows are 128 bytes: as many elements of eight bits again.
constexpr int kDepth = 64;
constexpr int kRows = 128, kColumns = 160;

using Tile = hopper::Stages<kRows, kColumns, kDepth>;
static_assert(Tile::kRight / 2 % hopper::kAlignment == 0);
// Behind the tiles: for both groups and two tiles each, what the columns are multiplied by and what is added to them.
constexpr int kShared = Tile::kShared + 2 * 2 * kColumns * 8;
static_assert(kShared <= hopper::kSharedLimit);

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

// The address of the instance as launches take it. gated: half of a tile's columns are gates; alternate: each group of four
// warps has tiles of its own. Its arguments: both operands for the copy engine, Work.
const void* kernel(bool f16, bool gated, bool alternate);

}  // namespace rewriter::quantised
