// How sums in registers become rows of 16-bit results in memory, and what is read for that.
#pragma once

#include "hopper.h"

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

namespace rewriter::hopper {

// Two elements of 16 bits in a word.
template <typename T>
__device__ float2 widened(uint32_t pair);
template <>
__device__ inline float2 widened<__half>(uint32_t pair) {
  return __half22float2(*reinterpret_cast<const __half2*>(&pair));
}
template <>
__device__ inline float2 widened<__nv_bfloat16>(uint32_t pair) {
  return __bfloat1622float2(*reinterpret_cast<const __nv_bfloat162*>(&pair));
}
template <typename T>
__device__ uint32_t narrowed(float one, float two);
template <>
__device__ inline uint32_t narrowed<__half>(float one, float two) {
  const __half2 pair = __floats2half2_rn(one, two);
  return *reinterpret_cast<const uint32_t*>(&pair);
}
template <>
__device__ inline uint32_t narrowed<__nv_bfloat16>(float one, float two) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(one, two);
  return *reinterpret_cast<const uint32_t*>(&pair);
}

// Rounded, then the residual's elements added, as two operations of torch do.
template <typename T>
__device__ uint32_t added(uint32_t pair, uint32_t more) {
  const float2 one = widened<T>(pair), two = widened<T>(more);
  return narrowed<T>(one.x + two.x, one.y + two.y);
}
template <typename T>
__device__ uint4 added(const uint4& line, const uint4& more) {
  return make_uint4(added<T>(line.x, more.x), added<T>(line.y, more.y), added<T>(line.z, more.z),
                    added<T>(line.w, more.w));
}

// A warp's 16 rows of 64 results in shared memory. Chunks of eight results lie in turned order in their row, so that
// neighbouring rows do not meet in a bank.
constexpr int kPart = 16 * 64 * 2;

__device__ inline uint32_t chunk_at(int row, int chunk) { return row * 128 + (chunk ^ (row & 7)) * 16; }

// Four 8 x 8 matrices of 16-bit elements: rows 0 to 7 and 8 to 15 of chunk `pair`, then of the next one.
__device__ inline void store_chunks(unsigned char* part, int pair, const uint32_t (&words)[4]) {
  const int lane = threadIdx.x % 32;
  store_matrices(part + chunk_at(lane % 16, pair + lane / 16), words);
}

}  // namespace rewriter::hopper
