// activation(x @ weight.T + bias + residual) by cuBLASLt, whose epilogues add what follows without another pass.
//
// cuBLASLt ranks several kernels for a shape; the op's last argument picks one of them, so that the caller can time
// them and keep the fastest.

#include "cublaslt.h"
#include "runtime.h"

#include <array>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <vector>

namespace rewriter {
namespace {

constexpr int kWanted = 8;
constexpr uint64_t kWorkspaceLimit = 32 << 20;
constexpr int64_t kGeluTanh = 1;

void check(int status, const char* what) {
  STD_TORCH_CHECK(status == 0, what, " failed with cuBLAS status ", status);
}

// What cuBLASLt's choice depends on, all in numbers.
struct Problem {
  int64_t device, m, n, k, x_row, weight_row, residual_row, result_row, type;
  uint32_t epilogue, x_alignment, weight_alignment, bias_alignment, residual_alignment, result_alignment;

  auto operator<=>(const Problem&) const = default;
};

// Row-major [rows, columns] is column-major [columns, rows]: all of it is computed transposed.
struct Plan {
  explicit Plan(const Problem& problem, const void* bias) {
    const auto& lt = cublaslt::library();
    check(lt.descriptor_create(&descriptor, cublaslt::kComputeF32, cublaslt::kF32), "cublasLtMatmulDescCreate");
    set(cublaslt::kTransposeA, int32_t{cublaslt::kTransposed});
    set(cublaslt::kTransposeB, int32_t{cublaslt::kAsIs});
    set(cublaslt::kEpilogue, problem.epilogue);
    if (bias != nullptr) set(cublaslt::kBiasPointer, bias);
    const int type = static_cast<int>(problem.type);
    check(lt.layout_create(&weight, type, problem.k, problem.n, problem.weight_row), "cublasLtMatrixLayoutCreate");
    check(lt.layout_create(&x, type, problem.k, problem.m, problem.x_row), "cublasLtMatrixLayoutCreate");
    check(lt.layout_create(&result, type, problem.n, problem.m, problem.result_row), "cublasLtMatrixLayoutCreate");
    const int64_t row = problem.residual_row == 0 ? problem.result_row : problem.residual_row;
    check(lt.layout_create(&residual, type, problem.n, problem.m, row), "cublasLtMatrixLayoutCreate");
  }
  Plan(const Plan&) = delete;
  Plan& operator=(const Plan&) = delete;
  ~Plan() {
    const auto& lt = cublaslt::library();
    for (auto each : {weight, x, result, residual}) {
      if (each != nullptr) lt.layout_destroy(each);
    }
    if (descriptor != nullptr) lt.descriptor_destroy(descriptor);
  }

  template <typename T>
  void set(int attribute, const T& value) {
    check(cublaslt::library().descriptor_set(descriptor, attribute, &value, sizeof(value)),
          "cublasLtMatmulDescSetAttribute");
  }

