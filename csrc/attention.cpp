// Attention on Hopper: what the kernel in attention.cu is told, and how it is launched.

#include "attention.h"
#include "launch.h"
#include "runtime.h"
#include "tensor_map.h"

#include <cmath>

namespace rewriter {
namespace {

using attending::Kernel;
using attending::Work;

void require(bool condition, const char* what) { STD_TORCH_CHECK(condition, what); }

// [B, S, H, D] in boxes of so many rows of one head, each with zeros up to the pitch of shared memory.
CUtensorMap heads_of(const Tensor& x, int rows) {
  return described<5>(x, {x.size(3), x.size(1), x.size(2), x.size(0), 1},
                      {1, x.stride(1), x.stride(2), x.stride(0), x.stride(0)}, {attending::kPitch, rows, 1, 1, 1},
                      {1, 1, 1, 1, 1});
}

// y = softmax(q @ k.T * scale) @ v for each head. q: [B, S, H, D], k, v: [B, T, H, D] with dense rows of D elements that
// start at multiples of 16 bytes, y: [B, S, H, D], dense; D is 40 or 64, scale positive. groups: of 64 queries in a block.
void attention(const Tensor q, const Tensor k, const Tensor v, Tensor y, double scale, int64_t groups) {
  const auto type = q.scalar_type();
  require(type == ScalarType::Half || type == ScalarType::BFloat16, "q: expected f16 or bf16");
  require(q.dim() == 4 && k.dim() == 4 && v.dim() == 4 && y.dim() == 4, "q, k, v, y: expected four dimensions");
  require(k.size(1) > 0 && k.size(1) == v.size(1), "k, v: expected as many rows, at least one");
  require(scale > 0 && std::isfinite(scale), "scale: expected a positive number");
  const Kernel kernel = attending::kernel(static_cast<int>(q.size(3)), static_cast<int>(groups),
                                          type == ScalarType::Half);
  require(kernel.address != nullptr, "q, groups: expected heads of 40 or 64 elements, and 2 or 3 groups");
  const OnDeviceOf here(q);
  Work work{};
  work.queries = static_cast<int>(q.size(1));
  work.keys = static_cast<int>(k.size(1));
  work.heads = static_cast<int>(q.size(2));
  work.tiles_of_head = (work.queries + kernel.queries - 1) / kernel.queries;
  work.tiles = work.tiles_of_head * work.heads * static_cast<int>(q.size(0));
  work.scale = static_cast<float>(scale * 1.4426950408889634);
  work.result = y.mutable_data_ptr();
  CUtensorMap queries = heads_of(q, kernel.queries), keys = heads_of(k, attending::kKeys);
  CUtensorMap values = heads_of(v, attending::kKeys);
  void* arguments[] = {&queries, &keys, &values, &work};
  Launch launch(1, kernel.threads, kernel.shared, here.stream);
  launch_clusters(launch, kernel.address, work.tiles, false, arguments, "attention on Hopper");
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(rewriter_cuda, library) {
  library.def("attention(Tensor q, Tensor k, Tensor v, Tensor(a!) y, float scale, int groups) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(rewriter_cuda, CUDA, library) { library.impl("attention", TORCH_BOX(&attention)); }

}  // namespace rewriter
