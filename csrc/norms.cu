// Layer norms that write rows of eight bits with a scale each, with the residual, the gate and the modulation around them.
//
// A block makes a row, as in rows.cu: the norm is never stored in full.

#include "codes.h"
#include "hopper.h"
#include "norms.h"
#include "results.h"

#include <cstdint>

namespace rewriter::rows {
namespace {

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

template <typename T, bool kIntegers, int kAddend, bool kModulated>
__global__ void __launch_bounds__(kMostThreads) normalise(const __grid_constant__ Norm norm) {
  uint32_t* const shared = reinterpret_cast<uint32_t*>(hopper::shared_memory());
  const int64_t row = blockIdx.x, sample = row / norm.each;
  const int warps = norm.threads / 32, elements = norm.columns * kLine;
  const auto line_of = [](const void* tensor, int64_t from, int line) {
    return hopper::read_line_ahead(static_cast<const T*>(tensor) + from + line * kLine);
  };
  hopper::await_earlier();

  uint32_t words[kLines][4];
  float sum = 0;
#pragma unroll
  for (int i = 0; i < kLines; ++i) {
    const int line = threadIdx.x + i * norm.threads;
    assign(words[i], uint4{});
    if (line >= norm.columns) continue;
    assign(words[i], line_of(norm.x, row * norm.pitch, line));
    if constexpr (kAddend != kNothing) {
      uint32_t more[4], gate[4];
      assign(more, line_of(norm.y, row * norm.y_pitch, line));
      if constexpr (kAddend == kGatedResidual) assign(gate, line_of(norm.gate, sample * norm.gate_pitch, line));
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const float2 x = hopper::widened<T>(words[i][j]);
        float2 y = hopper::widened<T>(more[j]);
        if constexpr (kAddend == kGatedResidual) {
          const float2 by = hopper::widened<T>(gate[j]);
          y = make_float2(y.x * by.x, y.y * by.y);
        }
        // The norm reads the sum as it is kept.
        words[i][j] = hopper::narrowed<T>(x.x + y.x, x.y + y.y);
      }
      *reinterpret_cast<uint4*>(static_cast<T*>(norm.total) + row * elements + line * kLine) =
          make_uint4(words[i][0], words[i][1], words[i][2], words[i][3]);
    }
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const float2 x = hopper::widened<T>(words[i][j]);
      sum += x.x + x.y;
    }
  }
  const float mean = sum_of_block(sum, reinterpret_cast<float*>(shared), norm.threads) / elements;
  float square = 0;
#pragma unroll
  for (int i = 0; i < kLines; ++i) {
    if (static_cast<int>(threadIdx.x) + i * norm.threads >= norm.columns) continue;
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const float2 x = hopper::widened<T>(words[i][j]);
      square += (x.x - mean) * (x.x - mean) + (x.y - mean) * (x.y - mean);
    }
  }
  const float variance = sum_of_block(square, reinterpret_cast<float*>(shared + warps), norm.threads) / elements;
  const float factor = 1.0f / sqrtf(variance + norm.eps);
#pragma unroll
  for (int i = 0; i < kLines; ++i) {
    const int line = threadIdx.x + i * norm.threads;
    if (line >= norm.columns) continue;
    uint32_t weight[4], bias[4], scale[4], shift[4];
    if (norm.weight != nullptr) assign(weight, line_of(norm.weight, 0, line));
    if (norm.bias != nullptr) assign(bias, line_of(norm.bias, 0, line));
    if constexpr (kModulated) {
      assign(scale, line_of(norm.scale, sample * norm.scale_pitch, line));
      assign(shift, line_of(norm.shift, sample * norm.shift_pitch, line));
    }
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const float2 x = hopper::widened<T>(words[i][j]);
      float2 z = {(x.x - mean) * factor, (x.y - mean) * factor};
      if (norm.weight != nullptr) {
        const float2 by = hopper::widened<T>(weight[j]);
        z = make_float2(z.x * by.x, z.y * by.y);
      }
      if (norm.bias != nullptr) {
        const float2 by = hopper::widened<T>(bias[j]);
        z = make_float2(z.x + by.x, z.y + by.y);
      }
      if constexpr (kModulated) {
        const float2 by = hopper::widened<T>(scale[j]), to = hopper::widened<T>(shift[j]);
        z = make_float2(z.x * (1.0f + by.x) + to.x, z.y * (1.0f + by.y) + to.y);
      }
      words[i][j] = hopper::narrowed<T>(z.x, z.y);
    }
  }
  store<T, kIntegers>(words, norm.columns, norm.threads, shared + 2 * warps,
                      static_cast<unsigned char*>(norm.codes) + row * elements, norm.scales + row);
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
