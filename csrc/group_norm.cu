// Group normalisation of tokens [N, P, C], channels innermost, with what is added before it and the SiLU after it.
//
// Statistics: each thread sums deviations from the first value that it sees, parts are merged by Chan, Golub and
// LeVeque's formula, so that a large mean costs no digits.
//
// Two ways. `resident`: a cluster of blocks holds a few groups of one sample in shared memory, so that the tensor is
// read once; needs Hopper. `split`: one launch for the statistics of parts, another that merges them and normalises.

#include "runtime.h"

#include <cooperative_groups.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <algorithm>
#include <optional>
#include <tuple>

namespace rewriter {
namespace {

namespace cg = cooperative_groups;

constexpr int kThreads = 512;
constexpr int kMaxCluster = 16;
constexpr int kMaxGroups = 64;  // of one chunk of channels

template <typename T>
struct alignas(16) Vector {
  static constexpr int kSize = 16 / sizeof(T);
  T values[kSize];
};

__device__ inline float wide(float x) { return x; }
__device__ inline float wide(__half x) { return __half2float(x); }
__device__ inline float wide(__nv_bfloat16 x) { return __bfloat162float(x); }
template <typename T>
__device__ inline T narrow(float x);
template <>
__device__ inline float narrow<float>(float x) { return x; }
template <>
__device__ inline __half narrow<__half>(float x) { return __float2half_rn(x); }
template <>
__device__ inline __nv_bfloat16 narrow<__nv_bfloat16>(float x) { return __float2bfloat16_rn(x); }

// A per-channel parameter, of x's type or in float.
struct Parameter {
  const void* data;
  bool is_float;
};

template <typename T>
__device__ inline float at(const Parameter& parameter, int64_t index) {
  return parameter.is_float ? static_cast<const float*>(parameter.data)[index]
                            : wide(static_cast<const T*>(parameter.data)[index]);
}

struct Arguments {
  const void* x;
  int64_t x_sample, x_row;
  Parameter channel_bias;
  const void* addend;  // one row of it for every `rows_per_addend` rows of x
  int64_t addend_sample, addend_row;
  int rows_per_addend;
  void* total;
  void* y;
  Parameter weight, bias;
  int rows, channels, groups, group;  // group: channels of one
  int width;                          // channels of a chunk: whole groups
  int rows_per_block;
  float eps;
  bool silu;
};

struct Statistics {
  float mean, squares, count;
};

// What one thread walks: one vector of channels, every lanes-th row of a range.
struct Place {
  int vectors, lanes, vector, lane;

  __device__ explicit Place(int width, int size)
      : vectors(width / size), lanes(blockDim.x / vectors), vector(threadIdx.x % vectors), lane(threadIdx.x / vectors) {}

  __device__ bool idle() const { return lane >= lanes; }
};

// x + channel bias + addend, rounded as the sum is where it is kept.
template <typename T>
struct Source {
  static constexpr int kSize = Vector<T>::kSize;

  __device__ Source(const Arguments& a, int64_t sample, int64_t channel) : a(a) {
    x = static_cast<const T*>(a.x) + sample * a.x_sample + channel;
    addend = a.addend == nullptr ? nullptr : static_cast<const T*>(a.addend) + sample * a.addend_sample + channel;
    total = a.total == nullptr ? nullptr
                               : static_cast<T*>(a.total) + (sample * a.rows) * a.channels + channel;
    summed = addend != nullptr || a.channel_bias.data != nullptr;
#pragma unroll
    for (int j = 0; j < kSize; ++j) {
      shift[j] = a.channel_bias.data == nullptr ? 0.0f : at<T>(a.channel_bias, channel + j);
    }
  }

  __device__ Vector<T> load(int row) const {
    Vector<T> value = *reinterpret_cast<const Vector<T>*>(x + row * a.x_row);
    if (summed) {
      Vector<T> more;
      if (addend != nullptr) {
        const int64_t part = a.rows_per_addend == 1 ? row : row / a.rows_per_addend;
        more = *reinterpret_cast<const Vector<T>*>(addend + part * a.addend_row);
      }
#pragma unroll
      for (int j = 0; j < kSize; ++j) {
        float sum = wide(value.values[j]) + shift[j];
        if (addend != nullptr) sum += wide(more.values[j]);
        value.values[j] = narrow<T>(sum);
      }
    }
    return value;
  }

