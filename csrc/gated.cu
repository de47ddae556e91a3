// Linear + GEGLU as a product of tiles on Hopper's tensor cores.
//
// A block makes kRows x kResults results from the columns of both halves of the weight. One warp keeps the copy engine
// busy; two groups of four warps multiply half of the rows each. The groups never wait for each other: what holds the
// two together is only the ring of stages, which both read. While one applies the gate to its sums, the other can have
// the tensor cores for itself.
//
// Two blocks of a cluster share what they read: the rows, or the columns; each loads its part for both.

#include "gated.h"
#include "activations.h"
#include "feeding.h"
#include "hopper.h"
#include "products.h"
#include "results.h"

#include <cuda.h>

#include <cstdint>

namespace rewriter::gated {
namespace {

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

// Rounds 64 x kResults results of a group and stores them; each warp its 16 rows, through its part of shared memory.
// row, column: of the warp's first result.
template <typename T, int kResults>
__device__ void finish(const float (&sums)[kResults], const uint32_t (&hidden_bias)[kResults / 8],
                       const uint32_t (&gate_bias)[kResults / 8], unsigned char* part, const Work& work, int row,
                       int column) {
  const int lane = threadIdx.x % 32;
  T* const result = static_cast<T*>(work.result);
#pragma unroll
  for (int from = 0; from < kResults; from += 64) {
    constexpr int kLast = kResults % 64 == 0 ? 64 : kResults % 64;
    const int chunks = (from + 64 <= kResults ? 64 : kLast) / 8;
    __syncwarp();
#pragma unroll
    for (int pair = 0; pair < chunks; pair += 2) {
      uint32_t words[4];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int j = from / 8 + pair + i;
        const float2 hidden_shift = hopper::widened<T>(hidden_bias[j]);
        const float2 gate_shift = hopper::widened<T>(gate_bias[j]);
#pragma unroll
        for (int lower = 0; lower < 2; ++lower) {
          const int at = 4 * j + 2 * lower;
          words[2 * i + lower] = hopper::narrowed<T>(
              (sums[at] + hidden_shift.x) * hopper::gelu(sums[kResults / 2 + at] + gate_shift.x),
              (sums[at + 1] + hidden_shift.y) * hopper::gelu(sums[kResults / 2 + at + 1] + gate_shift.y));
        }
      }
      hopper::store_chunks(part, pair, words);
    }
    __syncwarp();
    // Whole lines of 16 bytes, `height` rows at once.
    const int height = 32 / chunks, down = lane / chunks, chunk = lane % chunks;
    uint4 lines[4];
#pragma unroll
    for (int i = 0; i < chunks / 2; ++i) {
      const int at = i * height + down;
      lines[i] = *reinterpret_cast<const uint4*>(part + hopper::chunk_at(at, chunk));
    }
    const int left = work.rows - row - down, right = column + from + chunk * 8;
    T* const first = result + static_cast<int64_t>(row + down) * work.results + right;
#pragma unroll
    for (int i = 0; i < chunks / 2; ++i) {
      if (i * height < left && right < work.results) {
        *reinterpret_cast<uint4*>(first + static_cast<int64_t>(i * height) * work.results) = lines[i];
      }
    }
  }
}

template <typename T, int kBlocks, int kResults>
__global__ void __launch_bounds__(hopper::kThreads, 1)
    multiply(const __grid_constant__ CUtensorMap left_map, const __grid_constant__ CUtensorMap right_map,
             const __grid_constant__ Work work) {
  using Shape = Tile<kBlocks, kResults>;
  const auto [left, right, parts, full, empty] = hopper::Memory<Shape>();

  const int size = work.across * work.along, rank = static_cast<int>(hopper::rank_in_cluster());
  // The same in all lanes of a warp, which the compiler cannot know of a division: descriptors are uniform then.
  const int warp = __shfl_sync(0xFFFFFFFF, threadIdx.x / 32, 0), group = warp / 4, lane = threadIdx.x % 32;
  if (threadIdx.x == 0) {
    hopper::prefetch(left_map);
    hopper::prefetch(right_map);
    for (int stage = 0; stage < Shape::kStages; ++stage) {
      hopper::make_barrier(full + stage, 1);
      // Every warp of the cluster that multiplies reads what this block loads.
      hopper::make_barrier(empty + stage, hopper::kWarps * size);
    }
    hopper::publish_barriers();
  }
  __syncthreads();
  hopper::await_cluster();
  hopper::await_earlier();

  const int cluster = blockIdx.x / size, clusters = gridDim.x / size;
  const int tiles = work.row_groups * work.column_groups;

  if (group == 0) {
    hopper::give_up_registers<40>();
    if (warp == 0 && lane == 0) {
      hopper::feed<Shape, kDepth, kResults>(work, left_map, right_map, left, right, full, empty, cluster, clusters,
                                            tiles, rank, work.results);
    }
    // The others of the first warp must not wait for the cluster before its first thread does.
    __syncwarp();
  } else {
    hopper::take_registers<232>();
    const int half = group - 1;
    unsigned char* const part = parts + (warp - 4) * hopper::kPart;
    float sums[kBlocks][kResults];
    hopper::Ring<Shape::kStages> ring;
    for (int tile = cluster; tile < tiles; tile += clusters) {
      const hopper::Spot spot = hopper::spot_of(work, tile, rank, Shape::kRows, kResults);
      uint32_t hidden_bias[kResults / 8], gate_bias[kResults / 8];
#pragma unroll
      for (int j = 0; j < kResults / 8; ++j) {
        const int column = spot.column + 8 * j + lane % 4 * 2;
        const T* const bias = static_cast<const T*>(work.bias) + column;
        const bool known = work.bias != nullptr && column < work.results;
        hidden_bias[j] = known ? hopper::read_ahead(bias) : 0;
        gate_bias[j] = known ? hopper::read_ahead(bias + work.results) : 0;
      }
      const int reader = lane < size ? lane : -1;
      hopper::add_products<T, kDepth>(sums, false, ring, 0, work.steps, left, right, half, full, empty, reader);
#pragma unroll
      for (int block = 0; block < kBlocks; ++block) {
        finish<T, kResults>(sums[block], hidden_bias, gate_bias, part, work,
                            spot.row + (half * kBlocks + block) * 64 + warp % 4 * 16, spot.column);
      }
    }
  }
  // A block's shared memory stays until no other writes to it, or tells its barriers anything.
  hopper::await_cluster();
}

#else

template <typename T, int kBlocks, int kResults>
__global__ void multiply(const __grid_constant__ CUtensorMap, const __grid_constant__ CUtensorMap,
                         const __grid_constant__ Work) {}

#endif

template <int kBlocks, int kResults>
Kernel instance(bool f16) {
  using Shape = Tile<kBlocks, kResults>;
  return {f16 ? hopper::address_of(multiply<__half, kBlocks, kResults>)
              : hopper::address_of(multiply<__nv_bfloat16, kBlocks, kResults>),
          Shape::kRows, kResults, Shape::kShared};
}

}  // namespace

Kernel kernel(int rows, int columns, bool f16) {
  if (rows == 256 && columns == 80) return instance<2, 80>(f16);
  if (rows == 128 && columns == 128) return instance<1, 128>(f16);
  if (rows == 128 && columns == 80) return instance<1, 80>(f16);
  return {};
}

}  // namespace rewriter::gated
