// Kernels that are launched in clusters of blocks.
#pragma once

#include "runtime.h"

#include <algorithm>
#include <map>
#include <utility>

namespace rewriter {

// How a kernel is launched in clusters of `size` blocks. Points into itself, so that it cannot be copied.
struct Launch {
  Launch(int size, int threads, int shared, cudaStream_t stream) {
    attribute.id = cudaLaunchAttributeClusterDimension;
    attribute.val.clusterDim.x = size;
    attribute.val.clusterDim.y = attribute.val.clusterDim.z = 1;
    config.gridDim = dim3(size);
    config.blockDim = dim3(threads);
    config.dynamicSmemBytes = shared;
    config.stream = stream;
    config.attrs = &attribute;
    config.numAttrs = 1;
  }
  Launch(const Launch&) = delete;
  Launch& operator=(const Launch&) = delete;

  cudaLaunchAttribute attribute{};
  cudaLaunchConfig_t config{};
};

// How many clusters run at the same time. Fewer than multiprocessors would allow: a cluster stays in one part of the chip.
inline int clusters_at_once(const void* kernel, const Launch& launch) {
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                             static_cast<int>(launch.config.dynamicSmemBytes)),
        "cudaFuncSetAttribute");
  static thread_local std::map<std::pair<const void*, unsigned>, int> known;
  int& count = known[{kernel, launch.attribute.val.clusterDim.x}];
  if (count == 0) {
    check(cudaOccupancyMaxActiveClusters(&count, kernel, &launch.config), "cudaOccupancyMaxActiveClusters");
  }
  return count;
}

// Launches as many clusters as run at the same time, and no more than there are tiles; `all`: one for each tile.
inline void launch_clusters(Launch& launch, const void* kernel, int tiles, bool all, void** arguments, const char* what) {
  const int size = launch.attribute.val.clusterDim.x, together = clusters_at_once(kernel, launch);
  STD_TORCH_CHECK(together > 0, "a cluster of ", size, " blocks does not fit on this GPU");
  launch.config.gridDim = dim3((all ? tiles : std::min(tiles, together)) * size);
  check(cudaLaunchKernelExC(&launch.config, kernel, arguments), what);
}

}  // namespace rewriter
