// Convolutions as products of tiles on Hopper's tensor cores.
//
// A block makes kRows x 160 results. One warp keeps the copy engine busy, two groups of four warps multiply half of the
// rows each, and do not wait for each other: while one stores its sums, the other can have the tensor cores for itself.
// Rows are boxes of neighbouring pixels, so that for each tap of the filter the copy engine fetches the box, moved by the
// tap, with zeros beyond the picture's edge: no index is computed and nothing is unfolded. A linear layer is a picture of
// one row.
//
// With a scale of two, the result has four pixels for each of the input, and each of the four has its own filters and its
// own begin of the filter over the input: tiles of the four follow one another.
//
// Blocks of a cluster share what they read: `across` blocks with the same rows, `along` blocks with the same columns, and
// each loads its part for all. `splits` of them share the steps along the depth and add their sums up at the end.

#include "convolution.h"
#include "fetching.h"
#include "hopper.h"
#include "pixels.h"
#include "places.h"
#include "products.h"
#include "results.h"

#include <cstdint>

namespace rewriter::convolving {
namespace {

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

template <typename T>
__device__ T one_of(float value);
template <>
__device__ __half one_of(float value) { return __float2half_rn(value); }
template <>
__device__ __nv_bfloat16 one_of(float value) { return __float2bfloat16_rn(value); }

// Adds up what the blocks of a cluster have summed along their parts of the depth, and stores this block's rows of it.
template <typename T>
__device__ __forceinline__ void join_splits(const float (&sums)[kColumns / 2], float* partial, const Plan& plan,
                            const Operands& operands, const Place& place, const Rows& rows, int column) {
  using Shape = Tile<1>;
  const int worker = threadIdx.x - 128, lane = threadIdx.x % 32, upper = worker / 32 * 16 + lane / 4;
  const T* const residual = static_cast<const T*>(operands.residual);
  T* const result = static_cast<T*>(operands.result);
  // Nothing is copied into the stages any more, once both groups have read them.
  hopper::meet(1, 256);
#pragma unroll
  for (int j = 0; j < kColumns / 8; ++j) {
#pragma unroll
    for (int lower = 0; lower < 2; ++lower) {
      float* const to = partial + (upper + 8 * lower) * Shape::kSumPitch + 8 * j + lane % 4 * 2;
      *reinterpret_cast<float2*>(to) = make_float2(sums[4 * j + 2 * lower], sums[4 * j + 2 * lower + 1]);
    }
  }
  hopper::meet_cluster();
  constexpr int kLines = kColumns / 8;
  const int own = Shape::kRows / plan.splits, others = plan.across * plan.along;
  for (int index = worker; index < own * kLines; index += 256) {
    const int row = place.split * own + index / kLines, chunk = index % kLines;
    const int pixel = pixel_of(plan, rows, row);
    if (pixel < 0 || column + chunk * 8 >= plan.columns) continue;
    float total[8] = {};
    for (int split = 0; split < plan.splits; ++split) {
      const uint32_t rank = split * others + place.along * plan.across + place.across;
      const float* const from = partial + row * Shape::kSumPitch + chunk * 8;
      const float4 one = hopper::read_from(from, rank), two = hopper::read_from(from + 4, rank);
      total[0] += one.x, total[1] += one.y, total[2] += one.z, total[3] += one.w;
      total[4] += two.x, total[5] += two.y, total[6] += two.z, total[7] += two.w;
    }
    const int at = pixel * plan.columns + column + chunk * 8;
    alignas(16) T line[8], more[8];
    if (residual != nullptr) *reinterpret_cast<uint4*>(more) = *reinterpret_cast<const uint4*>(residual + at);
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      if (residual != nullptr) total[i] += static_cast<float>(more[i]);
      line[i] = one_of<T>(total[i]);
    }
    *reinterpret_cast<uint4*>(result + at) = *reinterpret_cast<const uint4*>(line);
  }
}

template <typename T, int kBlocks>
__global__ void __launch_bounds__(hopper::kThreads, 1)
    multiply(const __grid_constant__ CUtensorMap left_map, const __grid_constant__ CUtensorMap right_map,
             const __grid_constant__ Plan plan, const Operands operands) {
  using Shape = Tile<kBlocks>;
  const auto [left, right, parts, full, empty] = hopper::Memory<Shape>();

  const Place place(plan);
  // The same in all lanes of a warp, which the compiler cannot know of a division: descriptors are uniform then.
  const int warp = __shfl_sync(0xFFFFFFFF, threadIdx.x / 32, 0), group = warp / 4, lane = threadIdx.x % 32;
  // Every block that reads what this one loads, itself included, says when it has: each warp of it, once.
  const int readers = plan.across + plan.along - 1;
  if (threadIdx.x == 0) {
    hopper::prefetch(left_map);
    hopper::prefetch(right_map);
    for (int stage = 0; stage < Shape::kStages; ++stage) {
      hopper::make_barrier(full + stage, 1);
      hopper::make_barrier(empty + stage, hopper::kWarps * readers);
    }
    hopper::publish_barriers();
  }
  __syncthreads();
  hopper::await_cluster();
  hopper::await_earlier();

  const int cluster = blockIdx.x / (plan.across * plan.along * plan.splits);
  const int clusters = gridDim.x / (plan.across * plan.along * plan.splits);
  const int tiles = plan.row_groups * plan.column_groups * plan.scale * plan.scale;

  if (group == 0) {
    hopper::give_up_registers<40>();
    if (warp == 0 && lane == 0) {
      feed<Shape>(plan, place, left_map, right_map, left, right, full, empty, cluster, clusters, tiles);
    }
    // The others of the first warp must not wait for the cluster before its first thread does.
    __syncwarp();
    if (plan.splits > 1) hopper::meet_cluster();
  } else {
    hopper::take_registers<232>();
    const int half = group - 1;
    unsigned char* const part = parts + (warp - 4) * hopper::kPart;
    const int reader = place.reader(plan, lane);
    const int log_box = plan.pixels.log_width + plan.pixels.log_height + plan.pixels.log_images;
    float sums[kBlocks][kColumns / 2];
    hopper::Ring<Shape::kStages> ring;
    for (int tile = cluster; tile < tiles; tile += clusters) {
      const Spot spot(plan, place, tile);
      // The sums begin with the bias, those of the first split where there are several.
#pragma unroll
      for (int j = 0; j < kColumns / 8; ++j) {
        const int own = spot.column + 8 * j + lane % 4 * 2;
        const bool known = operands.bias != nullptr && own < plan.columns && place.split == 0;
        const float2 bias = hopper::widened<T>(
            known ? *reinterpret_cast<const uint32_t*>(static_cast<const T*>(operands.bias) + own) : 0);
#pragma unroll
        for (int block = 0; block < kBlocks; ++block) {
          sums[block][4 * j] = sums[block][4 * j + 2] = bias.x;
          sums[block][4 * j + 1] = sums[block][4 * j + 3] = bias.y;
        }
      }
      const Rows rows = {box_at(plan.pixels, spot.row_tile * plan.across),
                         box_at(plan.pixels, spot.row_tile * plan.across + plan.across - 1), log_box, spot.phase};
      const int row = half * kBlocks * 64 + warp % 4 * 16;
      Addends<T, 0> addends;
      Addends<T, 64> addends_64;
      // While the products run there are registers for 128 columns of the smaller tiles. With more of them, the assembler
      // has each product wait for the one before.
      constexpr bool kAhead = kBlocks == 1;
      if (kAhead && plan.splits == 1) {
        addends.read(operands.residual, Lines<0>(plan, rows, row, spot.column));
        addends_64.read(operands.residual, Lines<64>(plan, rows, row, spot.column));
      }
      hopper::add_products<T, kDepth>(sums, true, ring, place.begin, place.end, left, right, half, full, empty, reader);
      if (plan.splits == 1) {
        const auto store = [&](auto more, bool there, const auto& to, const float (&of_block)[kColumns / 2]) {
          if (!there) more.read(operands.residual, to);
          finish<T>(of_block, part, operands.residual, operands.result, to, more,
                    [](int) { return [](float one, float two) { return hopper::narrowed<T>(one, two); }; });
        };
#pragma unroll
        for (int block = 0; block < kBlocks; ++block) {
          store(addends, kAhead, Lines<0>(plan, rows, row + block * 64, spot.column), sums[block]);
          store(addends_64, kAhead, Lines<64>(plan, rows, row + block * 64, spot.column), sums[block]);
          store(Addends<T, 128>(), false, Lines<128>(plan, rows, row + block * 64, spot.column), sums[block]);
        }
      } else if constexpr (kBlocks == 1) {
        join_splits<T>(sums[0], reinterpret_cast<float*>(left), plan, operands, place, rows, spot.column);
      }
    }
  }
  // A block's shared memory stays until no other reads it, or tells its barriers anything.
  hopper::await_cluster();
}

#else

template <typename T, int kBlocks>
__global__ void multiply(const __grid_constant__ CUtensorMap, const __grid_constant__ CUtensorMap,
                         const __grid_constant__ Plan, const Operands) {}

#endif

template <int kBlocks>
Kernel instance(bool f16) {
  return {f16 ? hopper::address_of(multiply<__half, kBlocks>)
              : hopper::address_of(multiply<__nv_bfloat16, kBlocks>),
          Tile<kBlocks>::kRows, Tile<kBlocks>::kShared};
}

}  // namespace

Kernel kernel(int rows, bool f16) {
  if (rows == 128) return instance<1>(f16);
  if (rows == 256) return instance<2>(f16);
  return {};
}

}  // namespace rewriter::convolving
