// Products of tiles whose operands go through a ring of stages in shared memory.
#pragma once

#include "hopper.h"
#include "stages.h"
#include "wgmma.h"

#include <cuda.h>

#include <cstdint>

namespace rewriter::hopper {

// Rows of 128 bytes in shared memory, as the copy engine lays them out with its 128-byte swizzle, from a multiple of
// 1024 bytes on; a step of 16 elements along the rows adds 32 bytes to `pointer`.
__device__ inline uint64_t operand(const void* pointer) {
  constexpr uint64_t kAtom = 1024 >> 4, kSwizzle128 = 1;
  return ((shared_address(pointer) & 0x3FFFF) >> 4) | (uint64_t{1} << 16) | (kAtom << 32) | (kSwizzle128 << 62);
}

// A stage of the ring that operands go through, and the parity of the turn.
template <int kStages>
struct Ring {
  int stage = 0;
  uint32_t turn = 0;

  __device__ void next() {
    if (++stage == kStages) {
      stage = 0;
      turn ^= 1;
    }
  }
  __device__ int before() const { return stage == 0 ? kStages - 1 : stage - 1; }
  // After so many steps.
  static __device__ Ring after(int steps) { return {steps % kStages, static_cast<uint32_t>(steps / kStages & 1)}; }
};

struct Nothing {
  __device__ void operator()() const {}
};

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

// Where the stages of both operands lie in a block's shared memory, behind them what warps store results through, and two
// barriers for each stage: whether it is full, and whether it may be written to.
template <typename Shape>
struct Memory {
  __device__ Memory() {
    unsigned char* const memory = shared_memory();
    left = memory + (kAlignment - shared_address(memory) % kAlignment) % kAlignment;
    right = left + Shape::kStages * Shape::kLeft;
    parts = right + Shape::kStages * Shape::kRight;
    full = reinterpret_cast<uint64_t*>(parts + Shape::kParts);
    empty = full + Shape::kStages;
  }

  unsigned char *left, *right, *parts;
  uint64_t *full, *empty;
};

// The sums of kBlocks x 64 rows of a tile over the steps `begin` to `end`, as one of kGroups groups of four warps that
// share a tile and its ring of stages. more: whether what the sums hold stays in them; half: which group, and so which
// rows; left, right: the stages of both operands, which `full` says are there; reader: the block whose `empty` this lane
// tells when its warp has read a stage, -1 for none; issued: called when the last products are under way.
template <typename T, int kDepth, int kGroups = 2, int kBlocks, int kSums, int kStages, typename Issued = Nothing>
__device__ __forceinline__ void add_products(float (&sums)[kBlocks][kSums], bool more, Ring<kStages>& ring, int begin,
                                             int end, const unsigned char* left, const unsigned char* right, int half,
                                             uint64_t* full, uint64_t* empty, int reader, Issued issued = {}) {
  constexpr int kColumns = 2 * kSums, kBlock = 64 * kDepth * 2;
  for (int step = begin; step < end; ++step, ring.next()) {
    wait(full + ring.stage, ring.turn);
    const uint64_t a = operand(left + (kGroups * ring.stage + half) * kBlocks * kBlock);
    const uint64_t b = operand(right + ring.stage * kColumns * kDepth * 2);
#pragma unroll
    for (int block = 0; block < kBlocks; ++block) pin(sums[block]);
    begin_products();
#pragma unroll
    for (int k = 0; k < kDepth / 16; ++k) {
#pragma unroll
      for (int block = 0; block < kBlocks; ++block) {
        const bool adds = more || step > begin || k > 0;
        Multiply<T, kColumns>::run(sums[block], a + block * (kBlock >> 4) + 2 * k, b + 2 * k, adds);
      }
    }
    commit_products();
    // The products before these are done then, and their stage is free.
    await_products<1>();
#pragma unroll
    for (int block = 0; block < kBlocks; ++block) pin(sums[block]);
    if (step > begin && reader >= 0) arrive_at(empty + ring.before(), reader);
  }
  issued();
  await_products<0>();
#pragma unroll
  for (int block = 0; block < kBlocks; ++block) pin(sums[block]);
  if (reader >= 0) arrive_at(empty + ring.before(), reader);
}

#endif

}  // namespace rewriter::hopper
