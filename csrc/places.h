// Where a block of a convolution stands: its pixels, its filters, its steps along the depth.
#pragma once

#include "convolution.h"
#include "hopper.h"

namespace rewriter::convolving {

struct Box {
  int x, y, z, image;
};

__device__ inline Box box_at(const Pixels& pixels, int index) {
  Box box;
  box.x = (index % pixels.across) << pixels.log_width;
  index /= pixels.across;
  box.y = (index % pixels.down) << pixels.log_height;
  index /= pixels.down;
  box.z = index % pixels.depth;
  box.image = (index / pixels.depth) << pixels.log_images;
  return box;
}

// Which of the result's pixels for a pixel of the input.
struct Phase {
  int x, y;
};

// A tile's rows: one box, or two of half as many.
struct Rows {
  Box upper, lower;
  int log_box;
  Phase phase;

  // The box that a row is in. Each part is chosen, so that none of this has to be in memory.
  __device__ Box box_of(int row) const {
    const bool second = row >> log_box;
    return {second ? lower.x : upper.x, second ? lower.y : upper.y, second ? lower.z : upper.z,
            second ? lower.image : upper.image};
  }
};

// The number of the row's pixel in the result, -1 beyond the picture's edge.
__device__ inline int pixel_of(const Plan& plan, const Rows& rows, int row) {
  const Pixels& pixels = plan.pixels;
  const Box box = rows.box_of(row);
  int index = row & ((1 << rows.log_box) - 1);
  const int x = box.x + (index & ((1 << pixels.log_width) - 1));
  index >>= pixels.log_width;
  const int y = box.y + (index & ((1 << pixels.log_height) - 1));
  const int image = box.image + (index >> pixels.log_height);
  if (x >= pixels.width || y >= pixels.height || image >= pixels.images) return -1;
  const int line = ((image * pixels.depth + box.z) * pixels.height + y) * plan.scale + rows.phase.y;
  return (line * pixels.width + x) * plan.scale + rows.phase.x;
}

// Where a cluster's block stands, and the tiles that it works on.
struct Place {
  __device__ Place(const Plan& plan) {
    const int rank = static_cast<int>(hopper::rank_in_cluster());
    const int sharing = plan.across * plan.along;
    split = rank / sharing;
    first = split * sharing;
    along = rank % sharing / plan.across;
    across = rank % plan.across;
    begin = plan.steps * split / plan.splits;
    end = plan.steps * (split + 1) / plan.splits;
  }

  // The block that a lane tells what its warp has read: one of those that load for this one, -1 for none.
  __device__ int reader(const Plan& plan, int lane) const {
    int found = -1;
    if (lane < plan.across) {
      found = first + along * plan.across + lane;
    } else if (lane < plan.across + plan.along - 1) {
      const int other = lane - plan.across;
      found = first + (other + (other >= along)) * plan.across + across;
    }
    return found;
  }

  int split, first, along, across;
  int begin, end;
};

// What a block works on: rows and columns of one phase of the result.
struct Spot {
  __device__ Spot(const Plan& plan, const Place& place, int tile) {
    column = (tile % plan.column_groups * plan.across + place.across) * kColumns;
    tile /= plan.column_groups;
    const int phases = plan.scale * plan.scale, index = tile % phases;
    phase = {index % plan.scale, index / plan.scale};
    filter = index * plan.columns + column;
    row_tile = tile / phases * plan.along + place.along;
  }
  // filter: the weight's row for the first column.
  int row_tile, column, filter;
  Phase phase;
};

// A step along the depth: some channels of a tap. Counted, not computed: one thread feeds the tensor cores, and a division
// takes it as long as a step takes them.
struct Tap {
  __device__ Tap(const Plan& plan, int step) {
    index = step / plan.chunks;
    channel = step % plan.chunks * kDepth;
    x = index % plan.taps_x;
    y = index / plan.taps_x % plan.taps_y;
    z = index / plan.taps_x / plan.taps_y;
  }
  __device__ void next(const Plan& plan) {
    channel += kDepth;
    if (channel < plan.chunks * kDepth) return;
    channel = 0;
    ++index;
    if (++x < plan.taps_x) return;
    x = 0;
    if (++y < plan.taps_y) return;
    y = 0;
    ++z;
  }
  int index, channel, x, y, z;
};

}  // namespace rewriter::convolving
