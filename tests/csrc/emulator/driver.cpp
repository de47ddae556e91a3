// The calls of CUDA's runtime and driver, and of torch, that launches make.

#include "machine.h"
#include "tensor.h"

#include <algorithm>
#include <cstring>
#include <random>
#include <string>

#include <cuda.h>
#include <cuda_runtime.h>

#include <torch/csrc/inductor/aoti_torch/c/shim.h>

namespace emulated {
namespace {

std::mt19937 random_state;
Pace pace = Pace::early;
int at_once = 2;
std::string last_fault;

void require(bool condition, const char* what) {
  if (!condition) throw Fault(what);
}

// The box's bytes, written to `to` of every block in the mask as the 128-byte swizzle has them.
void carry_out(const TensorMap& map, uint32_t to, uint32_t barrier, unsigned blocks, const std::array<int, 5>& corner,
               Cluster& cluster) {
  std::array<int, 5> count{};
  int32_t bytes = 2;
  for (int i = 0; i < 5; ++i) {
    count[i] = i < map.rank ? static_cast<int>((map.box[i] + map.steps[i] - 1) / map.steps[i]) : 1;
    bytes *= count[i];
  }
  for (int32_t index = 0; index < bytes / 2; ++index) {
    int32_t rest = index;
    uint64_t from = 0;
    bool inside = true;
    for (int i = 0; i < map.rank; ++i) {
      const int64_t place = corner[i] + static_cast<int64_t>(rest % count[i]) * map.steps[i];
      rest /= count[i];
      inside = inside && place >= 0 && place < map.extents[i];
      from += static_cast<uint64_t>(place) * (i == 0 ? 2 : map.strides[i - 1]);
    }
    uint16_t bits = 0;
    if (inside) std::memcpy(&bits, map.data + from, 2);
    const uint32_t plain = to + 2 * index, place = plain ^ (plain >> 7 & 7) << 4;
    for (unsigned rank = 0; rank < cluster.blocks.size(); ++rank) {
      if (blocks >> rank & 1) std::memcpy(cluster.blocks[rank].shared + place, &bits, 2);
    }
  }
  for (unsigned rank = 0; rank < cluster.blocks.size(); ++rank) {
    if (blocks >> rank & 1) expect(reinterpret_cast<uint64_t*>(cluster.blocks[rank].shared + barrier), -bytes);
  }
}

}  // namespace

std::map<const void*, std::function<void(void**)>>& kernels() {
  static std::map<const void*, std::function<void(void**)>> known;
  return known;
}

void copy(void* to, const CUtensorMap& map, uint64_t* barrier, unsigned blocks, std::array<int, 5> corner, int rank) {
  TensorMap found;
  std::memcpy(&found, &map, sizeof(found));
  Cluster& cluster = *self().block->cluster;
  const uint32_t place = offset_of(to), counts = offset_of(barrier);
  require(found.rank == rank, "a copy of another rank than the tensor's");
  require(place % 128 == 0, "a copy to where no 128 bytes begin");
  require(blocks != 0 && blocks >> cluster.blocks.size() == 0, "a copy to blocks that are not in the cluster");
  for (unsigned each = 0; each < cluster.blocks.size(); ++each) {
    if (blocks >> each & 1) at(place, each);
  }
  cluster.beside([=, &cluster] { carry_out(found, place, counts, blocks, corner, cluster); });
}

}  // namespace emulated

