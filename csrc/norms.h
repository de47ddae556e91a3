// What the kernel in norms.cu is told, and where its instances are.
#pragma once

#include "rows.h"

#include <cstdint>

namespace rewriter::rows {

// What is added to x before its norm.
enum Addend : int { kNothing, kResidual, kGatedResidual };

struct Norm {
  const void *x, *y, *gate, *scale, *shift, *weight, *bias;
  int64_t pitch, y_pitch;                          // elements from a row to the next
  int64_t gate_pitch, scale_pitch, shift_pitch;    // and from a sample to the next
  int each;                                        // rows of a sample
  int rows, columns;                               // and lines of a row, as many as a warp takes at most
  float eps;
  void *total, *codes;
  float* scales;
};

// The address of the instance as launches take it, or null. addend: an Addend; modulated: whether scale and shift follow
// the norm. Its argument: Norm.
const void* norm_kernel(bool f16, bool integers, int addend, bool modulated);

}  // namespace rewriter::rows
