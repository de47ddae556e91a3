// Convolutions on Hopper: what the kernels in convolution.cu and quantised_convolution.cu are told, and how they are
// launched.

#include "convolution.h"
#include "launch.h"
#include "runtime.h"
#include "tensor_map.h"

#include <algorithm>
#include <cstdint>
#include <optional>

namespace rewriter {
namespace {

using convolving::kColumns, convolving::kDepth, convolving::kSplits;
using convolving::Kernel, convolving::Operands, convolving::Pixels, convolving::Plan, convolving::QuantisedOperands;

int log2_of(int64_t value) {
  int result = 0;
  while ((int64_t{1} << result) < value) ++result;
  return result;
}

// The boxes of `rows` pixels that cover the pictures with the fewest boxes. step: between the pixels that a filter is at.
Pixels covered(int64_t width, int64_t height, int64_t depth, int64_t images, int rows, int step) {
  Pixels best{};
  int64_t fewest = 0;
  const int all = log2_of(rows);
  for (int wide = 0; wide <= all; ++wide) {
    for (int high = 0; wide + high <= all; ++high) {
      const int64_t across = ceiling(width, 1 << wide), down = ceiling(height, 1 << high);
      // The copy engine takes boxes of at most 256 elements a side, steps between them included.
      if (std::max((1 << wide) - 1, (1 << high) - 1) * step >= 256) continue;
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

void require(bool condition, const char* what) { STD_TORCH_CHECK(condition, what); }

// How a convolution is computed. step: of the filter in height and width; pad_z, pad_y, pad_x: zeros; scale: of the
// result's height and width over those of x, see convolution.cu; rows: of a block's results; across, along: blocks of a
// cluster that share rows, and columns; splits: that share the depth.
struct Way {
  int64_t step, pad_z, pad_y, pad_x, scale, rows, across, along, splits;
};

// x: [N, C, D, H, W], weight: [M, C, T, R, S] and y: [N, M, D', H', W'], all with the channels innermost. operands: what
// else the kernel is told.
template <typename Operands>
void launch_convolution(const Tensor& x, const Tensor& weight, const Tensor& y, const Way& way, const Kernel& kernel,
                        Operands operands) {
  const auto [step, pad_z, pad_y, pad_x, scale, rows, across, along, splits] = way;
  const auto type = x.scalar_type();
  require(type == ScalarType::Half || type == ScalarType::BFloat16, "x: expected f16 or bf16");
  require(x.dim() == 5 && weight.dim() == 5 && y.dim() == 5, "x, weight, y: expected five dimensions");
  require(step == 1 || step == 2, "step: expected 1 or 2");
  require(scale == 1 || (scale == 2 && step == 1), "scale: expected 1, or 2 with a step of 1");
  require(weight.size(0) == scale * scale * y.size(1) && y.size(4) % scale == 0 && y.size(3) % scale == 0,
          "weight, y: expected filters and pixels for the scale");
  require(across == 1 || across == 2, "across: expected 1 or 2");
  require(along == 1 || along == 2 || along == 4, "along: expected 1, 2 or 4");
  require(splits >= 1 && splits <= kSplits && (splits & (splits - 1)) == 0, "splits: expected 1, 2, 4 or 8");
  require(across * along * splits <= 8, "a cluster has at most 8 blocks");
  require(splits == 1 || rows == 128, "splits: expected 1 for blocks of other than 128 rows");
  require(kernel.address != nullptr, "rows: expected 128 or 256");
  const OnDeviceOf here(x);
  Plan plan{};
  plan.pixels = covered(y.size(4) / scale, y.size(3) / scale, y.size(2), y.size(0),
                        kernel.rows / static_cast<int>(across), static_cast<int>(step));
  plan.scale = static_cast<int>(scale);
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
  plan.piece = kColumns / static_cast<int>(along);
  plan.pieces = static_cast<int>(along);
  plan.across = static_cast<int>(across);
  plan.along = static_cast<int>(along);
  plan.splits = static_cast<int>(splits);
  plan.row_groups = static_cast<int>(ceiling(ceiling(boxes_of(plan.pixels), across), along));
  plan.column_groups = static_cast<int>(ceiling(ceiling(plan.columns, kColumns), across));
  const int wide = 1 << plan.pixels.log_width, high = 1 << plan.pixels.log_height, many = 1 << plan.pixels.log_images;
  const int every = plan.step;
  CUtensorMap left = described<5>(
      x, {channels, x.size(4), x.size(3), x.size(2), x.size(0)},
      {1, x.stride(4), x.stride(3), x.stride(2), x.stride(0)},
      {kDepth, (wide - 1) * every + 1, (high - 1) * every + 1, 1, many}, {1, every, every, 1, 1});
  CUtensorMap right = described<3>(weight, {channels, taps, weight.size(0)}, {1, channels, taps * channels},
                                   {kDepth, 1, plan.piece}, {1, 1, 1});
  void* arguments[] = {&left, &right, &plan, &operands};
  Launch launch(static_cast<int>(across * along * splits), hopper::kThreads, kernel.shared, here.stream);
  // A split's sums lie where the next tile's operands would.
  launch_clusters(launch, kernel.address, plan.row_groups * plan.column_groups * plan.scale * plan.scale, splits > 1,
                  arguments, "a convolution on Hopper");
}

const void* pointer(const std::optional<Tensor>& tensor) {
  return tensor.has_value() ? tensor->const_data_ptr() : nullptr;
}

bool starts_at(const void* pointer, uintptr_t bytes) { return reinterpret_cast<uintptr_t>(pointer) % bytes == 0; }

// y = convolution(x, weight) + bias + residual, with the shapes of `launch_convolution`; residual as y.
void convolution(const Tensor x, const Tensor weight, const std::optional<Tensor> bias,
                 const std::optional<Tensor> residual, Tensor y, int64_t step, int64_t pad_z, int64_t pad_y,
                 int64_t pad_x, int64_t scale, int64_t rows, int64_t across, int64_t along, int64_t splits) {
  require(starts_at(pointer(bias), 4), "bias: expected to start at a multiple of 4 bytes");
  const Kernel kernel = convolving::kernel(static_cast<int>(rows), x.scalar_type() == ScalarType::Half);
  const Operands operands{pointer(bias), pointer(residual), y.mutable_data_ptr()};
  launch_convolution(x, weight, y, {step, pad_z, pad_y, pad_x, scale, rows, across, along, splits}, kernel, operands);
}

// y = convolution(x, weight) * scale * filter_scales + bias. x and weight: f8e4m3, two elements in one of y's
// dtype, so that they have half as many channels; scale: [1], filter_scales: [M], f32. The rest as in `convolution`.
void quantised_convolution(const Tensor x, const Tensor scale, const Tensor weight, const Tensor filter_scales,
                           const Tensor bias, Tensor y, int64_t step, int64_t pad_y, int64_t pad_x, int64_t rows,
                           int64_t across, int64_t along) {
  require(scale.numel() == 1 && filter_scales.numel() == y.size(1) && bias.numel() == y.size(1),
          "scale, filter_scales, bias: expected one number, and one for each filter");
  require(starts_at(bias.const_data_ptr(), 4) && starts_at(filter_scales.const_data_ptr(), 8),
          "bias, filter_scales: expected to start at multiples of 4 and 8 bytes");
  const Kernel kernel = convolving::quantised_kernel(static_cast<int>(rows), x.scalar_type() == ScalarType::Half);
  const QuantisedOperands operands{static_cast<const float*>(scale.const_data_ptr()),
                                   static_cast<const float*>(filter_scales.const_data_ptr()), bias.const_data_ptr(),
                                   y.mutable_data_ptr()};
  launch_convolution(x, weight, y, {step, 0, pad_y, pad_x, 1, rows, across, along, 1}, kernel, operands);
}

// How many clusters of `size` blocks of a convolution run at the same time on x's device.
int64_t clusters(const Tensor x, int64_t size) {
  require(size >= 1 && size <= 8, "size: expected 1 to 8");
  const OnDeviceOf here(x);
  const Kernel kernel = convolving::kernel(128, true);
  return clusters_at_once(kernel.address, Launch(static_cast<int>(size), hopper::kThreads, kernel.shared, here.stream));
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(rewriter_cuda, library) {
  library.def("clusters(Tensor x, int size) -> int");
  library.def(
      "convolution(Tensor x, Tensor weight, Tensor? bias, Tensor? residual, Tensor(a!) y, int step, int pad_z, "
      "int pad_y, int pad_x, int scale, int rows, int across, int along, int splits) -> ()");
  library.def(
      "quantised_convolution(Tensor x, Tensor scale, Tensor weight, Tensor filter_scales, Tensor bias, "
      "Tensor(a!) y, int step, int pad_y, int pad_x, int rows, int across, int along) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(rewriter_cuda, CUDA, library) {
  library.impl("clusters", TORCH_BOX(&clusters));
  library.impl("convolution", TORCH_BOX(&convolution));
  library.impl("quantised_convolution", TORCH_BOX(&quantised_convolution));
}

}  // namespace rewriter
