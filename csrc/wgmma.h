// Products of Hopper's tensor cores: d += a @ b.T for 64 rows and N columns, both operands in shared memory.
#pragma once

#include "hopper.h"

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>

#include <cstdint>

namespace rewriter::hopper {

// d: a thread's part of the sums. Its elements 4 j and 4 j + 1 are those of row 16 w + l / 4 and columns 8 j + 2 (l % 4)
// and the next, the two after them those 8 rows below, where w is the warp in its group of four and l the thread in it.
// a: 64 rows, b: N rows, of 32 bytes each, described as `operand` does: 16 elements of 16 bits, or 32 of f8e4m3. add: 0
// to forget what d held.
template <typename T, int N>
struct Multiply;

// The same with a in registers, four words of it as if it were d of 16 columns, rounded, and b: 16 rows of N elements.
template <typename T, int N>
struct MultiplyHeld;

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

#define REWRITER_4(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define REWRITER_8(i) REWRITER_4(i), REWRITER_4(i + 4)

#define REWRITER_MULTIPLY_128(type, kind)                                                                              \
template <>                                                                                                            \
struct Multiply<type, 128> {                                                                                           \
  static __device__ void run(float (&d)[64], uint64_t a, uint64_t b, int add) {                                        \
    asm volatile(                                                                                                      \
        "{.reg .pred add; setp.ne.b32 add, %66, 0; "                                                                   \
        "wgmma.mma_async.sync.aligned.m64n128k16.f32." kind "." kind " {"                                              \
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "                                       \
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "                             \
        "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "                             \
        "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, "                            \
        "%64, %65, add, 1, 1, 0, 0;}"                                                                                  \
        : REWRITER_8(0), REWRITER_8(8), REWRITER_8(16), REWRITER_8(24),                                                \
          REWRITER_8(32), REWRITER_8(40), REWRITER_8(48), REWRITER_8(56)                                               \
        : "l"(a), "l"(b), "r"(add));                                                                                   \
  }                                                                                                                    \
};

#define REWRITER_MULTIPLY_160(type, depth_and_kinds, order)                                                            \
template <>                                                                                                            \
struct Multiply<type, 160> {                                                                                           \
  static __device__ void run(float (&d)[80], uint64_t a, uint64_t b, int add) {                                        \
    asm volatile(                                                                                                      \
        "{.reg .pred add; setp.ne.b32 add, %82, 0; "                                                                   \
        "wgmma.mma_async.sync.aligned.m64n160" depth_and_kinds " {"                                                    \
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "                                       \
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "                             \
        "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "                             \
        "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, "                             \
        "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79}, "                            \
        "%80, %81, add, 1, 1" order ";}"                                                                               \
        : REWRITER_8(0), REWRITER_8(8), REWRITER_8(16), REWRITER_8(24),                                                \
          REWRITER_8(32), REWRITER_8(40), REWRITER_8(48), REWRITER_8(56),                                              \
          REWRITER_8(64), REWRITER_8(72)                                                                               \
        : "l"(a), "l"(b), "r"(add));                                                                                   \
  }                                                                                                                    \
};

#define REWRITER_MULTIPLY_256(type, kind)                                                                              \
template <>                                                                                                            \
struct Multiply<type, 256> {                                                                                           \
  static __device__ void run(float (&d)[128], uint64_t a, uint64_t b, int add) {                                       \
    asm volatile(                                                                                                      \
        "{.reg .pred add; setp.ne.b32 add, %130, 0; "                                                                  \
        "wgmma.mma_async.sync.aligned.m64n256k16.f32." kind "." kind " {"                                              \
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "                                       \
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "                             \
        "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "                             \
        "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, "                             \
        "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, "                             \
        "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, "                             \
        "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, "                 \
        "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127}, "            \
        "%128, %129, add, 1, 1, 0, 0;}"                                                                                \
        : REWRITER_8(0), REWRITER_8(8), REWRITER_8(16), REWRITER_8(24),                                                \
          REWRITER_8(32), REWRITER_8(40), REWRITER_8(48), REWRITER_8(56),                                              \
          REWRITER_8(64), REWRITER_8(72), REWRITER_8(80), REWRITER_8(88),                                              \
          REWRITER_8(96), REWRITER_8(104), REWRITER_8(112), REWRITER_8(120)                                            \
        : "l"(a), "l"(b), "r"(add));                                                                                   \
  }                                                                                                                    \
};

#define REWRITER_MULTIPLY_HELD_40(type, kind)                                                                          \
template <>                                                                                                            \
struct MultiplyHeld<type, 40> {                                                                                        \
  static __device__ void run(float (&d)[20], const uint32_t* a, uint64_t b, int add) {                                 \
    asm volatile(                                                                                                      \
        "{.reg .pred add; setp.ne.b32 add, %25, 0; "                                                                   \
        "wgmma.mma_async.sync.aligned.m64n40k16.f32." kind "." kind " {"                                               \
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "                                       \
        "%16, %17, %18, %19}, "                                                                                        \
        "{%20, %21, %22, %23}, %24, add, 1, 1, 1;}"                                                                    \
        : REWRITER_8(0), REWRITER_8(8), REWRITER_4(16)                                                                 \
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(add));                                               \
  }                                                                                                                    \
};

#define REWRITER_MULTIPLY_HELD_64(type, kind)                                                                          \
template <>                                                                                                            \
struct MultiplyHeld<type, 64> {                                                                                        \
  static __device__ void run(float (&d)[32], const uint32_t* a, uint64_t b, int add) {                                 \
    asm volatile(                                                                                                      \
        "{.reg .pred add; setp.ne.b32 add, %37, 0; "                                                                   \
        "wgmma.mma_async.sync.aligned.m64n64k16.f32." kind "." kind " {"                                               \
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "                                       \
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, "                            \
        "{%32, %33, %34, %35}, %36, add, 1, 1, 1;}"                                                                    \
        : REWRITER_8(0), REWRITER_8(8), REWRITER_8(16), REWRITER_8(24)                                                 \
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(add));                                               \
  }                                                                                                                    \
};

REWRITER_MULTIPLY_128(__half, "f16")
REWRITER_MULTIPLY_128(__nv_bfloat16, "bf16")
REWRITER_MULTIPLY_160(__half, "k16.f32.f16.f16", ", 0, 0")
REWRITER_MULTIPLY_160(__nv_bfloat16, "k16.f32.bf16.bf16", ", 0, 0")
// Of eight bits, rows can only lie as they do here.
REWRITER_MULTIPLY_160(__nv_fp8_e4m3, "k32.f32.e4m3.e4m3", "")
REWRITER_MULTIPLY_256(__half, "f16")
REWRITER_MULTIPLY_256(__nv_bfloat16, "bf16")
REWRITER_MULTIPLY_HELD_40(__half, "f16")
REWRITER_MULTIPLY_HELD_40(__nv_bfloat16, "bf16")
REWRITER_MULTIPLY_HELD_64(__half, "f16")
REWRITER_MULTIPLY_HELD_64(__nv_bfloat16, "bf16")

#undef REWRITER_MULTIPLY_128
#undef REWRITER_MULTIPLY_160
#undef REWRITER_MULTIPLY_256
#undef REWRITER_MULTIPLY_HELD_40
#undef REWRITER_MULTIPLY_HELD_64
#undef REWRITER_4
#undef REWRITER_8

#endif

}  // namespace rewriter::hopper
