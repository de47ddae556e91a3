// What the kernel in attention.cu is told, and where its instances are.
#pragma once

#include <cstdint>

namespace rewriter::attending {

// Elements of a row in shared memory, of which a head has `kDim`; keys in a block of them.
constexpr int kPitch = 64, kKeys = 128;
constexpr int kAlignment = 1024, kSharedLimit = 232448;

// kGroups: of four warps, each of which has 64 queries.
template <int kGroups>
struct Tile {
  static constexpr int kQueries = 64 * kGroups, kThreads = 128 * (kGroups + 1), kWarps = 4 * kGroups;
  static constexpr int kQueryBytes = kQueries * kPitch * 2, kBlock = kKeys * kPitch * 2;
  // Each warp rounds 16 rows into its part, and stores them from there in whole lines.
  static constexpr int kParts = kWarps * 16 * 64 * 2;
  static constexpr int kSlots = 8, kBarriers = 256;
  static constexpr int kShared = kAlignment + kQueryBytes + kSlots * kBlock + kParts + kBarriers;
  static_assert(kShared <= kSharedLimit && (2 * kSlots + 2) * 8 <= kBarriers);
};

struct Work {
  int queries, keys, heads;
  int tiles_of_head, tiles;
  float scale;  // of the scores, times log2(e)
  void* result;
};

// An instance: its address as launches take it, the queries of a block, its threads, the shared memory that it needs. Its
// arguments: q, k and v for the copy engine, Work.
struct Kernel {
  const void* address;
  int queries, threads, shared;
};

// The instance for heads of `size` elements, without an address if there is none.
Kernel kernel(int size, int groups, bool f16);

}  // namespace rewriter::attending
