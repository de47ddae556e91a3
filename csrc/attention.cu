// Attention without a mask on Hopper's tensor cores, for small heads and many keys.
//
// A block has 64 queries of a head for each of its groups of four warps, and reads the head's keys and values in blocks of
// 128 through one ring, in the order in which they are used: k0 k1 v0 k2 v1 ... One warp keeps the copy engine busy. While a
// group takes exponentials of one block's scores, its products with the values of the block before run, and other groups
// have the tensor cores in between: exponentials, not products, take longest for heads of up to 64 elements. Groups begin
// their products in turn: the tensor core of each quarter of a multiprocessor serves all groups alternately, so that they
// would otherwise all get their scores at once, and it would then wait for their exponentials.
//
// The softmax is the online one (Milakov and Gimelshein, 2018) as FlashAttention-2 arranges it: sums are rescaled when the
// largest score grows, and divided once at the end. The schedule is FlashAttention-3's within a group.

#include "attention.h"
#include "hopper.h"
#include "products.h"
#include "results.h"

#include <cmath>
#include <cstdint>

namespace rewriter::attending {
namespace {

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

__device__ float among_four(float x, bool largest) {
#pragma unroll
  for (int step = 1; step < 4; step *= 2) {
    const float other = __shfl_xor_sync(0xFFFFFFFF, x, step);
    x = largest ? fmaxf(x, other) : x + other;
  }
  return x;
}

// The two rows that a thread has a part of: the largest score so far, scaled, and the sum of this thread's exponentials.
struct Rows {
  float largest[2] = {-INFINITY, -INFINITY}, total[2] = {0.0f, 0.0f};

  // Turns scores into exponentials. keep: what earlier sums are to be multiplied by.
  __device__ __forceinline__ void soften(float (&scores)[kKeys / 2], float (&keep)[2], float scale) {
#pragma unroll
    for (int lower = 0; lower < 2; ++lower) {
      float top = -INFINITY;
#pragma unroll
      for (int j = 2 * lower; j < kKeys / 2; j += 4) top = fmaxf(top, fmaxf(scores[j], scores[j + 1]));
      // Rounded once, it is the same in all exponents of the row, and cancels out in the end.
      top = fmaxf(largest[lower], among_four(top, true) * scale);
      keep[lower] = hopper::exp2_of(largest[lower] - top);
      largest[lower] = top;
      float sum = 0.0f;
#pragma unroll
      for (int j = 2 * lower; j < kKeys / 2; j += 4) {
        scores[j] = hopper::exp2_of(fmaf(scores[j], scale, -top));
        scores[j + 1] = hopper::exp2_of(fmaf(scores[j + 1], scale, -top));
        sum += scores[j] + scores[j + 1];
      }
      total[lower] = total[lower] * keep[lower] + sum;
    }
  }
};

template <typename T>
__device__ __forceinline__ void round_into(uint32_t (&words)[kKeys / 4], const float (&scores)[kKeys / 2]) {
#pragma unroll
  for (int i = 0; i < kKeys / 4; ++i) words[i] = hopper::narrowed<T>(scores[2 * i], scores[2 * i + 1]);
}

// What lies beyond the last key.
__device__ __forceinline__ void hide(float (&scores)[kKeys / 2], int known) {
#pragma unroll
  for (int j = 0; j < kKeys / 8; ++j) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (8 * j + threadIdx.x % 4 * 2 + i % 2 >= known) scores[4 * j + i] = -INFINITY;
    }
  }
}

template <typename T, int kDim>
__device__ __forceinline__ void score(float (&scores)[kKeys / 2], uint64_t queries, uint64_t keys) {
#pragma unroll
  for (int k = 0; k < (kDim + 15) / 16; ++k) {
    hopper::Multiply<T, kKeys>::run(scores, queries + 2 * k, keys + 2 * k, k > 0);
  }
  hopper::commit_products();
}

template <typename T, int kDim>
__device__ __forceinline__ void weigh(float (&sums)[kDim / 2], const uint32_t (&weights)[kKeys / 4], uint64_t values,
                                      bool more) {
#pragma unroll
  for (int k = 0; k < kKeys / 16; ++k) {
    hopper::MultiplyHeld<T, kDim>::run(sums, weights + 4 * k, values + k * (16 * kPitch * 2 >> 4), more || k > 0);
  }
  hopper::commit_products();
}

