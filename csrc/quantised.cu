// Products of rows in f8e4m3, with the scales of both, a bias, and a residual or GEGLU at their end, on Hopper's tensor
// cores.
//
// The way of the operands is that of gated.cu: a step's rows are 128 bytes here too, and hold twice as many elements. One
// warp keeps the copy engine busy; two groups of four warps multiply half of a tile's rows each and never wait for each
// other, or have tiles of their own in turns. A tile has 160 columns: neighbours, or 80 and the 80 gates for them.
//
// Products take half as long as in f16, the end of a tile as long: where a block has several tiles, one group ends one
// while the other multiplies.
//
// Two blocks of a cluster share what they read: the rows, or the columns; each loads its part for both.

#include "activations.h"
#include "feeding.h"
#include "hopper.h"
#include "products.h"
#include "quantised.h"
#include "results.h"

#include <cuda.h>
#include <cuda_fp8.h>

#include <cstdint>

namespace rewriter::quantised {
namespace {

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

constexpr int kHalf = kColumns / 2, kPairs = kColumns / 2;
// Of a group that multiplies, and of both.
constexpr int kGroup = 128, kMultiplying = 2 * kGroup;

// What two neighbouring columns are multiplied by, and what is added to them, of all columns of a tile: read into shared
// memory before its products, since a trip to global memory for each would take as long as they do. column: the tile's
// first result; with gates, theirs come behind. thread: of a group, which has a place of its own.
template <typename T, bool kGated>
__device__ void read_ends(float4* ends, const Work& work, int column, int thread) {
  if (thread >= kPairs) return;
  const int own = column + 2 * (kGated ? thread % (kPairs / 2) : thread);
  const int from = kGated && thread >= kPairs / 2 ? own + work.results : own;
  float4 found{};
  if (own < work.results) {
    const float2 scale = *reinterpret_cast<const float2*>(work.column_scales + from);
    const float2 bias =
        hopper::widened<T>(*reinterpret_cast<const uint32_t*>(static_cast<const T*>(work.bias) + from));
    found = make_float4(scale.x, scale.y, bias.x, bias.y);
  }
  ends[thread] = found;
}

__device__ float2 ended(float one, float two, float scale, const float4& ends) {
  return {one * scale * ends.x + ends.z, two * scale * ends.y + ends.w};
}

// Rounds a warp's 16 rows of results and stores them through its part of shared memory. scales: of this lane's two rows;
// row, column: of the first.
template <typename T, bool kGated>
__device__ void finish(const float (&sums)[kHalf], const float (&scales)[2], const float4* ends, unsigned char* part,
                       const Work& work, int row, int column) {
  constexpr int kResults = kGated ? kHalf : kColumns;
  const int lane = threadIdx.x % 32;
  T* const result = static_cast<T*>(work.result);
  const T* const residual = static_cast<const T*>(work.residual);
#pragma unroll
  for (int from = 0; from < kResults; from += 64) {
    constexpr int kLast = kResults % 64 == 0 ? 64 : kResults % 64;
    const int chunks = (from + 64 <= kResults ? 64 : kLast) / 8;
    // Whole lines of 16 bytes, `height` rows at once.
    const int height = 32 / chunks, down = lane / chunks, chunk = lane % chunks;
    const int right = column + from + chunk * 8, left = right < work.results ? work.rows - row - down : 0;
    const int64_t first = static_cast<int64_t>(row + down) * work.results + right;
    uint4 more[4];
    if (!kGated && residual != nullptr) {
#pragma unroll
      for (int i = 0; i < chunks / 2; ++i) {
        const T* const place = residual + first + static_cast<int64_t>(i * height) * work.results;
        more[i] = i * height < left ? hopper::read_line_ahead(place) : uint4{};
      }
    }
    __syncwarp();
#pragma unroll
    for (int pair = 0; pair < chunks; pair += 2) {
      uint32_t words[4];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int j = from / 8 + pair + i;
        const float4 end = ends[4 * j + lane % 4];
        float4 gate{};
        if constexpr (kGated) gate = ends[kPairs / 2 + 4 * j + lane % 4];
#pragma unroll
        for (int lower = 0; lower < 2; ++lower) {
          const int at = 4 * j + 2 * lower;
          float2 value = ended(sums[at], sums[at + 1], scales[lower], end);
          if constexpr (kGated) {
            const float2 by = ended(sums[kHalf / 2 + at], sums[kHalf / 2 + at + 1], scales[lower], gate);
            value = make_float2(value.x * hopper::gelu(by.x), value.y * hopper::gelu(by.y));
          }
          words[2 * i + lower] = hopper::narrowed<T>(value.x, value.y);
        }
      }
      hopper::store_chunks(part, pair, words);
    }
    __syncwarp();
    // All are read before the first is stored, which might lie in shared memory for all that the compiler knows.
    uint4 lines[4];
#pragma unroll
    for (int i = 0; i < chunks / 2; ++i) {
      lines[i] = *reinterpret_cast<const uint4*>(part + hopper::chunk_at(i * height + down, chunk));
      if (!kGated && residual != nullptr) lines[i] = hopper::added<T>(lines[i], more[i]);
    }
#pragma unroll
    for (int i = 0; i < chunks / 2; ++i) {
      if (i * height < left) {
        *reinterpret_cast<uint4*>(result + first + static_cast<int64_t>(i * height) * work.results) = lines[i];
      }
    }
  }
}

// kGroups: of four warps that share a tile, both or one.
template <typename T, int kGroups, bool kGated>
__global__ void __launch_bounds__(hopper::kThreads, 1)
    multiply(const __grid_constant__ CUtensorMap left_map, const __grid_constant__ CUtensorMap right_map,
             const __grid_constant__ Work work) {
  constexpr int kResults = kGated ? kHalf : kColumns, kBlocks = kRows / (64 * kGroups);
  const auto [left, right, parts, full, empty] = hopper::Memory<Tile>();

  const int size = work.across * work.along, rank = static_cast<int>(hopper::rank_in_cluster());
  // The same in all lanes of a warp, which the compiler cannot know of a division: descriptors are uniform then.
  const int warp = __shfl_sync(0xFFFFFFFF, threadIdx.x / 32, 0), group = warp / 4, lane = threadIdx.x % 32;
  if (threadIdx.x == 0) {
    hopper::prefetch(left_map);
    hopper::prefetch(right_map);
    for (int stage = 0; stage < Tile::kStages; ++stage) {
      hopper::make_barrier(full + stage, 1);
      // Every warp of the cluster that multiplies this tile reads what this block loads.
      hopper::make_barrier(empty + stage, hopper::kWarps / 2 * kGroups * size);
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
      hopper::feed<Tile, kDepth, kResults>(work, left_map, right_map, left, right, full, empty, cluster, clusters, tiles,
                                            rank, work.apart);
    }
    // The others of the first warp must not wait for the cluster before its first thread does.
    __syncwarp();
  } else {
    hopper::take_registers<232>();
    const int own = group - 1, other = 1 - own, half = kGroups == 1 ? 0 : own;
    unsigned char* const part = parts + (warp - 4) * hopper::kPart;
    float4* const ends = reinterpret_cast<float4*>(reinterpret_cast<unsigned char*>(full) + Tile::kBarriers) + own * 2 * kPairs;
    float sums[kBlocks][kHalf], scales[kBlocks][2];
    // A group's turn begins when the other's last products are under way: a barrier of the ring tells phases apart by their
    // parity only, so that no group may be two of them ahead of what is copied.
    if (kGroups == 1 && own == 1) hopper::announce(1 + other, kMultiplying);
    for (int tile = cluster, turn = 0; tile < tiles; tile += clusters, ++turn) {
      if (kGroups == 1 && turn % 2 != own) continue;
      const hopper::Spot spot = hopper::spot_of(work, tile, rank, kRows, kResults);
      const int row = spot.row + half * kBlocks * 64 + warp % 4 * 16;
      // A warp may be at this tile while another ends the one before.
      float4* const here = ends + (kGroups == 1 ? turn / 2 : turn) % 2 * kPairs;
      read_ends<T, kGated>(here, work, spot.column, threadIdx.x % kGroup);
#pragma unroll
      for (int i = 0; i < 2 * kBlocks; ++i) {
        const int upper = row + i / 2 * 64 + i % 2 * 8 + lane / 4;
        scales[i / 2][i % 2] =
            upper < work.rows ? __uint_as_float(hopper::read_ahead(work.row_scales + upper)) : 0.0f;
      }
      auto ring = hopper::Ring<Tile::kStages>::after(turn * work.steps);
      const int reader = lane < size ? lane : -1;
      hopper::meet(1 + own, kGroups == 1 ? kMultiplying : kGroup);
      const auto issued = [&] {
        if (kGroups == 1 && tile + clusters < tiles) hopper::announce(1 + other, kMultiplying);
      };
      hopper::add_products<__nv_fp8_e4m3, kDepth, kGroups>(sums, false, ring, 0, work.steps, left, right, half, full,
                                                           empty, reader, issued);
#pragma unroll
      for (int block = 0; block < kBlocks; ++block) {
        finish<T, kGated>(sums[block], scales[block], here, part, work, row + block * 64, spot.column);
      }
    }
  }
  // A block's shared memory stays until no other writes to it, or tells its barriers anything.
  hopper::await_cluster();
}

#else

template <typename T, int kGroups, bool kGated>
__global__ void multiply(const __grid_constant__ CUtensorMap, const __grid_constant__ CUtensorMap,
                         const __grid_constant__ Work) {}

#endif

template <typename T>
const void* instance(bool gated, bool alternate) {
  if (gated) return alternate ? hopper::address_of(multiply<T, 1, true>) : hopper::address_of(multiply<T, 2, true>);
  return alternate ? hopper::address_of(multiply<T, 1, false>) : hopper::address_of(multiply<T, 2, false>);
}

}  // namespace

const void* kernel(bool f16, bool gated, bool alternate) {
  return f16 ? instance<__half>(gated, alternate) : instance<__nv_bfloat16>(gated, alternate);
}

}  // namespace rewriter::quantised
