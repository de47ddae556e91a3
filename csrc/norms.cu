// Layer norms that write rows of eight bits with a scale each, with the residual, the gate and the modulation around them.
//
// A warp makes a row, which its lanes hold in registers: the norm is never stored in full.

#include "codes.h"
#include "hopper.h"
#include "norms.h"
#include "results.h"

#include <cstdint>

namespace rewriter::rows {
namespace {

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

__device__ float sum_of_warp(float own) {
#pragma unroll
  for (int lanes = 16; lanes > 0; lanes /= 2) own += __shfl_xor_sync(0xFFFFFFFF, own, lanes);
  return own;
}

// The lines of a row that belong to this lane; beyond the row, zeros.
template <typename T>
__device__ void read(uint32_t (&words)[kLines][4], const void* row, int columns) {
#pragma unroll
  for (int i = 0; i < kLines; ++i) {
    const int line = threadIdx.x % 32 + i * 32;
    assign(words[i], line < columns ? hopper::read_line_ahead(static_cast<const T*>(row) + line * kLine) : uint4{});
  }
}

template <typename T>
__device__ const T* at(const void* tensor, int64_t element) {
  return static_cast<const T*>(tensor) + element;
}

template <typename T, bool kIntegers, int kAddend, bool kModulated>
__global__ void __launch_bounds__(kTogether * 32) normalise(const __grid_constant__ Norm norm) {
  const Place place(32);
  if (place.row >= norm.rows) return;
  const int64_t sample = place.row / norm.each;
  const int elements = norm.columns * kLine;
  hopper::await_earlier();

  // All that is read first is under way before any of it is waited for.
  uint32_t words[kLines][4], more[kLines][4];
  read<T>(words, at<T>(norm.x, place.row * norm.pitch), norm.columns);
  if constexpr (kAddend != kNothing) read<T>(more, at<T>(norm.y, place.row * norm.y_pitch), norm.columns);
  float2 values[kLines][4];
  float sum = 0;
#pragma unroll
  for (int i = 0; i < kLines; ++i) {
    const int line = place.thread + i * 32;
    uint32_t gate[4];
    if constexpr (kAddend == kGatedResidual) {
      assign(gate, line < norm.columns
                       ? hopper::read_line_ahead(at<T>(norm.gate, sample * norm.gate_pitch + line * kLine))
                       : uint4{});
    }
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      if constexpr (kAddend != kNothing) {
        const float2 x = hopper::widened<T>(words[i][j]);
        float2 y = hopper::widened<T>(more[i][j]);
        if constexpr (kAddend == kGatedResidual) {
          const float2 by = hopper::widened<T>(gate[j]);
          y = make_float2(y.x * by.x, y.y * by.y);
        }
        // The norm reads the sum as it is kept.
        words[i][j] = hopper::narrowed<T>(x.x + y.x, x.y + y.y);
      }
      values[i][j] = hopper::widened<T>(words[i][j]);
      sum += values[i][j].x + values[i][j].y;
    }
    if (kAddend != kNothing && line < norm.columns) {
      *reinterpret_cast<uint4*>(static_cast<T*>(norm.total) + place.row * elements + line * kLine) =
          make_uint4(words[i][0], words[i][1], words[i][2], words[i][3]);
    }
  }
  uint32_t weight[kLines][4], bias[kLines][4];
  if (norm.weight != nullptr) read<T>(weight, norm.weight, norm.columns);
  if (norm.bias != nullptr) read<T>(bias, norm.bias, norm.columns);

  const float mean = sum_of_warp(sum) / elements;
  float square = 0;
#pragma unroll
  for (int i = 0; i < kLines; ++i) {
    if (place.thread + i * 32 >= norm.columns) continue;
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      values[i][j] = make_float2(values[i][j].x - mean, values[i][j].y - mean);
      square += values[i][j].x * values[i][j].x + values[i][j].y * values[i][j].y;
    }
  }
  const float variance = sum_of_warp(square) / elements;
  const float factor = 1.0f / sqrtf(variance + norm.eps);
#pragma unroll
  for (int i = 0; i < kLines; ++i) {
    const int line = place.thread + i * 32;
    if (line >= norm.columns) continue;
    uint32_t scale[4], shift[4];
    if constexpr (kModulated) {
      assign(scale, hopper::read_line_ahead(at<T>(norm.scale, sample * norm.scale_pitch + line * kLine)));
      assign(shift, hopper::read_line_ahead(at<T>(norm.shift, sample * norm.shift_pitch + line * kLine)));
    }
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      float2 z = {values[i][j].x * factor, values[i][j].y * factor};
      if (norm.weight != nullptr) {
        const float2 by = hopper::widened<T>(weight[i][j]);
        z = make_float2(z.x * by.x, z.y * by.y);
      }
      if (norm.bias != nullptr) {
        const float2 by = hopper::widened<T>(bias[i][j]);
        z = make_float2(z.x + by.x, z.y + by.y);
      }
      if constexpr (kModulated) {
        const float2 by = hopper::widened<T>(scale[j]), to = hopper::widened<T>(shift[j]);
        z = make_float2(z.x * (1.0f + by.x) + to.x, z.y * (1.0f + by.y) + to.y);
      }
      words[i][j] = hopper::narrowed<T>(z.x, z.y);
    }
  }
  store<T, kIntegers>(words, place, norm.columns, 32, nullptr, norm.codes, norm.scales);
}

#else

template <typename T, bool kIntegers, int kAddend, bool kModulated>
__global__ void normalise(const __grid_constant__ Norm) {}

#endif

template <typename T, bool kIntegers>
const void* instance(int addend, bool modulated) {
  if (addend == kNothing) {
    return modulated ? hopper::address_of(normalise<T, kIntegers, kNothing, true>)
                     : hopper::address_of(normalise<T, kIntegers, kNothing, false>);
  }
  if (addend == kResidual && !modulated) return hopper::address_of(normalise<T, kIntegers, kResidual, false>);
  if (addend == kGatedResidual && modulated) return hopper::address_of(normalise<T, kIntegers, kGatedResidual, true>);
  return nullptr;
}

}  // namespace

const void* norm_kernel(bool f16, bool integers, int addend, bool modulated) {
  if (f16) return integers ? instance<__half, true>(addend, modulated) : instance<__half, false>(addend, modulated);
  return integers ? instance<__nv_bfloat16, true>(addend, modulated)
                  : instance<__nv_bfloat16, false>(addend, modulated);
}

}  // namespace rewriter::rows
