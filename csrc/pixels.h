// How the sums of a convolution's tile become pixels in memory, and what is read for that.
#pragma once

#include "convolution.h"
#include "hopper.h"
#include "places.h"
#include "results.h"

#include <cstdint>

namespace rewriter::convolving {

// The lines of eight columns that a lane stores of up to 64 columns from kFrom on, of a warp's 16 rows: in kLines turns, a
// turn kHeight rows down. Neighbouring lanes have neighbouring lines.
template <int kFrom>
struct Lines {
  static constexpr int kChunks = (kColumns - kFrom < 64 ? kColumns - kFrom : 64) / 8;
  static constexpr int kHeight = 32 / kChunks, kLines = 16 / kHeight;

  // row, column: the first of the warp's in the tile, and of the tile in the result.
  __device__ Lines(const Plan& plan, const Rows& rows, int row, int column) {
    const int lane = threadIdx.x % 32, right = column + kFrom + lane % kChunks * 8;
#pragma unroll
    for (int i = 0; i < kLines; ++i) {
      const int at = row + i * kHeight + lane / kChunks;
      const int pixel = pixel_of(plan, rows, at);
      places[i] = pixel < 0 || right >= plan.columns ? -1 : pixel * plan.columns + right;
    }
  }

  // Where they are in the result, -1 beyond it.
  int places[kLines];
};

// The residual's lines, if there is one.
template <typename T, int kFrom>
struct Addends {
  __device__ void read(const void* residual, const Lines<kFrom>& to) {
    if (residual == nullptr) return;
#pragma unroll
    for (int i = 0; i < Lines<kFrom>::kLines; ++i) {
      if (to.places[i] >= 0) lines[i] = hopper::read_line_ahead(static_cast<const T*>(residual) + to.places[i]);
    }
  }

  uint4 lines[Lines<kFrom>::kLines];
};

// Rounds up to 64 columns of a warp's 16 rows of sums, and stores them through its part of shared memory. ends: how to
// round two neighbouring sums of eight columns, by their number, to a word.
template <typename T, int kFrom, typename Ends>
__device__ __forceinline__ void finish(const float (&sums)[kColumns / 2], unsigned char* part, const void* residual,
                                       void* result, const Lines<kFrom>& to, const Addends<T, kFrom>& addends,
                                       Ends ends) {
  using Here = Lines<kFrom>;
  const int lane = threadIdx.x % 32;
  __syncwarp();
#pragma unroll
  for (int pair = 0; pair < Here::kChunks; pair += 2) {
    const int j = kFrom / 8 + pair;
    const auto first = ends(j), second = ends(j + 1);
    uint32_t words[4];
#pragma unroll
    for (int lower = 0; lower < 2; ++lower) {
      const int at = 4 * j + 2 * lower;
      words[lower] = first(sums[at], sums[at + 1]);
      words[2 + lower] = second(sums[at + 4], sums[at + 5]);
    }
    hopper::store_chunks(part, pair, words);
  }
  __syncwarp();
#pragma unroll
  for (int i = 0; i < Here::kLines; ++i) {
    const int row = i * Here::kHeight + lane / Here::kChunks;
    uint4 line = *reinterpret_cast<const uint4*>(part + hopper::chunk_at(row, lane % Here::kChunks));
    if (to.places[i] < 0) continue;
    if (residual != nullptr) {
      const uint4& more = addends.lines[i];
      line = hopper::added<T>(line, more);
    }
    *reinterpret_cast<uint4*>(static_cast<T*>(result) + to.places[i]) = line;
  }
}

}  // namespace rewriter::convolving
