// How the shared memory of a block that multiplies tiles is divided.
#pragma once

namespace rewriter::hopper {

// A group of four warps feeds the copy engine, two multiply.
constexpr int kThreads = 384, kWarps = 8;
constexpr int kSharedLimit = 232448, kAlignment = 1024;

// As many stages as fit, each with what a step multiplies: rows and columns of kDepth elements of 16 bits.
template <int kTileRows, int kTileColumns, int kDepth>
struct Stages {
  static constexpr int kRows = kTileRows;
  static constexpr int kLeft = kTileRows * kDepth * 2, kRight = kTileColumns * kDepth * 2;
  // Each warp rounds 16 rows of 64 results into its part, and stores them from there in whole lines.
  static constexpr int kParts = kWarps * 16 * 64 * 2;
  static constexpr int kBarriers = 128;
  static constexpr int kStages = (kSharedLimit - kAlignment - kBarriers - kParts) / (kLeft + kRight);
  static constexpr int kShared = kAlignment + kBarriers + kParts + kStages * (kLeft + kRight);
  static_assert(kStages > 1 && kStages * 16 <= kBarriers);
};

}  // namespace rewriter::hopper
