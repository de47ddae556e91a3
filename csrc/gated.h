// What the kernel in gated.cu is told, and where its instances are.
#pragma once

namespace rewriter::gated {

constexpr int kDepth = 64, kThreads = 384, kWarps = 8;
constexpr int kSharedLimit = 232448, kAlignment = 1024;

// kBlocks: of 64 rows, for each group of four warps.
template <int kBlocks, int kResults>
struct Tile {
  static constexpr int kRows = 128 * kBlocks, kColumns = 2 * kResults;
  static constexpr int kLeft = kRows * kDepth * 2, kRight = kColumns * kDepth * 2;
  // Each warp rounds 16 rows of 64 results into its part, and stores them from there in whole lines.
  static constexpr int kParts = kWarps * 16 * 64 * 2;
  static constexpr int kBarriers = 128;
  static constexpr int kStages = (kSharedLimit - kAlignment - kBarriers - kParts) / (kLeft + kRight);
  static constexpr int kShared = kAlignment + kBarriers + kParts + kStages * (kLeft + kRight);
  static_assert(kStages > 1 && kStages * 16 <= kBarriers);
  static_assert(kRight / 2 % 1024 == 0 && kResults % 16 == 0);
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
