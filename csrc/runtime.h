// What every kernel needs from torch's stable ABI: the tensor's device made current, its stream, errors as exceptions.
#pragma once

#include <cuda_runtime.h>

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

namespace rewriter {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline void check(cudaError_t status, const char* what) {
  STD_TORCH_CHECK(status == cudaSuccess, what, ": ", cudaGetErrorString(status));
}

// Makes the tensor's device current while it lives. `stream`: the one that torch runs this thread's kernels on.
class OnDeviceOf {
 public:
  explicit OnDeviceOf(const Tensor& tensor) : index(tensor.get_device_index()), guard_(index) {
    void* current = nullptr;
    STD_TORCH_CHECK(aoti_torch_get_current_cuda_stream(index, &current) == 0, "torch names no CUDA stream");
    stream = static_cast<cudaStream_t>(current);
  }

  const int32_t index;
  cudaStream_t stream = nullptr;

 private:
  torch::stable::accelerator::DeviceGuard guard_;
};

// Bytes from torch's own allocator: of this stream alone, given back when the last reference goes, and inside a
// captured graph part of the graph's pool.
inline Tensor scratch(const Tensor& like, int64_t bytes) {
  return torch::stable::new_empty(like, {bytes}, ScalarType::Byte);
}

// The smallest whole number that is not below value / by.
template <typename Value, typename By>
constexpr auto ceiling(Value value, By by) {
  return (value + by - 1) / by;
}

}  // namespace rewriter