  cublaslt::Descriptor descriptor = nullptr;
  cublaslt::Layout weight = nullptr, x = nullptr, result = nullptr, residual = nullptr;
  std::vector<cublaslt::Found> found;
};

// One handle per device, and one plan per problem, for the life of the process.
struct State {
  std::mutex mutex;
  std::map<int64_t, cublaslt::Handle> handles;
  std::map<Problem, std::unique_ptr<Plan>> plans;
};

State& state() {
  // Never destroyed: at exit the library may be gone before this.
  static State* const instance = new State;
  return *instance;
}

cublaslt::Handle handle(int64_t device) {
  auto& known = state().handles[device];
  if (known == nullptr) check(cublaslt::library().create(&known), "cublasLtCreate");
  return known;
}

std::vector<cublaslt::Found> rank(const Problem& problem, const Plan& plan) {
  const auto& lt = cublaslt::library();
  cublaslt::Preference preference = nullptr;
  check(lt.preference_create(&preference), "cublasLtMatmulPreferenceCreate");
  std::array<cublaslt::Found, kWanted> found{};
  int count = 0;
  auto set = [&](int attribute, auto value) {
    check(lt.preference_set(preference, attribute, &value, sizeof(value)), "cublasLtMatmulPreferenceSetAttribute");
  };
  set(cublaslt::kMaxWorkspace, kWorkspaceLimit);
  set(cublaslt::kReductionSchemes, cublaslt::kReductionsInF32);
  set(cublaslt::kAlignmentA, problem.weight_alignment);
  set(cublaslt::kAlignmentB, problem.x_alignment);
  set(cublaslt::kAlignmentC, problem.residual_alignment);
  set(cublaslt::kAlignmentD, problem.result_alignment);
  const int status = lt.heuristic(handle(problem.device), plan.descriptor, plan.weight, plan.x, plan.residual,
                                  plan.result, preference, kWanted, found.data(), &count);
  lt.preference_destroy(preference);
  // A status that is not success means that there is no kernel for the problem.
  std::vector<cublaslt::Found> usable;
  for (int index = 0; status == 0 && index < count; ++index) {
    if (found[index].status == 0 && found[index].workspace <= kWorkspaceLimit) usable.push_back(found[index]);
  }
  return usable;
}

// The plan for the problem, its bias pointer set to `bias`. Call with the mutex held.
Plan& planned(const Problem& problem, const void* bias) {
  auto& known = state().plans[problem];
  if (known == nullptr) {
    auto fresh = std::make_unique<Plan>(problem, bias);
    fresh->found = rank(problem, *fresh);
    known = std::move(fresh);
  } else if (bias != nullptr) {
    known->set(cublaslt::kBiasPointer, bias);
  }
  return *known;
}

uint32_t alignment(const void* pointer) {
  const auto address = reinterpret_cast<uintptr_t>(pointer);
  uint32_t result = 256;
  while (address % result != 0) result /= 2;
  return result;
}

const void* pointer(const std::optional<Tensor>& tensor) {
  return tensor.has_value() ? tensor->const_data_ptr() : nullptr;
}

// Elements from one row to the next; a single row's stride means nothing and may be anything.
int64_t row_stride(const Tensor& matrix) { return matrix.size(0) == 1 ? matrix.size(1) : matrix.stride(0); }

// Whether the elements of a row lie side by side; a single one does, whatever its stride.
bool is_dense(const Tensor& matrix) { return matrix.size(1) == 1 || matrix.stride(1) == 1; }

Problem described(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias,
                  const std::optional<Tensor>& residual, int64_t activation, const void* result,
                  int64_t result_row) {
  const auto type = x.scalar_type();
  STD_TORCH_CHECK(type == ScalarType::Half || type == ScalarType::BFloat16, "x: expected f16 or bf16");
  STD_TORCH_CHECK(x.dim() == 2 && weight.dim() == 2 && x.size(1) == weight.size(1),
                  "x, weight: expected [M, K] and [N, K]");
  STD_TORCH_CHECK(is_dense(x) && is_dense(weight), "x, weight: expected rows without gaps");
  STD_TORCH_CHECK(weight.scalar_type() == type, "weight: expected x's dtype");
  Problem problem{};
  problem.device = x.get_device_index();
  problem.m = x.size(0);
  problem.n = weight.size(0);
  problem.k = x.size(1);
  problem.x_row = row_stride(x);
  problem.weight_row = row_stride(weight);
  problem.result_row = result_row;
  problem.type = type == ScalarType::Half ? cublaslt::kF16 : cublaslt::kBF16;
  problem.epilogue = activation == kGeluTanh ? cublaslt::kGeluTanh : 0;
  if (bias.has_value()) {
    STD_TORCH_CHECK(bias->dim() == 1 && bias->size(0) == problem.n && bias->is_contiguous() &&
                        bias->scalar_type() == type,
                    "bias: expected [N], dense, of x's dtype");
    problem.epilogue |= cublaslt::kBias;
  }
  if (problem.epilogue == 0) problem.epilogue = cublaslt::kPlain;
  if (residual.has_value()) {
    STD_TORCH_CHECK(residual->dim() == 2 && residual->size(0) == problem.m && residual->size(1) == problem.n &&
                        is_dense(*residual) && residual->scalar_type() == type,
                    "residual: expected [M, N] of x's dtype, rows without gaps");
    problem.residual_row = row_stride(*residual);
  }
  problem.x_alignment = alignment(x.const_data_ptr());
  problem.weight_alignment = alignment(weight.const_data_ptr());
  problem.bias_alignment = bias.has_value() ? alignment(pointer(bias)) : 0;
  problem.result_alignment = alignment(result);
  problem.residual_alignment = residual.has_value() ? alignment(pointer(residual)) : problem.result_alignment;
  return problem;
}

// How many algorithms there are to choose from, 0 where cuBLASLt has none. The result's rows are `row` elements apart, and
// it is taken to be aligned as torch aligns a new tensor.
int64_t linear_algorithms(const Tensor x, const Tensor weight, const std::optional<Tensor> bias,
                          const std::optional<Tensor> residual, int64_t activation, int64_t row) {
  if (!cublaslt::library().complete) return 0;
  const OnDeviceOf here(x);
  const Problem problem = described(x, weight, bias, residual, activation, nullptr, row);
  const std::lock_guard<std::mutex> lock(state().mutex);
  return static_cast<int64_t>(planned(problem, pointer(bias)).found.size());
}

// result: [M, N], rows without gaps. An algorithm beyond those there are counts as the first: a choice kept on disk may
// come from another cuBLASLt.
void linear(const Tensor x, const Tensor weight, const std::optional<Tensor> bias, const std::optional<Tensor> residual,
            Tensor result, int64_t activation, int64_t algorithm) {
  STD_TORCH_CHECK(cublaslt::library().complete, "cuBLASLt is not loaded and not on the loader's path");
  STD_TORCH_CHECK(result.dim() == 2 && result.size(0) == x.size(0) && result.size(1) == weight.size(0) &&
                      is_dense(result) && result.scalar_type() == x.scalar_type(),
                  "result: expected [M, N] of x's dtype, rows without gaps");
  const OnDeviceOf here(x);
  const Problem problem =
      described(x, weight, bias, residual, activation, result.const_data_ptr(), row_stride(result));
  const std::lock_guard<std::mutex> lock(state().mutex);
  Plan& plan = planned(problem, pointer(bias));
  STD_TORCH_CHECK(!plan.found.empty(), "cuBLASLt has no algorithm for ", problem.m, " x ", problem.n, " x ", problem.k);
  const auto index = static_cast<size_t>(algorithm);
  const auto& chosen = plan.found[index < plan.found.size() ? index : 0];
  std::optional<Tensor> workspace;
  if (chosen.workspace > 0) workspace = scratch(x, static_cast<int64_t>(chosen.workspace));
  const float alpha = 1, beta = residual.has_value() ? 1 : 0;
  const void* const c = residual.has_value() ? residual->const_data_ptr() : result.const_data_ptr();
  check(cublaslt::library().matmul(handle(here.index), plan.descriptor, &alpha, weight.const_data_ptr(), plan.weight,
                                   x.const_data_ptr(), plan.x, &beta, c, plan.residual, result.mutable_data_ptr(),
                                   plan.result, &chosen.algorithm,
                                   workspace.has_value() ? workspace->mutable_data_ptr() : nullptr, chosen.workspace,
                                   here.stream),
        "cublasLtMatmul");
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(rewriter_cuda, library) {
  library.def(
      "linear_algorithms(Tensor x, Tensor weight, Tensor? bias, Tensor? residual, int activation, int row) -> int");
  library.def(
      "linear(Tensor x, Tensor weight, Tensor? bias, Tensor? residual, Tensor(a!) result, int activation, "
      "int algorithm) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(rewriter_cuda, CUDA, library) {
  library.impl("linear_algorithms", TORCH_BOX(&linear_algorithms));
  library.impl("linear", TORCH_BOX(&linear));
}

}  // namespace rewriter
