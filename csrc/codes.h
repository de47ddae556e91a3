// How a row that the threads of a block or a warp hold becomes eight bits with a scale.
#pragma once

#include "hopper.h"
#include "results.h"
#include "rows.h"

#include <cuda_fp8.h>

#include <cstdint>

namespace rewriter::rows {

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

// Infinity as the dtype has it: the bits of all finite magnitudes are below.
template <typename T>
constexpr uint32_t kInfinity = 0x7C00;
template <>
constexpr uint32_t kInfinity<__nv_bfloat16> = 0x7F80;

// A row, and its thread: a block has one row, or where a warp is enough for a row, one for each of its warps.
struct Place {
  __device__ explicit Place(int threads)
      : row(threads == 32 ? blockIdx.x * kTogether + threadIdx.x / 32 : blockIdx.x),
        thread(threads == 32 ? threadIdx.x % 32 : threadIdx.x) {}

  int64_t row;
  int thread;
};

// The largest number of all threads of a row. `shared`: a word for each warp, which nobody reads any more.
__device__ inline uint32_t largest_of_row(uint32_t own, uint32_t* shared, int threads) {
  own = hopper::largest_of_warp(own);
  if (threads == 32) return own;
  const int lane = threadIdx.x % 32, warps = threads / 32;
  if (lane == 0) shared[threadIdx.x / 32] = own;
  __syncthreads();
  return hopper::largest_of_warp(lane < warps ? shared[lane] : 0);
}

__device__ inline void assign(uint32_t (&words)[4], uint4 line) {
  words[0] = line.x, words[1] = line.y, words[2] = line.z, words[3] = line.w;
}

// The bits of the largest finite magnitude of a thread's elements.
template <typename T>
__device__ uint32_t largest_finite(const uint32_t (&words)[kLines][4]) {
  uint32_t largest = 0;
  for (int i = 0; i < kLines; ++i) {
    for (int j = 0; j < 4; ++j) {
      const uint32_t lower = words[i][j] & 0x7FFF, upper = words[i][j] >> 16 & 0x7FFF;
      if (lower < kInfinity<T>) largest = max(largest, lower);
      if (upper < kInfinity<T>) largest = max(largest, upper);
    }
  }
  return largest;
}

__device__ inline float finite_or_zero(float x) { return fabsf(x) < INFINITY ? x : 0.0f; }

// Formulas of ops/low_precision.py, and their bits.
template <bool kIntegers>
struct Scale {
  __device__ explicit Scale(float largest) {
    if constexpr (kIntegers) {
      largest = fmaxf(largest, 7.888609052210118e-31f);
      factor = 127.0f / largest;
      size = largest * 0.007874015748031496f;
    } else {
      const uint32_t field = max(__float_as_uint(largest) >> 23, 27u);
      factor = __uint_as_float((261 - field) << 23);
      size = __uint_as_float((field - 7) << 23);
    }
  }
  // Two elements in the lower bits.
  __device__ uint32_t codes(float2 pair) const {
    const float one = pair.x * factor, two = pair.y * factor;
    if constexpr (kIntegers) {
      const int lower = static_cast<int>(rintf(fminf(fmaxf(one, -127.0f), 127.0f)));
      const int upper = static_cast<int>(rintf(fminf(fmaxf(two, -127.0f), 127.0f)));
      return (lower & 0xFF) | (upper & 0xFF) << 8;
    } else {
      return __nv_cvt_float2_to_fp8x2(make_float2(one, two), __NV_SATFINITE, __NV_E4M3);
    }
  }

  float factor, size;
};

// Quantises a row of so many lines: of line i * threads + the thread's number each thread has `words`.
template <typename T, bool kIntegers>
__device__ void store(const uint32_t (&words)[kLines][4], Place place, int columns, int threads, uint32_t* shared,
                      void* codes, float* sizes) {
  unsigned char* const own = static_cast<unsigned char*>(codes) + place.row * columns * kLine;
  uint32_t halves = 0;
#pragma unroll
  for (int i = 0; i < kLines; ++i) {
#pragma unroll
    for (int j = 0; j < 4; ++j) halves = hopper::larger_halves(halves, words[i][j] & 0x7FFF7FFF);
  }
  uint32_t largest = largest_of_row(max(halves & 0xFFFF, halves >> 16), shared, threads);
  const bool spoilt = largest >= kInfinity<T>;
  if (spoilt) {
    if (threads > 32) __syncthreads();
    largest = largest_of_row(largest_finite<T>(words), shared, threads);
  }
  const Scale<kIntegers> scale(hopper::widened<T>(largest).x);
#pragma unroll
  for (int i = 0; i < kLines; ++i) {
    const int line = place.thread + i * threads;
    if (line < columns) {
      uint32_t pairs[4];
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        float2 pair = hopper::widened<T>(words[i][j]);
        if (spoilt) pair = make_float2(finite_or_zero(pair.x), finite_or_zero(pair.y));
        pairs[j] = scale.codes(pair);
      }
      *reinterpret_cast<uint2*>(own + line * kLine) = make_uint2(pairs[0] | pairs[1] << 16, pairs[2] | pairs[3] << 16);
    }
  }
  if (place.thread == 0) sizes[place.row] = spoilt ? __uint_as_float(0x7FC00000) : scale.size;
}

#endif

}  // namespace rewriter::rows
