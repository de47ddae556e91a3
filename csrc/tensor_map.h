// Tensors as the copy engine sees them.
#pragma once

#include "runtime.h"

#include <cuda.h>

#include <array>
#include <cstdint>

namespace rewriter {

using Encode = CUresult (*)(CUtensorMap*, CUtensorMapDataType, cuuint32_t, void*, const cuuint64_t*, const cuuint64_t*,
                            const cuuint32_t*, const cuuint32_t*, CUtensorMapInterleave, CUtensorMapSwizzle,
                            CUtensorMapL2promotion, CUtensorMapFloatOOBfill);

// The driver's encoder, asked for at run time: nothing links against the driver.
inline Encode encoder() {
  static const Encode found = [] {
    void* entry = nullptr;
    cudaDriverEntryPointQueryResult status;
    check(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &entry, 12000, cudaEnableDefault, &status),
          "cudaGetDriverEntryPointByVersion");
    STD_TORCH_CHECK(status == cudaDriverEntryPointSuccess, "the driver has no cuTensorMapEncodeTiled");
    return reinterpret_cast<Encode>(entry);
  }();
  return found;
}

// A tensor of 16-bit elements: extents and strides in elements from the innermost dimension on, whose stride is 1. Boxes
// lie in shared memory in the turned order that hopper::operand expects.
template <int kRank>
CUtensorMap described(const Tensor& tensor, const std::array<int64_t, kRank>& extents,
                      const std::array<int64_t, kRank>& strides, const std::array<int, kRank>& box,
                      const std::array<int, kRank>& steps) {
  std::array<cuuint64_t, kRank> sizes;
  std::array<cuuint64_t, kRank - 1> bytes;
  std::array<cuuint32_t, kRank> boxes, every;
  for (int i = 0; i < kRank; ++i) {
    sizes[i] = static_cast<cuuint64_t>(extents[i]);
    // Of a dimension of one element the stride means nothing, and may be one that the engine refuses.
    if (i > 0) bytes[i - 1] = static_cast<cuuint64_t>(extents[i] > 1 ? strides[i] * 2 : 16);
    boxes[i] = static_cast<cuuint32_t>(box[i]);
    every[i] = static_cast<cuuint32_t>(steps[i]);
  }
  const auto type = tensor.scalar_type() == ScalarType::Half ? CU_TENSOR_MAP_DATA_TYPE_FLOAT16
                                                             : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16;
  CUtensorMap map;
  const CUresult status =
      encoder()(&map, type, kRank, const_cast<void*>(tensor.const_data_ptr()), sizes.data(), bytes.data(), boxes.data(),
                every.data(), CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  STD_TORCH_CHECK(status == CUDA_SUCCESS, "cuTensorMapEncodeTiled refused a tensor with status ",
                  static_cast<int>(status));
  return map;
}

// A matrix with dense rows, in boxes of so many rows of `depth` elements. It has a dimension of one element between the two.
inline CUtensorMap rows_of(const Tensor& matrix, int depth, int rows) {
  const int64_t pitch = matrix.size(1);
  return described<3>(matrix, {pitch, 1, matrix.size(0)}, {1, pitch, pitch}, {depth, 1, rows}, {1, 1, 1});
}

}  // namespace rewriter
