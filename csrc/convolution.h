// What the kernel in convolution.cu is told, and where its instances are.
#pragma once

namespace rewriter::convolving {

constexpr int kRows = 128, kDepth = 64, kThreads = 384, kSplits = 8;
constexpr int kSharedLimit = 232448, kAlignment = 1024;

// Boxes of pixels, `box_*` wide, high and many, all powers of two given by their logarithms.
struct Pixels {
  int width, height, depth, images;
  int log_width, log_height, log_images;
  int across, down;  // boxes in a picture's row and column
};

struct Plan {
  Pixels pixels;
  int columns;        // of the result
  int step, pad_x, pad_y, pad_z;  // of the filter over the input
  int taps_x, taps_y;
  int chunks, steps;  // of 64 channels in a tap, and of all taps
  int piece, pieces;  // of the weight: rows of one, how many
  int across, along, splits;
  int row_groups, column_groups;  // of tiles, a group for each cluster
};

struct Operands {
  const void *bias, *residual;
  void* result;
};

struct Tile {
  static constexpr int kColumns = 160;
  static constexpr int kLeft = kRows * kDepth * 2, kRight = kColumns * kDepth * 2;
  // What the sums are rounded into before they are stored in whole lines.
  static constexpr int kPitch = kColumns + 8;
  static constexpr int kStaged = kRows * kPitch * 2;
  static constexpr int kBias = kColumns * 4, kBarriers = 256;
  static constexpr int kStages =
      (kSharedLimit - kAlignment - kBarriers - kBias - kStaged) / (kLeft + kRight);
  static constexpr int kShared = kAlignment + kBarriers + kBias + kStaged + kStages * (kLeft + kRight);
  // The sums of a split, with rows apart by more than a multiple of the banks.
  static constexpr int kSumPitch = kColumns + 8;
  static_assert(kRows * kSumPitch * 4 <= kStages * (kLeft + kRight));
};

// The address of the instance for f16 or bf16, as launches take it. Its arguments: the tensors of both operands for the
// copy engine, a Plan, Operands.
const void* kernel(bool f16);

}  // namespace rewriter::convolving