namespace {

using emulated::TensorMap;

// Refuses what the driver's own encoder refuses of tiles without interleaving.
CUresult encode(CUtensorMap* map, CUtensorMapDataType type, cuuint32_t rank, void* data, const cuuint64_t* extents,
                const cuuint64_t* strides, const cuuint32_t* box, const cuuint32_t* steps, CUtensorMapInterleave,
                CUtensorMapSwizzle swizzle, CUtensorMapL2promotion, CUtensorMapFloatOOBfill) {
  const bool narrow = type == CU_TENSOR_MAP_DATA_TYPE_FLOAT16 || type == CU_TENSOR_MAP_DATA_TYPE_BFLOAT16;
  if (!narrow || rank > 5 || swizzle != CU_TENSOR_MAP_SWIZZLE_128B) return CUDA_ERROR_INVALID_VALUE;
  if (reinterpret_cast<uintptr_t>(data) % 16 != 0 || box[0] * 2 > 128) return CUDA_ERROR_INVALID_VALUE;
  TensorMap made{};
  made.data = static_cast<const unsigned char*>(data);
  made.rank = static_cast<uint8_t>(rank);
  for (cuuint32_t i = 0; i < rank; ++i) {
    if (extents[i] == 0 || extents[i] > (uint64_t{1} << 32) || box[i] == 0 || box[i] > 256) {
      return CUDA_ERROR_INVALID_VALUE;
    }
    if (steps[i] == 0 || steps[i] > 8) return CUDA_ERROR_INVALID_VALUE;
    made.extents[i] = static_cast<uint32_t>(extents[i]);
    made.box[i] = box[i];
    made.steps[i] = static_cast<uint8_t>(steps[i]);
    if (i > 0) {
      if (strides[i - 1] % 16 != 0 || strides[i - 1] >= (uint64_t{1} << 40)) return CUDA_ERROR_INVALID_VALUE;
      made.strides[i - 1] = strides[i - 1];
    }
  }
  std::memcpy(map, &made, sizeof(made));
  return CUDA_SUCCESS;
}

unsigned cluster_of(const cudaLaunchConfig_t& config) {
  for (unsigned i = 0; i < config.numAttrs; ++i) {
    if (config.attrs[i].id == cudaLaunchAttributeClusterDimension) return config.attrs[i].val.clusterDim.x;
  }
  return 1;
}

}  // namespace

extern "C" {

// For the tests: seeds what comes by chance; pace: its number; clusters: that run at once.
__attribute__((visibility("default"))) void emulate(unsigned seed, int pace, int clusters) {
  emulated::random_state.seed(seed);
  emulated::pace = static_cast<emulated::Pace>(pace);
  emulated::at_once = clusters;
}

cudaError_t cudaDriverGetVersion(int* version) {
  *version = 13000;
  return cudaSuccess;
}

cudaError_t cudaFuncSetAttribute(const void*, cudaFuncAttribute, int bytes) {
  return bytes <= 232448 ? cudaSuccess : cudaErrorInvalidValue;
}

cudaError_t cudaOccupancyMaxActiveClusters(int* clusters, const void*, const cudaLaunchConfig_t*) {
  *clusters = emulated::at_once;
  return cudaSuccess;
}

cudaError_t cudaGetDriverEntryPointByVersion(const char*, void** entry, unsigned, unsigned long long,
                                             cudaDriverEntryPointQueryResult* status) {
  *entry = reinterpret_cast<void*>(encode);
  *status = cudaDriverEntryPointSuccess;
  return cudaSuccess;
}

const char* cudaGetErrorString(cudaError_t) { return emulated::last_fault.c_str(); }

cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t* config, const void* kernel, void** arguments) {
  const unsigned size = cluster_of(*config), grid = config->gridDim.x;
  try {
    emulated::require(grid % size == 0, "a grid that is no multiple of the cluster");
    const auto& call = emulated::kernels().at(kernel);
    for (unsigned first = 0; first < grid; first += size) {
      emulated::Cluster cluster(grid, first, size, config->blockDim.x, config->dynamicSmemBytes, emulated::pace,
                                emulated::random_state, [&] { call(arguments); });
      cluster.run();
    }
  } catch (const std::exception& error) {
    emulated::last_fault = error.what();
    return cudaErrorLaunchFailure;
  }
  return cudaSuccess;
}

// A tensor on the CPU has no device to make current, and no stream.
AOTITorchError aoti_torch_get_current_cuda_stream(int32_t, void** stream) {
  *stream = nullptr;
  return 0;
}

AOTITorchError aoti_torch_create_device_guard(int32_t, DeviceGuardHandle* guard) {
  *guard = nullptr;
  return 0;
}

AOTITorchError aoti_torch_delete_device_guard(DeviceGuardHandle) { return 0; }
}