  __device__ void keep(int row, const Vector<T>& value) const {
    if (total != nullptr) *reinterpret_cast<Vector<T>*>(total + int64_t{row} * a.channels) = value;
  }

  const Arguments& a;
  const T* x;
  const T* addend;
  T* total;
  bool summed;
  float shift[kSize];
};

// Sums of deviations from the first value, for each channel of a vector.
template <int kSize>
struct Sums {
  float first[kSize], sum[kSize], squares[kSize];
  int count = 0;

  template <typename T>
  __device__ void add(const Vector<T>& value) {
#pragma unroll
    for (int j = 0; j < kSize; ++j) {
      const float x = wide(value.values[j]);
      if (count == 0) {
        first[j] = x;
        sum[j] = squares[j] = 0.0f;
      }
      const float deviation = x - first[j];
      sum[j] += deviation;
      squares[j] += deviation * deviation;
    }
    ++count;
  }
};

__device__ inline float warp_sum(float value) {
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) value += __shfl_xor_sync(0xffffffffu, value, offset);
  return value;
}

// Merges `entries` parts, read by `get`, with all lanes of a warp.
template <typename Get>
__device__ Statistics merge(int entries, Get get) {
  const int lane = threadIdx.x % 32;
  float count = 0.0f, weighted = 0.0f;
  for (int e = lane; e < entries; e += 32) {
    const Statistics part = get(e);
    count += part.count;
    weighted += part.count * part.mean;
  }
  count = warp_sum(count);
  weighted = warp_sum(weighted);
  const float mean = count > 0.0f ? weighted / count : 0.0f;
  float squares = 0.0f;
  for (int e = lane; e < entries; e += 32) {
    const Statistics part = get(e);
    const float deviation = part.count > 0.0f ? part.mean - mean : 0.0f;
    squares += part.squares + part.count * deviation * deviation;
  }
  return {mean, warp_sum(squares), count};
}

// The statistics of each group of a chunk over this block's rows, in `result`. `means`, `squares`: [lanes, width].
template <int kSize>
__device__ void block_statistics(
    const Arguments& a, const Place& place, const Sums<kSize>& sums, int rows, float* means, float* squares,
    Statistics* result) {
  if (!place.idle()) {
#pragma unroll
    for (int j = 0; j < kSize; ++j) {
      const int index = place.lane * a.width + place.vector * kSize + j;
      const float n = static_cast<float>(max(sums.count, 1));
      means[index] = sums.count == 0 ? 0.0f : sums.first[j] + sums.sum[j] / n;
      squares[index] = sums.count == 0 ? 0.0f : sums.squares[j] - sums.sum[j] * (sums.sum[j] / n);
    }
  }
  __syncthreads();
  const int warps = blockDim.x / 32, warp = threadIdx.x / 32;
  for (int g = warp; warp < warps && g < a.width / a.group; g += warps) {
    const Statistics found = merge(place.lanes * a.group, [&](int e) {
      const int lane = e / a.group, index = lane * a.width + g * a.group + e % a.group;
      const int count = rows > lane ? (rows - lane + place.lanes - 1) / place.lanes : 0;
      return Statistics{means[index], squares[index], static_cast<float>(count)};
    });
    if (threadIdx.x % 32 == 0) result[g] = found;
  }
}

// y = silu((value - mean) * scale + shift) for one vector of channels.
template <typename T>
struct Normaliser {
  static constexpr int kSize = Vector<T>::kSize;

  __device__ Normaliser(const Arguments& a, const Statistics* groups, int vector, int64_t channel) : silu(a.silu) {
#pragma unroll
    for (int j = 0; j < kSize; ++j) {
      const Statistics& group = groups[(vector * kSize + j) / a.group];
      mean[j] = group.mean;
      scale[j] = rsqrtf(group.squares / group.count + a.eps);
      if (a.weight.data != nullptr) scale[j] *= at<T>(a.weight, channel + j);
      shift[j] = a.bias.data == nullptr ? 0.0f : at<T>(a.bias, channel + j);
    }
  }