template <typename T, int kDim, int kGroups>
__global__ void __launch_bounds__(Tile<kGroups>::kThreads, 1)
    attend(const __grid_constant__ CUtensorMap q_map, const __grid_constant__ CUtensorMap k_map,
           const __grid_constant__ CUtensorMap v_map, const __grid_constant__ Work work) {
  using Shape = Tile<kGroups>;
  unsigned char* const memory = hopper::shared_memory();
  unsigned char* const queries = memory + (kAlignment - hopper::shared_address(memory) % kAlignment) % kAlignment;
  unsigned char* const slots = queries + Shape::kQueryBytes;
  unsigned char* const parts = slots + Shape::kSlots * Shape::kBlock;
  uint64_t* const full = reinterpret_cast<uint64_t*>(parts + Shape::kParts);
  uint64_t* const empty = full + Shape::kSlots;
  uint64_t* const queries_there = empty + Shape::kSlots;
  uint64_t* const queries_read = queries_there + 1;

  // The same in all lanes of a warp, which the compiler cannot know of a division: descriptors are uniform then.
  const int warp = __shfl_sync(0xFFFFFFFF, threadIdx.x / 32, 0), group = warp / 4, lane = threadIdx.x % 32;
  if (threadIdx.x == 0) {
    hopper::prefetch(q_map);
    hopper::prefetch(k_map);
    hopper::prefetch(v_map);
    for (int slot = 0; slot < Shape::kSlots; ++slot) {
      hopper::make_barrier(full + slot, 1);
      hopper::make_barrier(empty + slot, Shape::kWarps);
    }
    hopper::make_barrier(queries_there, 1);
    hopper::make_barrier(queries_read, Shape::kWarps);
    hopper::publish_barriers();
  }
  __syncthreads();
  hopper::await_earlier();

  const int blocks = (work.keys + kKeys - 1) / kKeys;

  if (group == 0) {
    hopper::give_up_registers<kGroups == 2 ? 40 : 32>();
    if (warp == 0 && lane == 0) {
      hopper::Ring<Shape::kSlots> ring;
      uint32_t turn = 0;
      for (int tile = blockIdx.x; tile < work.tiles; tile += gridDim.x, turn ^= 1) {
        const int of_all = tile / work.tiles_of_head, head = of_all % work.heads, batch = of_all / work.heads;
        const auto load = [&](const CUtensorMap& map, int block) {
          hopper::wait(empty + ring.stage, ring.turn ^ 1);
          hopper::expect(full + ring.stage, Shape::kBlock);
          hopper::copy(slots + ring.stage * Shape::kBlock, map, full + ring.stage, 0, false, 0, block * kKeys, head,
                       batch, 0);
          ring.next();
        };
        hopper::wait(queries_read, turn ^ 1);
        hopper::expect(queries_there, Shape::kQueryBytes);
        hopper::copy(queries, q_map, queries_there, 0, false, 0, tile % work.tiles_of_head * Shape::kQueries, head,
                     batch, 0);
        load(k_map, 0);
        for (int block = 1; block < blocks; ++block) {
          load(k_map, block);
          load(v_map, block - 1);
        }
        load(v_map, blocks - 1);
      }
    }
  } else {
    hopper::take_registers<kGroups == 2 ? 232 : 160>();
    const int own = group - 1;
    unsigned char* const part = parts + (warp - 4) * hopper::kPart;
    const uint64_t rows_of_queries = hopper::operand(queries + own * 64 * kPitch * 2);
    const int last = work.keys - (blocks - 1) * kKeys;
    hopper::Ring<Shape::kSlots> ring;
    uint32_t turn = 0;
    const auto next = [&] {
      const int slot = ring.stage;
      hopper::wait(full + slot, ring.turn);
      ring.next();
      return slot;
    };
    const auto free = [&](uint64_t* barrier) {
      if (lane == 0) hopper::arrive_at(barrier, 0);
    };
    const auto block_in = [&](int slot) { return hopper::operand(slots + slot * Shape::kBlock); };

    for (int tile = blockIdx.x; tile < work.tiles; tile += gridDim.x, turn ^= 1) {
      float scores[kKeys / 2], sums[kDim / 2], keep[2];
      uint32_t weights[kKeys / 4];
      Rows rows;
      hopper::wait(queries_there, turn);
      const int first = next();
      hopper::pin(scores);
      hopper::begin_products();
      score<T, kDim>(scores, rows_of_queries, block_in(first));
      hopper::await_products<0>();
      hopper::pin(scores);
      free(empty + first);
      if (blocks == 1) hide(scores, last);
      rows.soften(scores, keep, work.scale);
      round_into<T>(weights, scores);
      for (int block = 1; block < blocks; ++block) {
        const int keys = next();
        hopper::pin(scores);
        hopper::pin(sums);
        hopper::pin(weights);
        // The turn is passed on when this group's scores are there: its exponentials fall into the next one's products.
        if (!(own == 0 && tile == blockIdx.x && block == 1)) hopper::meet(1 + own, 256);
        hopper::begin_products();
        score<T, kDim>(scores, rows_of_queries, block_in(keys));
        const int values = next();
        weigh<T, kDim>(sums, weights, block_in(values), block > 1);
        hopper::await_products<1>();
        const bool over = own == kGroups - 1 && block == blocks - 1 && tile + gridDim.x >= work.tiles;
        if (!over) hopper::announce(1 + (own + 1) % kGroups, 256);
        hopper::pin(scores);
        free(empty + keys);
        if (block == blocks - 1 && last < kKeys) hide(scores, last);
        rows.soften(scores, keep, work.scale);
        hopper::finish_before(rows.total[0] + rows.total[1], part + lane * 4);
        hopper::await_products<0>();
        hopper::pin(sums);
        hopper::pin(weights);
        free(empty + values);
#pragma unroll
        for (int i = 0; i < kDim / 2; ++i) sums[i] *= keep[i % 4 / 2];
        round_into<T>(weights, scores);
      }
      free(queries_read);
      const int values = next();
      hopper::pin(sums);
      hopper::pin(weights);
      hopper::begin_products();
      weigh<T, kDim>(sums, weights, block_in(values), blocks > 1);
      hopper::await_products<0>();
      hopper::pin(sums);
      free(empty + values);

      float parts_of_one[2];
#pragma unroll
      for (int lower = 0; lower < 2; ++lower) parts_of_one[lower] = 1.0f / among_four(rows.total[lower], false);
      constexpr int kChunks = kDim / 8;
      __syncwarp();
#pragma unroll
      for (int pair = 0; pair < kChunks; pair += 2) {
        uint32_t words[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          // An odd number of chunks leaves the last one of a pair to itself.
          const int at = 4 * min(pair + i / 2, kChunks - 1) + i % 2 * 2;
          words[i] = hopper::narrowed<T>(sums[at] * parts_of_one[i % 2], sums[at + 1] * parts_of_one[i % 2]);
        }
        hopper::store_chunks(part, pair, words);
      }
      __syncwarp();
      const int of_all = tile / work.tiles_of_head, head = of_all % work.heads, batch = of_all / work.heads;
      const int row = tile % work.tiles_of_head * Shape::kQueries + own * 64 + warp % 4 * 16;
      T* const result = static_cast<T*>(work.result);
#pragma unroll
      for (int index = lane; index < 16 * kChunks; index += 32) {
        const int down = index / kChunks, chunk = index % kChunks;
        const uint4 line = *reinterpret_cast<const uint4*>(part + hopper::chunk_at(down, chunk));
        if (row + down >= work.queries) continue;
        const int64_t at = (static_cast<int64_t>(batch) * work.queries + row + down) * work.heads + head;
        *reinterpret_cast<uint4*>(result + at * kDim + chunk * 8) = line;
      }
    }
  }
}

#else

template <typename T, int kDim, int kGroups>
__global__ void attend(const __grid_constant__ CUtensorMap, const __grid_constant__ CUtensorMap,
                       const __grid_constant__ CUtensorMap, const __grid_constant__ Work) {}

#endif

template <int kDim, int kGroups>
Kernel instance(bool f16) {
  using Shape = Tile<kGroups>;
  return {f16 ? hopper::address_of(attend<__half, kDim, kGroups>)
              : hopper::address_of(attend<__nv_bfloat16, kDim, kGroups>),
          Shape::kQueries, Shape::kThreads, Shape::kShared};
}

}  // namespace

Kernel kernel(int size, int groups, bool f16) {
  if (size == 40 && groups == 2) return instance<40, 2>(f16);
  if (size == 40 && groups == 3) return instance<40, 3>(f16);
  if (size == 64 && groups == 2) return instance<64, 2>(f16);
  if (size == 64 && groups == 3) return instance<64, 3>(f16);
  return {};
}

}  // namespace rewriter::attending
