// How the copy engine is kept busy with the boxes of pixels and the filters of a convolution.
#pragma once

#include "convolution.h"
#include "hopper.h"
#include "places.h"
#include "products.h"

#include <cuda.h>

#include <cstdint>

namespace rewriter::convolving {

// What one thread does for its block: for each step of each tile it waits for a stage and has its part of both operands
// copied there, for all blocks of the cluster that share it.
template <typename Shape>
__device__ __forceinline__ void feed(const Plan& plan, const Place& place, const CUtensorMap& left_map,
                                     const CUtensorMap& right_map, unsigned char* left, unsigned char* right,
                                     uint64_t* full, uint64_t* empty, int cluster, int clusters, int tiles) {
  const int left_rows = Shape::kRows / plan.across;
  uint16_t same_rows = 0, same_columns = 0;
  for (int i = 0; i < plan.across; ++i) same_rows |= 1 << (place.first + place.along * plan.across + i);
  for (int i = 0; i < plan.along; ++i) same_columns |= 1 << (place.first + i * plan.across + place.across);
  hopper::Ring<Shape::kStages> ring;
  for (int tile = cluster; tile < tiles; tile += clusters) {
    const Spot spot(plan, place, tile);
    Box box = box_at(plan.pixels, spot.row_tile * plan.across + place.across);
    box.x = box.x * plan.step - plan.pad_x + spot.phase.x;
    box.y = box.y * plan.step - plan.pad_y + spot.phase.y;
    Tap tap(plan, place.begin);
    for (int step = place.begin; step < place.end; ++step, ring.next(), tap.next(plan)) {
      hopper::wait(empty + ring.stage, ring.turn ^ 1);
      hopper::expect(full + ring.stage, Shape::kLeft + Shape::kRight);
      hopper::copy(left + ring.stage * Shape::kLeft + place.across * left_rows * kDepth * 2, left_map,
                   full + ring.stage, same_rows, plan.across > 1, tap.channel,
                   box.x + tap.x, box.y + tap.y, box.z + tap.z - plan.pad_z, box.image);
      for (int piece = place.along; piece < plan.pieces; piece += plan.along) {
        hopper::copy(right + ring.stage * Shape::kRight + piece * plan.piece * kDepth * 2, right_map,
                     full + ring.stage, same_columns, plan.along > 1, tap.channel, tap.index,
                     spot.filter + piece * plan.piece);
      }
    }
  }
}

}  // namespace rewriter::convolving
