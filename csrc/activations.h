// What kernels do to a number before they store it.
#pragma once

#include "hopper.h"

namespace rewriter::hopper {

// The exact gelu, x * Phi(x), as in ops/triton/epilogue.py: log2 of Phi(-|x|) is a polynomial in |x|.
__device__ inline float gelu(float x) {
  const float u = fabsf(x);
  float p = -1.79378025677579e-06f * u + 6.072615724406205e-05f;
  p = p * u - 0.0009231857256963849f;
  p = p * u + 0.008476847782731056f;
  p = p * u - 0.05389093980193138f;
  p = p * u - 0.4585415720939636f;
  p = p * u - 1.151214361190796f;
  const float tail = exp2_of(p * u - 1.0f);
  return x * (x < 0 ? tail : 1.0f - tail);
}

// x / (1 + 2^-u): x times the sigmoid of u / log2(e).
__device__ inline float weighed(float x, float u) { return quotient(x, 1.0f + exp2_of(-u)); }

__device__ inline float silu(float x) { return weighed(x, 1.4426950408889634f * x); }

__device__ inline float quick_gelu(float x) { return weighed(x, 1.702f * 1.4426950408889634f * x); }

// (1 + tanh(u)) / 2 is sigmoid(2 u), with u = sqrt(2 / pi) * (x + 0.044715 x^3).
__device__ inline float gelu_tanh(float x) {
  constexpr float kScale = 1.5957691216057308f * 1.4426950408889634f;
  return weighed(x, x * (kScale + 0.044715f * kScale * x * x));
}

}  // namespace rewriter::hopper
