// What the kernels in convolution.cu and quantised_convolution.cu are told, and where their instances are.
#pragma once

#include "stages.h"

namespace rewriter::convolving {

// kDepth: of 16 bits, or twice as many of eight.
constexpr int kDepth = 64, kColumns = 160, kSplits = 8;

// Boxes of pixels, `box_*` wide, high and many, all powers of two given by their logarithms.
struct Pixels {
  int width, height, depth, images;
  int log_width, log_height, log_images;
  int across, down;  // boxes in a picture's row and column
};

struct Plan {
  Pixels pixels;
  int columns;        // of the result
  int scale;          // pixels of the result for each of `pixels`, in height and in width: each has filters of its own
  int step, pad_x, pad_y, pad_z;  // of the filter over the input
  int taps_x, taps_y;
  int chunks, steps;  // of kDepth channels in a tap, and of all taps
  int piece, pieces;  // of the weight: rows of one, how many
  int across, along, splits;
  int row_groups, column_groups;  // of tiles, a group for each cluster
};

struct Operands {
  const void *bias, *residual;
  void* result;
};

// scale, filter_scales: what x's and each filter's numbers of eight bits are multiplied by.
struct QuantisedOperands {
  const float *scale, *filter_scales;
  const void* bias;
  void* result;
};

// kBlocks: of 64 rows, for each group of four warps.
template <int kBlocks>
struct Tile : hopper::Stages<128 * kBlocks, kColumns, kDepth> {
  // The sums of a split, with rows apart by more than a multiple of the banks.
  static constexpr int kSumPitch = kColumns + 8;
  static_assert(kBlocks > 1 || Tile::kRows * kSumPitch * 4 <= Tile::kStages * (Tile::kLeft + Tile::kRight));
};

// An instance: its address as launches take it, the rows of a block, the shared memory that it needs. Its arguments: the
// tensors of both operands for the copy engine, a Plan, Operands or QuantisedOperands.
struct Kernel {
  const void* address;
  int rows, shared;
};

// The instance for blocks of 128 or 256 rows, without an address for others. That for 256 rows has no splits.
Kernel kernel(int rows, bool f16);
// The same of operands in eight bits, without splits or a scale of the picture. f16: the result, or else bf16.
Kernel quantised_kernel(int rows, bool f16);

}  // namespace rewriter::convolving
