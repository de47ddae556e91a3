// Kernels that are launched in clusters of blocks.
#pragma once

#include "runtime.h"

#include <algorithm>
#include <map>
#include <utility>

namespace rewriter {

// Whether graphs know of launches that overlap: drivers for CUDA 12.3 and newer.
inline bool driver_overlaps() {
  static const bool found = [] {
    int version = 0;
    check(cudaDriverGetVersion(&version), "cudaDriverGetVersion");
    return version >= 12030;
  }();
  return found;
}

// How a kernel is launched in clusters of `size` blocks, which may begin before the kernel before has ended: it has to call
// hopper::await_earlier. Points into itself, so that it cannot be copied.
struct Launch {
  Launch(int size, int threads, int shared, cudaStream_t stream) {
    attributes[0].id = cudaLaunchAttributeClusterDimension;
    attributes[0].val.clusterDim.x = size;
    attributes[0].val.clusterDim.y = attributes[0].val.clusterDim.z = 1;
    attributes[1].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attributes[1].val.programmaticStreamSerializationAllowed = 1;
    config.gridDim = dim3(size);
    config.blockDim = dim3(threads);
    config.dynamicSmemBytes = shared;
    config.stream = stream;
    config.attrs = attributes;
    config.numAttrs = driver_overlaps() ? 2 : 1;
  }
  Launch(const Launch&) = delete;
  Launch& operator=(const Launch&) = delete;

  int size() const { return attributes[0].val.clusterDim.x; }

  cudaLaunchAttribute attributes[2]{};
  cudaLaunchConfig_t config{};
};

// How many clusters run at the same time. Fewer than multiprocessors would allow: a cluster stays in one part of the chip.
inline int clusters_at_once(const void* kernel, const Launch& launch) {
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                             static_cast<int>(launch.config.dynamicSmemBytes)),
        "cudaFuncSetAttribute");
  static thread_local std::map<std::pair<const void*, int>, int> known;
  int& count = known[{kernel, launch.size()}];
  if (count == 0) {
    cudaLaunchConfig_t alone = launch.config;
    alone.numAttrs = 1;
    check(cudaOccupancyMaxActiveClusters(&count, kernel, &alone), "cudaOccupancyMaxActiveClusters");
  }
  return count;
}

// Launches as many clusters as run at the same time, and no more than there are tiles; `all`: one for each tile.
inline void launch_clusters(Launch& launch, const void* kernel, int tiles, bool all, void** arguments, const char* what) {
  const int size = launch.size(), together = clusters_at_once(kernel, launch);
  STD_TORCH_CHECK(together > 0, "a cluster of ", size, " blocks does not fit on this GPU");
  launch.config.gridDim = dim3((all ? tiles : std::min(tiles, together)) * size);
  check(cudaLaunchKernelExC(&launch.config, kernel, arguments), what);
}

}  // namespace rewriter
