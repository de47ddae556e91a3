// Rows in eight bits with a scale each, of an activation or a gate, beside another tensor where there is one.
//
// A block or a warp makes a row, which its threads hold in registers as it would be stored in full: nothing is read or
// computed twice, and few places stand idle because a row's length is no power of two.

#include "activations.h"
#include "codes.h"
#include "hopper.h"
#include "results.h"
#include "rows.h"

#include <cstdint>

namespace rewriter::rows {
namespace {

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

template <int kActivation>
__device__ float activated(float x, float gate) {
  if constexpr (kActivation == kGelu) return hopper::gelu(x);
  if constexpr (kActivation == kGeluTanh) return hopper::gelu_tanh(x);
  if constexpr (kActivation == kQuickGelu) return hopper::quick_gelu(x);
  if constexpr (kActivation == kSilu) return hopper::silu(x);
  if constexpr (kActivation == kGeglu) return x * hopper::gelu(gate);
  return x;
}

template <typename T, bool kIntegers, int kActivation>
__global__ void __launch_bounds__(kMostThreads) quantise(const __grid_constant__ Work work) {
  uint32_t* const shared = reinterpret_cast<uint32_t*>(hopper::shared_memory());
  const Place place(work.threads);
  if (place.row >= work.rows) return;
  const T* const left = static_cast<const T*>(work.left) + place.row * work.left_pitch;
  const T* const own = static_cast<const T*>(work.x) + place.row * work.pitch;
  const int gates = work.columns - work.width;
  hopper::await_earlier();

  uint32_t words[kLines][4], gate[kLines][4];
#pragma unroll
  for (int i = 0; i < kLines; ++i) {
    const int line = place.thread + i * work.threads;
    uint4 found{}, other{};
    if (line < work.width) {
      found = hopper::read_line_ahead(left + line * kLine);
    } else if (line < work.columns) {
      found = hopper::read_line_ahead(own + (line - work.width) * kLine);
      if constexpr (kActivation == kGeglu) other = hopper::read_line_ahead(own + (line - work.width + gates) * kLine);
    }
    assign(words[i], found);
    assign(gate[i], other);
  }
  if constexpr (kActivation != kNone) {
#pragma unroll
    for (int i = 0; i < kLines; ++i) {
      if (place.thread + i * work.threads < work.width) continue;
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const float2 x = hopper::widened<T>(words[i][j]), g = hopper::widened<T>(gate[i][j]);
        words[i][j] = hopper::narrowed<T>(activated<kActivation>(x.x, g.x), activated<kActivation>(x.y, g.y));
      }
    }
  }
  store<T, kIntegers>(words, place, work.columns, work.threads, shared, work.codes, work.scales);
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
