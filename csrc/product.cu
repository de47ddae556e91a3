// Convolutions and linear + GEGLU on Hopper: what the kernel in multiply.h is told, and how it is launched.

#include "multiply.h"
#include "runtime.h"

#include <cuda.h>

#include <algorithm>
#include <array>
#include <optional>

namespace rewriter {
namespace {

using Encode = CUresult (*)(CUtensorMap*, CUtensorMapDataType, cuuint32_t, void*, const cuuint64_t*, const cuuint64_t*,
                            const cuuint32_t*, const cuuint32_t*, CUtensorMapInterleave, CUtensorMapSwizzle,
                            CUtensorMapL2promotion, CUtensorMapFloatOOBfill);

Encode encoder() {
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

// A tensor for the copy engine: extents and strides in elements from the innermost dimension on, whose stride is 1.
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

int log2_of(int64_t value) {
  int result = 0;
  while ((int64_t{1} << result) < value) ++result;
  return result;
}

int64_t ceiling(int64_t value, int64_t by) { return (value + by - 1) / by; }

// The boxes of `rows` pixels that cover the pictures with the fewest boxes.
Pixels covered(int64_t width, int64_t height, int64_t depth, int64_t images, int rows) {
  Pixels best{};
  int64_t fewest = 0;
  const int all = log2_of(rows);
  for (int wide = 0; wide <= all; ++wide) {
    for (int high = 0; wide + high <= all; ++high) {
      const int64_t across = ceiling(width, 1 << wide), down = ceiling(height, 1 << high);
      // The copy engine takes boxes of at most 256 elements a side, steps between them included.
      if ((1 << wide) > 128 || (1 << high) > 128) continue;
      const int64_t boxes = across * down * depth * ceiling(images, 1 << (all - wide - high));
      if (fewest == 0 || boxes <= fewest) {
        fewest = boxes;
        best = {static_cast<int>(width), static_cast<int>(height), static_cast<int>(depth), static_cast<int>(images),
                wide, high, all - wide - high, static_cast<int>(across), static_cast<int>(down)};
      }
    }
  }
  return best;
}

int64_t boxes_of(const Pixels& pixels) {
  return static_cast<int64_t>(pixels.across) * pixels.down * pixels.depth *
         ceiling(pixels.images, 1 << pixels.log_images);
}

// How a kernel is launched in clusters of `size` blocks. Points into itself, so that it cannot be copied.
struct Launch {
  Launch(int size, int shared, cudaStream_t stream) {
    attribute.id = cudaLaunchAttributeClusterDimension;
    attribute.val.clusterDim.x = size;
    attribute.val.clusterDim.y = attribute.val.clusterDim.z = 1;
    config.gridDim = dim3(size);
    config.blockDim = dim3(kThreads);
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
template <typename T, bool kGeglu>
int clusters_at_once(const Launch& launch) {
  const auto kernel = multiply<T, kGeglu>;
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, Tile<kGeglu>::kShared),
        "cudaFuncSetAttribute");
  static thread_local std::array<int, 9> known{};
  int& count = known[launch.attribute.val.clusterDim.x];
  if (count == 0) check(cudaOccupancyMaxActiveClusters(&count, kernel, &launch.config), "cudaOccupancyMaxActiveClusters");
  return count;
}

template <typename T, bool kGeglu>
void run(const CUtensorMap& left, const CUtensorMap& right, const Plan& plan, const Operands& operands,
            cudaStream_t stream) {
  const int size = plan.across * plan.along * plan.splits;
  Launch launch(size, Tile<kGeglu>::kShared, stream);
  const int together = clusters_at_once<T, kGeglu>(launch);
  STD_TORCH_CHECK(together > 0, "a cluster of ", size, " blocks does not fit on this GPU");
  const int tiles = plan.row_groups * plan.column_groups;
  // A split's sums lie where the next tile's operands would.
  const int clusters = plan.splits > 1 ? tiles : std::min(tiles, together);
  launch.config.gridDim = dim3(clusters * size);
  check(cudaLaunchKernelEx(&launch.config, multiply<T, kGeglu>, left, right, plan, operands), "the product on Hopper");
}

void require(bool condition, const char* what) { STD_TORCH_CHECK(condition, what); }

const void* pointer(const std::optional<Tensor>& tensor) {
  return tensor.has_value() ? tensor->const_data_ptr() : nullptr;
}

void require_cluster(int64_t across, int64_t along, int64_t splits) {
  require(across == 1 || across == 2, "across: expected 1 or 2");
  require(along == 1 || along == 2 || along == 4, "along: expected 1, 2 or 4");
  require(splits >= 1 && splits <= kSplits && (splits & (splits - 1)) == 0, "splits: expected 1, 2, 4 or 8");
  require(across * along * splits <= 8, "a cluster has at most 8 blocks");
}

// y = convolution(x, weight) + bias + residual. x: [N, C, D, H, W], weight: [M, C, T, R, S] and y: [N, M, D', H', W'], all
// with the channels innermost; residual as y. step: of the filter in height and width; pad_z, pad_y, pad_x: zeros.
void convolution(const Tensor x, const Tensor weight, const std::optional<Tensor> bias,
                 const std::optional<Tensor> residual, Tensor y, int64_t step, int64_t pad_z, int64_t pad_y,
                 int64_t pad_x, int64_t across, int64_t along, int64_t splits) {
  const auto type = x.scalar_type();
  require(type == ScalarType::Half || type == ScalarType::BFloat16, "x: expected f16 or bf16");
  require(x.dim() == 5 && weight.dim() == 5 && y.dim() == 5, "x, weight, y: expected five dimensions");
  require(step == 1 || step == 2, "step: expected 1 or 2");
  require_cluster(across, along, splits);
  const OnDeviceOf here(x);
  const int rows = kRows / static_cast<int>(across);
  Plan plan{};
  plan.pixels = covered(y.size(4), y.size(3), y.size(2), y.size(0), rows);
  plan.columns = static_cast<int>(y.size(1));
  plan.step = static_cast<int>(step);
  plan.pad_x = static_cast<int>(pad_x);
  plan.pad_y = static_cast<int>(pad_y);
  plan.pad_z = static_cast<int>(pad_z);
  plan.taps_x = static_cast<int>(weight.size(4));
  plan.taps_y = static_cast<int>(weight.size(3));
  const int64_t taps = weight.size(2) * weight.size(3) * weight.size(4), channels = x.size(1);
  plan.chunks = static_cast<int>(ceiling(channels, kDepth));
  plan.steps = static_cast<int>(taps) * plan.chunks;
  require(plan.steps >= splits, "splits: more than there are steps");
  plan.piece = plan.piece_rows = Tile<false>::kColumns / static_cast<int>(along);
  plan.pieces = static_cast<int>(along);
  plan.across = static_cast<int>(across);
  plan.along = static_cast<int>(along);
  plan.splits = static_cast<int>(splits);
  plan.row_groups = static_cast<int>(ceiling(ceiling(boxes_of(plan.pixels), across), along));
  plan.column_groups = static_cast<int>(ceiling(ceiling(plan.columns, Tile<false>::kResults), across));
  const int wide = 1 << plan.pixels.log_width, high = 1 << plan.pixels.log_height, many = 1 << plan.pixels.log_images;
  const int every = plan.step;
  const CUtensorMap left = described<5>(
      x, {channels, x.size(4), x.size(3), x.size(2), x.size(0)},
      {1, x.stride(4), x.stride(3), x.stride(2), x.stride(0)},
      {kDepth, (wide - 1) * every + 1, (high - 1) * every + 1, 1, many}, {1, every, every, 1, 1});
  const CUtensorMap right = described<3>(weight, {channels, taps, weight.size(0)}, {1, channels, taps * channels},
                                         {kDepth, 1, plan.piece_rows}, {1, 1, 1});
  const Operands operands{pointer(bias), pointer(residual), y.mutable_data_ptr()};
  if (type == ScalarType::Half) {
    run<__half, false>(left, right, plan, operands, here.stream);
  } else {
    run<__nv_bfloat16, false>(left, right, plan, operands, here.stream);
  }
}

// y = hidden * gelu(gate), where x @ weight.T + bias holds both side by side. x: [M, K], weight: [2 N, K], y: [M, N] dense.
void geglu(const Tensor x, const Tensor weight, const std::optional<Tensor> bias, Tensor y, int64_t along) {
  const auto type = x.scalar_type();
  require(type == ScalarType::Half || type == ScalarType::BFloat16, "x: expected f16 or bf16");
  require(x.dim() == 2 && weight.dim() == 2 && y.dim() == 2, "x, weight, y: expected matrices");
  require_cluster(1, along, 1);
  require(along <= 2, "along: expected 1 or 2");
  const OnDeviceOf here(x);
  Plan plan{};
  plan.pixels = covered(x.size(0), 1, 1, 1, kRows);
  plan.columns = static_cast<int>(y.size(1));
  plan.step = plan.taps_x = plan.taps_y = 1;
  plan.chunks = plan.steps = static_cast<int>(ceiling(x.size(1), kDepth));
  plan.piece = plan.columns;
  plan.piece_rows = Tile<true>::kResults;
  plan.pieces = 2;
  plan.across = plan.splits = 1;
  plan.along = static_cast<int>(along);
  plan.row_groups = static_cast<int>(ceiling(boxes_of(plan.pixels), along));
  plan.column_groups = static_cast<int>(ceiling(plan.columns, Tile<true>::kResults));
  const CUtensorMap left = described<5>(x, {x.size(1), x.size(0), 1, 1, 1}, {1, x.stride(0), 0, 0, 0},
                                        {kDepth, 1 << plan.pixels.log_width, 1, 1, 1}, {1, 1, 1, 1, 1});
  const CUtensorMap right = described<3>(weight, {x.size(1), 1, weight.size(0)}, {1, 0, weight.stride(0)},
                                         {kDepth, 1, plan.piece_rows}, {1, 1, 1});
  const Operands operands{pointer(bias), nullptr, y.mutable_data_ptr()};
  if (type == ScalarType::Half) {
    run<__half, true>(left, right, plan, operands, here.stream);
  } else {
    run<__nv_bfloat16, true>(left, right, plan, operands, here.stream);
  }
}

// How many clusters of `size` blocks of a convolution run at the same time on x's device.
int64_t clusters(const Tensor x, int64_t size) {
  require(size >= 1 && size <= 8, "size: expected 1 to 8");
  const OnDeviceOf here(x);
  return clusters_at_once<__half, false>(Launch(static_cast<int>(size), Tile<false>::kShared, here.stream));
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(rewriter_cuda, library) {
  library.def("clusters(Tensor x, int size) -> int");
  library.def(
      "convolution(Tensor x, Tensor weight, Tensor? bias, Tensor? residual, Tensor(a!) y, int step, int pad_z, "
      "int pad_y, int pad_x, int across, int along, int splits) -> ()");
  library.def("geglu(Tensor x, Tensor weight, Tensor? bias, Tensor(a!) y, int along) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(rewriter_cuda, CUDA, library) {
  library.impl("clusters", TORCH_BOX(&clusters));
  library.impl("convolution", TORCH_BOX(&convolution));
  library.impl("geglu", TORCH_BOX(&geglu));
}

}  // namespace rewriter
