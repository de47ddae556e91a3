// The products of csrc/wgmma.h, carried out by an emulated cluster.
#pragma once

#include "hopper.h"

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>

#include <cstdint>
#include <type_traits>

namespace rewriter::hopper {

template <typename T>
constexpr emulated::Format kFormat = std::is_same_v<T, __half>          ? emulated::Format::f16
                                     : std::is_same_v<T, __nv_bfloat16> ? emulated::Format::bf16
                                                                        : emulated::Format::f8e4m3;

template <typename T, int N>
struct Multiply {
  static void run(float (&d)[N / 2], uint64_t a, uint64_t b, int add) {
    emulated::issue({.a = a, .b = b, .columns = N, .format = kFormat<T>, .add = add != 0}, d, nullptr);
  }
};

template <typename T, int N>
struct MultiplyHeld {
  static void run(float (&d)[N / 2], const uint32_t* a, uint64_t b, int add) {
    emulated::issue({.b = b, .columns = N, .format = kFormat<T>, .add = add != 0, .held = true}, d, a);
  }
};

}  // namespace rewriter::hopper
