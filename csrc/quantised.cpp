// Products of rows in f8e4m3 on Hopper: what the kernel in quantised.cu is told, and how it is launched.

#include "quantised.h"
#include "launch.h"
#include "runtime.h"
#include "tensor_map.h"

#include <cstdint>
#include <optional>

namespace rewriter {
namespace {

using quantised::Work;

void require(bool condition, const char* what) { STD_TORCH_CHECK(condition, what); }

bool starts_at(const void* pointer, uintptr_t bytes) { return reinterpret_cast<uintptr_t>(pointer) % bytes == 0; }

// y = (x * row_scales) @ (weight * column_scales).T + bias + residual, or with `gated` of its two halves side by side
// hidden * gelu(gate). x: [M, K], weight: [N, K], dense, K a multiple of 16: f8e4m3, two elements in one of 16 bits, so
// that both have K / 2 columns. row_scales: [M], column_scales: [N], f32; bias: [N], f16 or bf16; y: [M, N] or, gated,
// [M, N / 2], dense, of a multiple of 8 columns, and residual likewise. alternate: whether both groups of a block have tiles
// of their own; across, along: blocks of a cluster that share rows, and columns; band: row groups done before the next.
void quantised_linear(const Tensor x, const Tensor row_scales, const Tensor weight, const Tensor column_scales,
                      const Tensor bias, const std::optional<Tensor> residual, Tensor y, bool gated, bool alternate,
                      int64_t across, int64_t along, int64_t band) {
  const auto type = bias.scalar_type();
  require(type == ScalarType::Half || type == ScalarType::BFloat16, "bias: expected f16 or bf16");
  require(x.dim() == 2 && weight.dim() == 2 && y.dim() == 2, "x, weight, y: expected matrices");
  require(x.size(1) % 8 == 0 && x.size(1) == weight.size(1), "x, weight: expected rows of one multiple of 16 elements");
  require(y.size(1) % 8 == 0, "y: expected rows of a multiple of 8 elements");
  require(weight.size(0) == y.size(1) * (gated ? 2 : 1) && bias.numel() == weight.size(0) &&
              column_scales.numel() == weight.size(0) && row_scales.numel() == x.size(0) && y.size(0) == x.size(0),
          "scales, bias, y: expected one for each row of x and of the weight");
  require(!gated || !residual.has_value(), "residual: expected none with gates");
  require((across == 1 || across == 2) && (along == 1 || along == 2) && across * along <= 2,
          "across, along: expected 1 and 1, 1 and 2, or 2 and 1");
  require(band >= 1, "band: expected 1 or more");
  require(starts_at(bias.const_data_ptr(), 4) && starts_at(column_scales.const_data_ptr(), 8),
          "bias, column_scales: expected to start at multiples of 4 and 8 bytes");
  const OnDeviceOf here(x);
  Work work{};
  work.rows = static_cast<int>(x.size(0));
  work.results = static_cast<int>(y.size(1));
  work.apart = gated ? work.results : quantised::kColumns / 2;
  work.steps = ceiling(static_cast<int>(x.size(1)), quantised::kDepth);
  work.band = static_cast<int>(band);
  work.across = static_cast<int>(across);
  work.along = static_cast<int>(along);
  work.row_scales = static_cast<const float*>(row_scales.const_data_ptr());
  work.column_scales = static_cast<const float*>(column_scales.const_data_ptr());
  work.bias = bias.const_data_ptr();
  work.residual = residual.has_value() ? residual->const_data_ptr() : nullptr;
  work.result = y.mutable_data_ptr();
  work.row_groups = ceiling(ceiling(work.rows, quantised::kRows), static_cast<int>(along));
  const int columns = gated ? quantised::kColumns / 2 : quantised::kColumns;
  work.column_groups = ceiling(ceiling(work.results, columns), static_cast<int>(across));
  CUtensorMap left = rows_of(x, quantised::kDepth, quantised::kRows / static_cast<int>(across));
  CUtensorMap right = rows_of(weight, quantised::kDepth, quantised::kColumns / 2);
  void* arguments[] = {&left, &right, &work};
  Launch launch(static_cast<int>(across * along), hopper::kThreads, quantised::kShared, here.stream);
  const void* const kernel = quantised::kernel(type == ScalarType::Half, gated, alternate);
  launch_clusters(launch, kernel, work.row_groups * work.column_groups, false, arguments,
                  "a product in eight bits on Hopper");
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(rewriter_cuda, library) {
  library.def(
      "quantised_linear(Tensor x, Tensor row_scales, Tensor weight, Tensor column_scales, Tensor bias, Tensor? residual, "
      "Tensor(a!) y, bool gated, bool alternate, int across, int along, int band) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(rewriter_cuda, CUDA, library) {
  library.impl("quantised_linear", TORCH_BOX(&quantised_linear));
}

}  // namespace rewriter