  __device__ Vector<T> operator()(const Vector<T>& value) const {
    Vector<T> result;
#pragma unroll
    for (int j = 0; j < kSize; ++j) {
      float y = (wide(value.values[j]) - mean[j]) * scale[j] + shift[j];
      if (silu) y = sizeof(T) == 4 ? y / (1.0f + expf(-y)) : __fdividef(y, 1.0f + __expf(-y));
      result.values[j] = narrow<T>(y);
    }
    return result;
  }

  bool silu;
  float mean[kSize], scale[kSize], shift[kSize];
};

template <typename T>
__global__ void __launch_bounds__(kThreads) resident(const Arguments a) {
#if __CUDA_ARCH__ >= 900
  constexpr int kSize = Vector<T>::kSize;
  extern __shared__ __align__(16) unsigned char memory[];
  __shared__ Statistics own[kMaxGroups], whole[kMaxGroups];
  auto cluster = cg::this_cluster();
  const int rank = cluster.block_rank(), blocks = cluster.num_blocks();
  const int chunk = blockIdx.x / blocks;
  const Place place(a.width, kSize);
  float* means = reinterpret_cast<float*>(memory);
  float* squares = means + place.lanes * a.width;
  auto* tile = reinterpret_cast<Vector<T>*>(squares + place.lanes * a.width);
  const int first = rank * a.rows_per_block;
  const int rows = max(0, min(a.rows - first, a.rows_per_block));
  const int64_t channel = int64_t{chunk} * a.width + place.vector * kSize;
  const Source<T> source(a, blockIdx.y, place.idle() ? 0 : channel);
  Sums<kSize> sums;
  if (!place.idle()) {
#pragma unroll 4
    for (int row = place.lane; row < rows; row += place.lanes) {
      const Vector<T> value = source.load(first + row);
      source.keep(first + row, value);
      tile[row * place.vectors + place.vector] = value;
      sums.add(value);
    }
  }
  block_statistics(a, place, sums, rows, means, squares, own);
  cluster.sync();
  const int warps = blockDim.x / 32, warp = threadIdx.x / 32;
  for (int g = warp; warp < warps && g < a.width / a.group; g += warps) {
    const Statistics found = merge(blocks, [&](int e) { return cluster.map_shared_rank(own, e)[g]; });
    if (threadIdx.x % 32 == 0) whole[g] = found;
  }
  // Nobody may leave while another still reads its statistics.
  cluster.sync();
  if (place.idle()) return;
  const Normaliser<T> normalise(a, whole, place.vector, channel);
  T* y = static_cast<T*>(a.y) + (int64_t{blockIdx.y} * a.rows + first) * a.channels + channel;
#pragma unroll 4
  for (int row = place.lane; row < rows; row += place.lanes) {
    *reinterpret_cast<Vector<T>*>(y + int64_t{row} * a.channels) = normalise(tile[row * place.vectors + place.vector]);
  }
#endif
}

// parts: [N, groups, gridDim.x].
template <typename T>
__global__ void __launch_bounds__(kThreads) part_statistics(const Arguments a, Statistics* parts) {
  constexpr int kSize = Vector<T>::kSize;
  extern __shared__ __align__(16) unsigned char memory[];
  __shared__ Statistics own[kMaxGroups];
  const Place place(a.width, kSize);
  float* means = reinterpret_cast<float*>(memory);
  float* squares = means + place.lanes * a.width;
  const int first = blockIdx.x * a.rows_per_block;
  const int rows = max(0, min(a.rows - first, a.rows_per_block));
  const int64_t channel = int64_t{blockIdx.z} * a.width + place.vector * kSize;
  const Source<T> source(a, blockIdx.y, place.idle() ? 0 : channel);
  Sums<kSize> sums;
  if (!place.idle()) {
#pragma unroll 4
    for (int row = place.lane; row < rows; row += place.lanes) {
      const Vector<T> value = source.load(first + row);
      source.keep(first + row, value);
      sums.add(value);
    }
  }
  block_statistics(a, place, sums, rows, means, squares, own);
  __syncthreads();
  const int held = a.width / a.group;
  if (threadIdx.x < held) {
    const int64_t group = blockIdx.z * held + threadIdx.x;
    parts[(int64_t{blockIdx.y} * a.groups + group) * gridDim.x + blockIdx.x] = own[threadIdx.x];
  }
}

template <typename T>
__global__ void __launch_bounds__(kThreads) normalise_parts(const Arguments a, const Statistics* parts) {
  constexpr int kSize = Vector<T>::kSize;
  __shared__ Statistics whole[kMaxGroups];
  const Place place(a.width, kSize);
  const int held = a.width / a.group, warps = blockDim.x / 32, warp = threadIdx.x / 32;
  for (int g = warp; warp < warps && g < held; g += warps) {
    const int64_t group = int64_t{blockIdx.y} * a.groups + blockIdx.z * held + g;
    const Statistics found = merge(gridDim.x, [&](int e) { return parts[group * gridDim.x + e]; });
    if (threadIdx.x % 32 == 0) whole[g] = found;
  }
  __syncthreads();
  if (place.idle()) return;
  // Backwards: of a tensor larger than the cache, the end was read last.
  const int part = gridDim.x - 1 - blockIdx.x;
  const int first = part * a.rows_per_block;
  const int rows = max(0, min(a.rows - first, a.rows_per_block));
  const int64_t channel = int64_t{blockIdx.z} * a.width + place.vector * kSize;
  const Source<T> source(a, blockIdx.y, channel);
  const Normaliser<T> normalise(a, whole, place.vector, channel);
  T* y = static_cast<T*>(a.y) + (int64_t{blockIdx.y} * a.rows + first) * a.channels + channel;
#pragma unroll 4
  for (int row = place.lane; row < rows; row += place.lanes) {
    *reinterpret_cast<Vector<T>*>(y + int64_t{row} * a.channels) = normalise(source.load(first + row));
  }
}

int threads_for(const Arguments& a, int size) {
  const int vectors = a.width / size;
  const int lanes = std::max(1, std::min(kThreads / vectors, a.rows_per_block));
  return (vectors * lanes + 31) / 32 * 32;
}

// Bytes for the statistics of each lane and channel.
int statistics_bytes(const Arguments& a, int size) {
  const int vectors = a.width / size, lanes = threads_for(a, size) / vectors;
  return 2 * lanes * a.width * static_cast<int>(sizeof(float));
}

template <typename T>
void run_resident(const Arguments& a, int samples, int cluster, cudaStream_t stream) {
  constexpr int kSize = Vector<T>::kSize;
  const int bytes = statistics_bytes(a, kSize) + a.rows_per_block * a.width * static_cast<int>(sizeof(T));
  check(cudaFuncSetAttribute(resident<T>, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes), "shared memory");
  if (cluster > 8) {
    check(cudaFuncSetAttribute(resident<T>, cudaFuncAttributeNonPortableClusterSizeAllowed, 1), "cluster size");
  }
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(cluster * (a.channels / a.width), samples);
  config.blockDim = dim3(threads_for(a, kSize));
  config.dynamicSmemBytes = bytes;
  config.stream = stream;
  cudaLaunchAttribute attribute = {};
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim.x = cluster;
  attribute.val.clusterDim.y = attribute.val.clusterDim.z = 1;
  config.attrs = &attribute;
  config.numAttrs = 1;
  check(cudaLaunchKernelEx(&config, resident<T>, a), "group norm in shared memory");
}

template <typename T>
void run_split(const Arguments& a, int samples, int splits, const Tensor& like, cudaStream_t stream) {
  constexpr int kSize = Vector<T>::kSize;
  const Tensor held = scratch(like, int64_t{samples} * a.groups * splits * sizeof(Statistics));
  auto* parts = static_cast<Statistics*>(held.mutable_data_ptr());
  const dim3 grid(splits, samples, a.channels / a.width);
  const int threads = threads_for(a, kSize), bytes = statistics_bytes(a, kSize);
  part_statistics<T><<<grid, threads, bytes, stream>>>(a, parts);
  check(cudaGetLastError(), "statistics of a group norm");
  Arguments again = a;
  if (a.total != nullptr) {
    again.x = a.total;
    again.x_sample = int64_t{a.rows} * a.channels;
    again.x_row = a.channels;
    again.channel_bias.data = again.addend = nullptr;
    again.total = nullptr;
  }
  normalise_parts<T><<<grid, threads, 0, stream>>>(again, parts);
  check(cudaGetLastError(), "group norm");
}

Parameter parameter(const std::optional<Tensor>& tensor) {
  if (!tensor.has_value()) return {nullptr, false};
  return {tensor->data_ptr(), tensor->scalar_type() == ScalarType::Float};
}

// x: [N, P, C], the last dimension dense, rows and samples 16-byte aligned. addend: [N, P / rows_per_addend, C],
// likewise. channel_bias, weight, bias: [C] of x's type or float. width: channels of a chunk, whole groups and whole
// vectors. cluster: blocks that share a chunk in shared memory, or 0 for two launches of `splits` parts.
std::tuple<Tensor, Tensor> group_norm(
    const Tensor& x, std::optional<Tensor> channel_bias, std::optional<Tensor> addend, std::optional<Tensor> weight,
    std::optional<Tensor> bias, int64_t groups, double eps, bool silu, bool keep_sum, int64_t width, int64_t cluster,
    int64_t splits) {
  const int64_t samples = x.size(0), rows = x.size(1), channels = x.size(2);
  const OnDeviceOf device(x);
  Tensor y = torch::stable::new_empty(x, {samples, rows, channels}, x.scalar_type());
  Tensor total = keep_sum ? torch::stable::new_empty(x, {samples, rows, channels}, x.scalar_type()) : y;
  Arguments a = {};
  a.x = x.data_ptr();
  a.x_sample = x.stride(0);
  a.x_row = x.stride(1);
  a.channel_bias = parameter(channel_bias);
  if (addend.has_value()) {
    a.addend = addend->data_ptr();
    a.addend_sample = addend->size(0) == 1 ? 0 : addend->stride(0);
    a.addend_row = addend->stride(1);
    a.rows_per_addend = static_cast<int>(rows / addend->size(1));
  }
  a.total = keep_sum ? total.mutable_data_ptr() : nullptr;
  a.y = y.mutable_data_ptr();
  a.weight = parameter(weight);
  a.bias = parameter(bias);
  a.rows = static_cast<int>(rows);
  a.channels = static_cast<int>(channels);
  a.groups = static_cast<int>(groups);
  a.group = static_cast<int>(channels / groups);
  a.width = static_cast<int>(width);
  a.eps = static_cast<float>(eps);
  a.silu = silu;
  const int64_t blocks = cluster > 0 ? cluster : splits;
  a.rows_per_block = static_cast<int>((rows + blocks - 1) / blocks);
  const int64_t size = x.scalar_type() == ScalarType::Float ? 4 : 8;
  STD_TORCH_CHECK(
      width > 0 && channels % width == 0 && width % a.group == 0 && width % size == 0 && width / size <= kThreads &&
          width / a.group <= kMaxGroups && cluster <= kMaxCluster && blocks > 0,
      "group_norm: a chunk of ", width, " channels and ", blocks, " blocks do not fit ", channels, " channels in ",
      groups, " groups");
  auto run = [&](auto zero) {
    using T = decltype(zero);
    if (cluster > 0) {
      run_resident<T>(a, static_cast<int>(samples), static_cast<int>(cluster), device.stream);
    } else {
      run_split<T>(a, static_cast<int>(samples), static_cast<int>(splits), x, device.stream);
    }
  };
  switch (x.scalar_type()) {
    case ScalarType::Half: run(__half{}); break;
    case ScalarType::BFloat16: run(__nv_bfloat16{}); break;
    case ScalarType::Float: run(0.0f); break;
    default: STD_TORCH_CHECK(false, "group_norm: expected f16, bf16 or f32");
  }
  return {y, total};
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(rewriter_cuda, library) {
  library.def(
      "group_norm(Tensor x, Tensor? channel_bias, Tensor? addend, Tensor? weight, Tensor? bias, int groups, "
      "float eps, bool silu, bool keep_sum, int width, int cluster, int splits) -> (Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(rewriter_cuda, CUDA, library) { library.impl("group_norm", TORCH_BOX(&group_norm)); }

}  // namespace rewriter
