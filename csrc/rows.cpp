// Rows in eight bits on Hopper: what the kernel in rows.cu is told, and how it is launched.

#include "rows.h"
#include "launch.h"
#include "lines.h"
#include "runtime.h"

#include <cstdint>
#include <optional>

namespace rewriter {
namespace {

using rows::Work;

void require(bool condition, const char* what) { STD_TORCH_CHECK(condition, what); }

// codes * scales is about [left, activation(x)]. x: [M, K], left: [M, L], rows of lines of eight elements, 16-bit;
// activation: as in rows.h, with GEGLU K is twice what x gives. codes: [M, L + K], dense, f8e4m3 or i8; scales: [M, 1],
// f32.
void quantise_rows(const Tensor x, const std::optional<Tensor> left, Tensor codes, Tensor scales, int64_t activation) {
  const auto type = x.scalar_type(), format = codes.scalar_type();
  require(type == ScalarType::Half || type == ScalarType::BFloat16, "x: expected f16 or bf16");
  require(format == ScalarType::Float8_e4m3fn || format == ScalarType::Char, "codes: expected f8e4m3 or i8");
  require(in_lines(x) && (!left.has_value() || in_lines(*left)), "x, left: expected rows in lines of 16 bytes");
  const void* const kernel =
      rows::kernel(type == ScalarType::Half, format == ScalarType::Char, static_cast<int>(activation));
  require(kernel != nullptr, "activation: expected one of rows.h");
  Work work{};
  work.x = x.const_data_ptr();
  work.left = left.has_value() ? left->const_data_ptr() : nullptr;
  work.pitch = x.stride(0);
  work.left_pitch = left.has_value() ? left->stride(0) : 0;
  work.width = left.has_value() ? static_cast<int>(left->size(1)) / rows::kLine : 0;
  work.columns = static_cast<int>(codes.size(1)) / rows::kLine;
  const int given = static_cast<int>(x.size(1)) / rows::kLine;
  require(given == (work.columns - work.width) * (activation == rows::kGeglu ? 2 : 1) &&
              codes.size(1) % rows::kLine == 0,
          "codes: expected as many columns as left and the activation give");
  work.rows = static_cast<int>(x.size(0));
  // As few as can hold a row: each has much to do, and what they find out about it goes few ways.
  work.threads = ceiling(work.columns, 32 * rows::kLines) * 32;
  require(work.threads <= rows::kMostThreads, "codes: expected rows of fewer elements");
  work.codes = codes.mutable_data_ptr();
  work.scales = static_cast<float*>(scales.mutable_data_ptr());
  const OnDeviceOf here(x);
  void* arguments[] = {&work};
  const int together = work.threads == 32 ? rows::kTogether : 1;
  Launch launch(1, work.threads * together, rows::kShared, here.stream);
  launch_clusters(launch, kernel, ceiling(work.rows, together), true, arguments, "rows in eight bits on Hopper");
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(rewriter_cuda, library) {
  library.def(
      "quantise_rows(Tensor x, Tensor? left, Tensor(a!) codes, Tensor(b!) scales, int activation) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(rewriter_cuda, CUDA, library) { library.impl("quantise_rows", TORCH_BOX(&quantise_rows)); }

}  // namespace rewriter
