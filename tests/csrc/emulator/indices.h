// What a thread knows of its place.
#pragma once

struct Index {
  unsigned x, y, z;
};
extern Index threadIdx, blockIdx, gridDim;
