// Tensors as the copy engine sees them, and kernels as launches find them.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <map>

#include <cuda.h>

namespace emulated {

// In the place of what the driver puts into a CUtensorMap. Strides in bytes, of all dimensions but the first.
struct TensorMap {
  const unsigned char* data;
  std::array<uint64_t, 4> strides;
  std::array<uint32_t, 5> extents;
  std::array<uint32_t, 5> box;
  std::array<uint8_t, 5> steps;
  uint8_t rank;
};
static_assert(sizeof(TensorMap) <= sizeof(CUtensorMap));

// Starts to copy the box at `corner` to `to` in each block of the mask `blocks`, whose barriers count its bytes.
void copy(void* to, const CUtensorMap& map, uint64_t* barrier, unsigned blocks, std::array<int, 5> corner, int rank);

// By address: what calls a kernel with its arguments.
std::map<const void*, std::function<void(void**)>>& kernels();

}  // namespace emulated
