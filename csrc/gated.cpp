// Linear + GEGLU on Hopper: what the kernel in gated.cu is told, and how it is launched.

#include "gated.h"
#include "launch.h"
#include "runtime.h"
#include "tensor_map.h"

#include <cstdint>
#include <optional>

namespace rewriter {
namespace {

using gated::Kernel;
using gated::Work;

void require(bool condition, const char* what) { STD_TORCH_CHECK(condition, what); }

// y = hidden * gelu(gate), where x @ weight.T + bias holds both side by side. x: [M, K], weight: [2 N, K], bias: [2 N],
// y: [M, N], all dense, K and N multiples of 8. rows, columns: of a block's results. across, along: blocks of a
// cluster that share rows, and columns. band: row groups done before the next.
void linear_geglu(const Tensor x, const Tensor weight, const std::optional<Tensor> bias, Tensor y, int64_t rows,
                  int64_t columns, int64_t across, int64_t along, int64_t band) {
  const auto type = x.scalar_type();
  require(type == ScalarType::Half || type == ScalarType::BFloat16, "x: expected f16 or bf16");
  require(x.dim() == 2 && weight.dim() == 2 && y.dim() == 2, "x, weight, y: expected matrices");
  require(x.size(1) % 8 == 0 && y.size(1) % 8 == 0, "x, y: expected rows of a multiple of 8 elements");
  require((across == 1 || across == 2) && (along == 1 || along == 2) && across * along <= 2,
          "across, along: expected 1 and 1, 1 and 2, or 2 and 1");
  require(band >= 1, "band: expected 1 or more");
  const void* const shift = bias.has_value() ? bias->const_data_ptr() : nullptr;
  require(reinterpret_cast<uintptr_t>(shift) % 4 == 0, "bias: expected to start at a multiple of 4 bytes");
  const Kernel kernel = gated::kernel(static_cast<int>(rows), static_cast<int>(columns), type == ScalarType::Half);
  require(kernel.address != nullptr, "rows, columns: expected 256 and 80, 128 and 128, or 128 and 80");
  const OnDeviceOf here(x);
  Work work{};
  work.rows = static_cast<int>(x.size(0));
  work.results = static_cast<int>(y.size(1));
  work.steps = ceiling(static_cast<int>(x.size(1)), gated::kDepth);
  work.band = static_cast<int>(band);
  work.across = static_cast<int>(across);
  work.along = static_cast<int>(along);
  work.bias = shift;
  work.result = y.mutable_data_ptr();
  work.row_groups = ceiling(ceiling(work.rows, kernel.rows), static_cast<int>(along));
  work.column_groups = ceiling(ceiling(work.results, kernel.columns), static_cast<int>(across));
  CUtensorMap left = rows_of(x, gated::kDepth, kernel.rows / static_cast<int>(across));
  CUtensorMap right = rows_of(weight, gated::kDepth, kernel.columns);
  void* arguments[] = {&left, &right, &work};
  Launch launch(static_cast<int>(across * along), hopper::kThreads, kernel.shared, here.stream);
  launch_clusters(launch, kernel.address, work.row_groups * work.column_groups, false, arguments,
                  "linear + GEGLU on Hopper");
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(rewriter_cuda, library) {
  library.def(
      "linear_geglu(Tensor x, Tensor weight, Tensor? bias, Tensor(a!) y, int rows, int columns, int across, int along, "
      "int band) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(rewriter_cuda, CUDA, library) { library.impl("linear_geglu", TORCH_BOX(&linear_geglu)); }

}  // namespace rewriter
