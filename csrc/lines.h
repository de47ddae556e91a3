// Tensors whose rows are read in lines of eight elements of 16 bits.
#pragma once

#include "rows.h"
#include "runtime.h"

#include <cstdint>

namespace rewriter {

// Whether a matrix is rows of whole lines that start at multiples of 16 bytes.
inline bool in_lines(const Tensor& matrix) {
  return matrix.dim() == 2 && matrix.size(1) % rows::kLine == 0 && matrix.stride(1) == 1 &&
         matrix.stride(0) % rows::kLine == 0 && reinterpret_cast<uintptr_t>(matrix.const_data_ptr()) % 16 == 0;
}

}  // namespace rewriter
