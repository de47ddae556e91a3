// Convolutions in f8e4m3, with one scale for the pictures and one for each filter, on Hopper's tensor cores.
//
// The way of the operands is that of convolution.cu: a step's rows are 128 bytes here too, and hold twice as many elements.
// Products take half as long as in f16. What the columns are multiplied by is read at a tile's end: its products are those
// of whole filters, and take many times as long.

#include "convolution.h"
#include "fetching.h"
#include "hopper.h"
#include "pixels.h"
#include "places.h"
#include "products.h"
#include "results.h"

#include <cuda.h>
#include <cuda_fp8.h>

#include <cstdint>

namespace rewriter::convolving {
namespace {

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

// How the sums of two neighbouring columns become a word of results.
template <typename T>
struct Ends {
  __device__ Ends(const QuantisedOperands& operands, float scale, int column, int columns) {
    if (column >= columns) return;
    const float* const own = operands.filter_scales + column;
    by = {scale * __uint_as_float(hopper::read_ahead(own)), scale * __uint_as_float(hopper::read_ahead(own + 1))};
    bias = hopper::widened<T>(hopper::read_ahead(static_cast<const T*>(operands.bias) + column));
  }
  __device__ uint32_t operator()(float one, float two) const {
    return hopper::narrowed<T>(one * by.x + bias.x, two * by.y + bias.y);
  }

  float2 by{}, bias{};
};

template <typename T, int kBlocks>
__global__ void __launch_bounds__(hopper::kThreads, 1)
    multiply(const __grid_constant__ CUtensorMap left_map, const __grid_constant__ CUtensorMap right_map,
             const __grid_constant__ Plan plan, const QuantisedOperands operands) {
  using Shape = Tile<kBlocks>;
  const auto [left, right, parts, full, empty] = hopper::Memory<Shape>();

  const Place place(plan);
  // The same in all lanes of a warp, which the compiler cannot know of a division: descriptors are uniform then.
  const int warp = __shfl_sync(0xFFFFFFFF, threadIdx.x / 32, 0), group = warp / 4, lane = threadIdx.x % 32;
  // Every block that reads what this one loads, itself included, says when it has: each warp of it, once.
  const int size = plan.across * plan.along;
  if (threadIdx.x == 0) {
    hopper::prefetch(left_map);
    hopper::prefetch(right_map);
    for (int stage = 0; stage < Shape::kStages; ++stage) {
      hopper::make_barrier(full + stage, 1);
      hopper::make_barrier(empty + stage, hopper::kWarps * (plan.across + plan.along - 1));
    }
    hopper::publish_barriers();
  }
  __syncthreads();
  hopper::await_cluster();
  hopper::await_earlier();

  const int cluster = blockIdx.x / size, clusters = gridDim.x / size;
  const int tiles = plan.row_groups * plan.column_groups;

  if (group == 0) {
    hopper::give_up_registers<40>();
    if (warp == 0 && lane == 0) {
      feed<Shape>(plan, place, left_map, right_map, left, right, full, empty, cluster, clusters, tiles);
    }
    // The others of the first warp must not wait for the cluster before its first thread does.
    __syncwarp();
  } else {
    hopper::take_registers<232>();
    const int half = group - 1, reader = place.reader(plan, lane);
    unsigned char* const part = parts + (warp - 4) * hopper::kPart;
    const int log_box = plan.pixels.log_width + plan.pixels.log_height + plan.pixels.log_images;
    const float scale = *operands.scale;
    float sums[kBlocks][kColumns / 2];
    hopper::Ring<Shape::kStages> ring;
    for (int tile = cluster; tile < tiles; tile += clusters) {
      const Spot spot(plan, place, tile);
      const Rows rows = {box_at(plan.pixels, spot.row_tile * plan.across),
                         box_at(plan.pixels, spot.row_tile * plan.across + plan.across - 1), log_box, spot.phase};
      const int row = half * kBlocks * 64 + warp % 4 * 16;
      hopper::add_products<__nv_fp8_e4m3, kDepth>(sums, false, ring, place.begin, place.end, left, right, half, full,
                                                  empty, reader);
      const auto store = [&](auto nothing, const auto& to, const float (&of_block)[kColumns / 2]) {
        finish<T>(of_block, part, nullptr, operands.result, to, nothing, [&](int j) {
          return Ends<T>(operands, scale, spot.column + 8 * j + lane % 4 * 2, plan.columns);
        });
      };
#pragma unroll
      for (int block = 0; block < kBlocks; ++block) {
        store(Addends<T, 0>(), Lines<0>(plan, rows, row + block * 64, spot.column), sums[block]);
        store(Addends<T, 64>(), Lines<64>(plan, rows, row + block * 64, spot.column), sums[block]);
        store(Addends<T, 128>(), Lines<128>(plan, rows, row + block * 64, spot.column), sums[block]);
      }
    }
  }
  // A block's shared memory stays until no other reads it, or tells its barriers anything.
  hopper::await_cluster();
}

#else

template <typename T, int kBlocks>
__global__ void multiply(const __grid_constant__ CUtensorMap, const __grid_constant__ CUtensorMap,
                         const __grid_constant__ Plan, const QuantisedOperands) {}

#endif

template <int kBlocks>
Kernel instance(bool f16) {
  return {f16 ? hopper::address_of(multiply<__half, kBlocks>)
              : hopper::address_of(multiply<__nv_bfloat16, kBlocks>),
          Tile<kBlocks>::kRows, Tile<kBlocks>::kShared};
}

}  // namespace

Kernel quantised_kernel(int rows, bool f16) {
  if (rows == 128) return instance<1>(f16);
  if (rows == 256) return instance<2>(f16);
  return {};
}

}  // namespace rewriter::convolving
