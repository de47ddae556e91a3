// Rows in eight bits with a scale each, of an activation or a gate, beside another tensor where there is one.
//
// A block makes a row, which its threads hold in registers as it would be stored in full: nothing is read or computed
// twice, and no place stands idle because a row's length is no power of two.

#include "activations.h"
#include "hopper.h"
#include "results.h"
#include "rows.h"

#include <cuda_fp8.h>

#include <cstdint>

namespace rewriter::rows {
namespace {

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

// Infinity as the dtype has it: the bits of all finite magnitudes are below.
template <typename T>
constexpr uint32_t kInfinity = 0x7C00;
template <>
constexpr uint32_t kInfinity<__nv_bfloat16> = 0x7F80;

template <int kActivation>
__device__ float activated(float x, float gate) {
  if constexpr (kActivation == kGelu) return hopper::gelu(x);
  if constexpr (kActivation == kGeluTanh) return hopper::gelu_tanh(x);
  if constexpr (kActivation == kQuickGelu) return hopper::quick_gelu(x);
  if constexpr (kActivation == kSilu) return hopper::silu(x);
  if constexpr (kActivation == kGeglu) return x * hopper::gelu(gate);
  return x;
}

// The largest of all threads' numbers. `shared`: a word for each warp, which nobody reads any more.
__device__ uint32_t largest_of_block(uint32_t own, uint32_t* shared, int threads) {
  own = hopper::largest_of_warp(own);
  const int lane = threadIdx.x % 32, warps = threads / 32;
  if (lane == 0) shared[threadIdx.x / 32] = own;
  __syncthreads();
  return hopper::largest_of_warp(lane < warps ? shared[lane] : 0);
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

__device__ float finite_or_zero(float x) { return fabsf(x) < INFINITY ? x : 0.0f; }

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

template <typename T, bool kIntegers, int kActivation>
__global__ void __launch_bounds__(kMostThreads) quantise(const __grid_constant__ Work work) {
  uint32_t* const shared = reinterpret_cast<uint32_t*>(hopper::shared_memory());
  const int64_t row = blockIdx.x;
  const T* const left = static_cast<const T*>(work.left) + row * work.left_pitch;
  const T* const own = static_cast<const T*>(work.x) + row * work.pitch;
  const int gates = work.columns - work.width;
  hopper::await_earlier();

  uint32_t words[kLines][4], gate[kLines][4];
#pragma unroll
  for (int i = 0; i < kLines; ++i) {
    const int line = threadIdx.x + i * work.threads;
    uint4 found{}, other{};
    if (line < work.width) {
      found = hopper::read_line_ahead(left + line * kLine);
    } else if (line < work.columns) {
      found = hopper::read_line_ahead(own + (line - work.width) * kLine);
      if constexpr (kActivation == kGeglu) other = hopper::read_line_ahead(own + (line - work.width + gates) * kLine);
    }
    words[i][0] = found.x, words[i][1] = found.y, words[i][2] = found.z, words[i][3] = found.w;
    gate[i][0] = other.x, gate[i][1] = other.y, gate[i][2] = other.z, gate[i][3] = other.w;
  }

  uint32_t halves = 0;
#pragma unroll
  for (int i = 0; i < kLines; ++i) {
    const bool active = kActivation != kNone && threadIdx.x + i * work.threads >= work.width;
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      if (active) {
        const float2 x = hopper::widened<T>(words[i][j]), g = hopper::widened<T>(gate[i][j]);
        words[i][j] = hopper::narrowed<T>(activated<kActivation>(x.x, g.x), activated<kActivation>(x.y, g.y));
      }
      halves = hopper::larger_halves(halves, words[i][j] & 0x7FFF7FFF);
    }
  }
  uint32_t largest = largest_of_block(max(halves & 0xFFFF, halves >> 16), shared, work.threads);
  const bool spoilt = largest >= kInfinity<T>;
  if (spoilt) {
    __syncthreads();
    largest = largest_of_block(largest_finite<T>(words), shared, work.threads);
  }

  const Scale<kIntegers> scale(hopper::widened<T>(largest).x);
  unsigned char* const codes = static_cast<unsigned char*>(work.codes) + row * work.columns * kLine;
#pragma unroll
  for (int i = 0; i < kLines; ++i) {
    const int line = threadIdx.x + i * work.threads;
    if (line < work.columns) {
      uint32_t pairs[4];
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        float2 pair = hopper::widened<T>(words[i][j]);
        if (spoilt) pair = make_float2(finite_or_zero(pair.x), finite_or_zero(pair.y));
        pairs[j] = scale.codes(pair);
      }
      *reinterpret_cast<uint2*>(codes + line * kLine) = make_uint2(pairs[0] | pairs[1] << 16, pairs[2] | pairs[3] << 16);
    }
  }
  if (threadIdx.x == 0) work.scales[row] = spoilt ? __uint_as_float(0x7FC00000) : scale.size;
}

#else

template <typename T, bool kIntegers, int kActivation>
__global__ void quantise(const __grid_constant__ Work) {}

#endif

template <typename T, bool kIntegers, int kActivation = 0>
const void* instance(int activation) {
  if constexpr (kActivation < kActivations) {
    if (activation == kActivation) return hopper::address_of(quantise<T, kIntegers, kActivation>);
    return instance<T, kIntegers, kActivation + 1>(activation);
  } else {
    return nullptr;
  }
}

}  // namespace

const void* kernel(bool f16, bool integers, int activation) {
  if (f16) return integers ? instance<__half, true>(activation) : instance<__half, false>(activation);
  return integers ? instance<__nv_bfloat16, true>(activation) : instance<__nv_bfloat16, false>(activation);
}

}  // namespace rewriter::rows
