// Norms in rows of eight bits on Hopper: what the kernel in norms.cu is told, and how it is launched.

#include "norms.h"
#include "launch.h"
#include "lines.h"
#include "runtime.h"

#include <cstdint>
#include <optional>

namespace rewriter {
namespace {

void require(bool condition, const char* what) { STD_TORCH_CHECK(condition, what); }

const void* lines(const std::optional<Tensor>& tensor) {
  if (!tensor.has_value()) return nullptr;
  require(reinterpret_cast<uintptr_t>(tensor->const_data_ptr()) % 16 == 0, "expected operands that start at 16 bytes");
  return tensor->const_data_ptr();
}

// codes * scales is about the layer norm of x + y * gate, times weight, plus bias, times 1 + scale, plus shift, as far as
// they are there; total is that sum. x, y, total: [M, K], rows of lines of eight elements, 16-bit, total dense; gate, scale,
// shift: [samples, K], weight, bias: [K], dense. codes: [M, K], dense, f8e4m3 or i8; scales: [M, 1], f32. each: rows of a
// sample; gate_pitch and so on: elements from a sample to the next.
void quantise_norm(const Tensor x, const std::optional<Tensor> y, const std::optional<Tensor> gate,
                   const std::optional<Tensor> weight, const std::optional<Tensor> bias,
                   const std::optional<Tensor> scale, const std::optional<Tensor> shift, std::optional<Tensor> total,
                   Tensor codes, Tensor scales, double eps, int64_t each, int64_t gate_pitch, int64_t scale_pitch,
                   int64_t shift_pitch) {
  const auto type = x.scalar_type(), format = codes.scalar_type();
  require(type == ScalarType::Half || type == ScalarType::BFloat16, "x: expected f16 or bf16");
  require(format == ScalarType::Float8_e4m3fn || format == ScalarType::Char, "codes: expected f8e4m3 or i8");
  require(in_lines(x) && (!y.has_value() || in_lines(*y)), "x, y: expected rows in lines of 16 bytes");
  require(y.has_value() == total.has_value() && (y.has_value() || !gate.has_value()) && scale.has_value() == shift.has_value(),
          "y, total, gate, scale, shift: expected those that belong together");
  require(gate_pitch % rows::kLine == 0 && scale_pitch % rows::kLine == 0 && shift_pitch % rows::kLine == 0,
          "gate, scale, shift: expected rows in lines of 16 bytes");
  const int addend = gate.has_value() ? rows::kGatedResidual : y.has_value() ? rows::kResidual : rows::kNothing;
  const void* const kernel =
      rows::norm_kernel(type == ScalarType::Half, format == ScalarType::Char, addend, scale.has_value());
  require(kernel != nullptr, "gate, scale: expected both or none");
  rows::Norm norm{};
  norm.columns = static_cast<int>(x.size(1)) / rows::kLine;
  require(codes.size(1) == x.size(1) && codes.size(0) == x.size(0), "codes: expected as many as x has elements");
  require(norm.columns <= 32 * rows::kLines, "x: expected rows of fewer elements");
  require(each >= 1, "each: expected 1 or more");
  norm.x = x.const_data_ptr();
  norm.y = lines(y), norm.gate = lines(gate), norm.scale = lines(scale), norm.shift = lines(shift);
  norm.weight = lines(weight), norm.bias = lines(bias);
  norm.pitch = x.stride(0);
  norm.y_pitch = y.has_value() ? y->stride(0) : 0;
  norm.gate_pitch = gate_pitch, norm.scale_pitch = scale_pitch, norm.shift_pitch = shift_pitch;
  norm.each = static_cast<int>(each);
  norm.rows = static_cast<int>(x.size(0));
  norm.eps = static_cast<float>(eps);
  norm.total = total.has_value() ? total->mutable_data_ptr() : nullptr;
  norm.codes = codes.mutable_data_ptr();
  norm.scales = static_cast<float*>(scales.mutable_data_ptr());
  const OnDeviceOf here(x);
  void* arguments[] = {&norm};
  Launch launch(1, 32 * rows::kTogether, 0, here.stream);
  launch_clusters(launch, kernel, ceiling(norm.rows, rows::kTogether), true, arguments, "a norm in eight bits on Hopper");
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(rewriter_cuda, library) {
  library.def(
      "quantise_norm(Tensor x, Tensor? y, Tensor? gate, Tensor? weight, Tensor? bias, Tensor? scale, Tensor? shift, "
      "Tensor(a!)? total, Tensor(b!) codes, Tensor(c!) scales, float eps, int each, int gate_pitch, int scale_pitch, "
      "int shift_pitch) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(rewriter_cuda, CUDA, library) { library.impl("quantise_norm", TORCH_BOX(&quantise_norm)); }

}  // namespace rewriter
