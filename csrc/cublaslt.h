// The part of cuBLASLt's binary interface that is used here, bound at run time to the library that torch has loaded.
//
// Its header comes with a toolkit package that a machine with nvcc may lack, and linking would tie the build to one
// major version. The numbers are those of the public enumerations, which cuBLASLt keeps from version to version.
#pragma once

#include <dlfcn.h>

#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <type_traits>

namespace rewriter::cublaslt {

using Handle = void*;
using Descriptor = void*;
using Layout = void*;
using Preference = void*;

struct Algorithm {
  uint64_t data[8];
};

struct Found {
  Algorithm algorithm;
  size_t workspace;
  int status;
  float waves;
  int reserved[4];
};
static_assert(sizeof(Found) == 96, "as cublasLtMatmulHeuristicResult_t");

enum DataType : int { kF32 = 0, kF16 = 2, kBF16 = 14 };
enum ComputeType : int { kComputeF32 = 68 };
enum Transpose : int32_t { kAsIs = 0, kTransposed = 1 };
enum DescriptorAttribute : int { kTransposeA = 3, kTransposeB = 4, kEpilogue = 7, kBiasPointer = 8 };
enum PreferenceAttribute : int {
  kMaxWorkspace = 1,
  kReductionSchemes = 3,
  kAlignmentA = 5,
  kAlignmentB = 6,
  kAlignmentC = 7,
  kAlignmentD = 8
};
// Added up: an activation or none, and the bias.
enum Epilogue : uint32_t { kPlain = 1, kBias = 4, kGeluTanh = 32 };
// Partial sums of a split K kept in the result's own precision would round more often than torch does by default.
constexpr uint32_t kReductionsInF32 = 1 | 2;

struct Library {
  int (*create)(Handle*) = nullptr;
  size_t (*version)() = nullptr;
  int (*descriptor_create)(Descriptor*, int compute, int scale) = nullptr;
  int (*descriptor_set)(Descriptor, int attribute, const void*, size_t) = nullptr;
  int (*descriptor_destroy)(Descriptor) = nullptr;
  int (*layout_create)(Layout*, int type, uint64_t rows, uint64_t columns, int64_t leading) = nullptr;
  int (*layout_destroy)(Layout) = nullptr;
  int (*preference_create)(Preference*) = nullptr;
  int (*preference_set)(Preference, int attribute, const void*, size_t) = nullptr;
  int (*preference_destroy)(Preference) = nullptr;
  int (*heuristic)(Handle, Descriptor, Layout a, Layout b, Layout c, Layout d, Preference, int wanted, Found*,
                   int* count) = nullptr;
  int (*matmul)(Handle, Descriptor, const void* alpha, const void* a, Layout, const void* b, Layout, const void* beta,
                const void* c, Layout, void* d, Layout, const Algorithm*, void* workspace, size_t workspace_bytes,
                void* stream) = nullptr;
  bool complete = false;
};

// The library in this process, else the one on the loader's path; `complete` is false where there is neither.
inline const Library& library() {
  static const Library loaded = [] {
    Library result;
    void* file = nullptr;
    const char* const names[] = {"libcublasLt.so.13", "libcublasLt.so.12"};
    for (int flags : {RTLD_LAZY | RTLD_NOLOAD, RTLD_LAZY}) {
      for (const char* name : names) {
        if (file == nullptr) file = dlopen(name, flags);
      }
    }
    if (file == nullptr) return result;
    result.complete = true;
    auto bind = [&](auto& function, const char* name) {
      void* found = dlsym(file, name);
      result.complete = result.complete && found != nullptr;
      function = reinterpret_cast<std::remove_reference_t<decltype(function)>>(found);
    };
    bind(result.create, "cublasLtCreate");
    bind(result.version, "cublasLtGetVersion");
    bind(result.descriptor_create, "cublasLtMatmulDescCreate");
    bind(result.descriptor_set, "cublasLtMatmulDescSetAttribute");
    bind(result.descriptor_destroy, "cublasLtMatmulDescDestroy");
    bind(result.layout_create, "cublasLtMatrixLayoutCreate");
    bind(result.layout_destroy, "cublasLtMatrixLayoutDestroy");
    bind(result.preference_create, "cublasLtMatmulPreferenceCreate");
    bind(result.preference_set, "cublasLtMatmulPreferenceSetAttribute");
    bind(result.preference_destroy, "cublasLtMatmulPreferenceDestroy");
    bind(result.heuristic, "cublasLtMatmulAlgoGetHeuristic");
    bind(result.matmul, "cublasLtMatmul");
    return result;
  }();
  return loaded;
}

}  // namespace rewriter::cublaslt
