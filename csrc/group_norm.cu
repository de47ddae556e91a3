// Group normalisation of tokens [N, P, C], channels innermost, with what is added before it and the SiLU after it.
//
// Statistics: a block sums deviations from its first row, and blocks are merged by Chan, Golub and LeVeque's formula, so
// that a large mean costs no digits.
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
#include <type_traits>

namespace rewriter {
namespace {

namespace cg = cooperative_groups;

constexpr int kThreads = 256;
constexpr int kBlocks = 2;  // on a multiprocessor at least, so that one computes while another loads
constexpr int kMaxCluster = 16;
constexpr int kBatch = 4;  // rows that a thread loads before it looks at the first
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

// x, or (kSum) x + channel bias + addend, rounded as the sum is where it is kept.
template <typename T, bool kSum>
struct Source {
  static constexpr int kSize = Vector<T>::kSize;

  // What was loaded of a row, before anything waits for it.
  struct Raw {
    Vector<T> x, addend;
  };

  __device__ Source(const Arguments& a, int64_t sample, int64_t channel) : a(a) {
    x = static_cast<const T*>(a.x) + sample * a.x_sample + channel;
    addend = a.addend == nullptr ? nullptr : static_cast<const T*>(a.addend) + sample * a.addend_sample + channel;
    total = a.total == nullptr ? nullptr
                               : static_cast<T*>(a.total) + (sample * a.rows) * a.channels + channel;
    if constexpr (kSum) {
#pragma unroll
      for (int j = 0; j < kSize; ++j) {
        shift[j] = a.channel_bias.data == nullptr ? 0.0f : at<T>(a.channel_bias, channel + j);
      }
    }
  }

  __device__ Raw load(int row) const {
    Raw raw;
    raw.x = *reinterpret_cast<const Vector<T>*>(x + row * a.x_row);
    if constexpr (kSum) {
      if (addend != nullptr) {
        const int64_t part = a.rows_per_addend == 1 ? row : row / a.rows_per_addend;
        raw.addend = *reinterpret_cast<const Vector<T>*>(addend + part * a.addend_row);
      } else {
        raw.addend = {};
      }
    }
    return raw;
  }

  __device__ Vector<T> value(Raw raw) const {
    if constexpr (kSum) {
#pragma unroll
      for (int j = 0; j < kSize; ++j) {
        raw.x.values[j] = narrow<T>(wide(raw.x.values[j]) + shift[j] + wide(raw.addend.values[j]));
      }
    }
    return raw.x;
  }

  __device__ void keep(int row, const Vector<T>& value) const {
    if (total != nullptr) *reinterpret_cast<Vector<T>*>(total + int64_t{row} * a.channels) = value;
  }

  const Arguments& a;
  const T* x;
  const T* addend;
  T* total;
  float shift[kSum ? kSize : 1];
};

// Calls `visit(row, value)` for the rows of a block that fall to this thread. Several loads are under way at a time.
template <typename Source, typename Visit>
__device__ void each_row(const Source& source, const Place& place, int first, int rows, Visit visit) {
  for (int row = place.lane; row < rows; row += kBatch * place.lanes) {
    typename Source::Raw raw[kBatch];
#pragma unroll
    for (int b = 0; b < kBatch; ++b) {
      // Past the end the last row is read once more: a branch would wait for the loads before it.
      raw[b] = source.load(first + min(row + b * place.lanes, rows - 1));
    }
#pragma unroll
    for (int b = 0; b < kBatch; ++b) {
      const int at = row + b * place.lanes;
      if (at < rows) visit(at, source.value(raw[b]));
    }
  }
}

// Sums of deviations from the block's first row, for each channel of a vector.
template <int kSize>
struct Sums {
  float origin[kSize], sum[kSize], squares[kSize];

  template <typename T>
  __device__ explicit Sums(const Vector<T>& first) {
#pragma unroll
    for (int j = 0; j < kSize; ++j) {
      origin[j] = wide(first.values[j]);
      sum[j] = squares[j] = 0.0f;
    }
  }

  template <typename T>
  __device__ void add(const Vector<T>& value) {
#pragma unroll
    for (int j = 0; j < kSize; ++j) {
      const float deviation = wide(value.values[j]) - origin[j];
      sum[j] += deviation;
      squares[j] += deviation * deviation;
    }
  }
};

__device__ inline float warp_sum(float value) {
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) value += __shfl_xor_sync(0xffffffffu, value, offset);
  return value;
}

__device__ inline Statistics merged(const Statistics& one, const Statistics& other) {
  const float count = one.count + other.count;
  if (other.count == 0.0f) return one;
  const float delta = other.mean - one.mean, share = other.count / count;
  return {one.mean + delta * share, one.squares + other.squares + delta * delta * one.count * share, count};
}

// Merges `entries` parts, read by `get`, with all lanes of a warp.
template <typename Get>
__device__ Statistics merge(int entries, Get get) {
  Statistics own = {0.0f, 0.0f, 0.0f};
  for (int e = threadIdx.x % 32; e < entries; e += 32) own = merged(own, get(e));
  const float count = warp_sum(own.count);
  const float mean = warp_sum(own.count * own.mean) / count;
  const float deviation = own.count > 0.0f ? own.mean - mean : 0.0f;
  return {mean, warp_sum(own.squares + own.count * deviation * deviation), count};
}

// Floats of shared memory for the statistics of a block.
__host__ __device__ inline int statistics_floats(int lanes, int width) { return (2 * lanes + 2) * width; }

// The statistics of each group of a chunk over this block's rows, in `result`. `memory`: as `statistics_floats` says.
template <int kSize>
__device__ void block_statistics(
    const Arguments& a, const Place& place, const Sums<kSize>& mine, int rows, float* memory, Statistics* result) {
  const int width = a.width;
  float *sums = memory, *squares = sums + place.lanes * width, *means = squares + place.lanes * width;
  float* deviations = means + width;
  if (!place.idle()) {
    const int at = place.lane * width + place.vector * kSize;
#pragma unroll
    for (int j = 0; j < kSize; ++j) {
      sums[at + j] = mine.sum[j];
      squares[at + j] = mine.squares[j];
      if (place.lane == 0) means[place.vector * kSize + j] = mine.origin[j];
    }
  }
  __syncthreads();
  // Every thread adds up some lanes of a channel, in the place of the first of them.
  const int teams = max(1, min(static_cast<int>(blockDim.x) / width, place.lanes));
  for (int task = threadIdx.x; task < teams * width; task += blockDim.x) {
    const int channel = task % width, team = task / width;
    float sum = 0.0f, square = 0.0f;
#pragma unroll 4
    for (int lane = team; lane < place.lanes; lane += teams) {
      sum += sums[lane * width + channel];
      square += squares[lane * width + channel];
    }
    sums[team * width + channel] = sum;
    squares[team * width + channel] = square;
  }
  __syncthreads();
  const float count = static_cast<float>(rows);
  for (int channel = threadIdx.x; channel < width; channel += blockDim.x) {
    float sum = 0.0f, square = 0.0f;
    for (int team = 0; team < teams; ++team) {
      sum += sums[team * width + channel];
      square += squares[team * width + channel];
    }
    const float mean = rows > 0 ? sum / count : 0.0f;
    means[channel] += mean;
    deviations[channel] = square - sum * mean;
  }
  __syncthreads();
  const int warps = blockDim.x / 32, lane = threadIdx.x % 32;
  for (int g = threadIdx.x / 32; g < width / a.group; g += warps) {
    float sum = 0.0f;
    for (int c = lane; c < a.group; c += 32) sum += means[g * a.group + c];
    const float mean = warp_sum(sum) / a.group;
    float square = 0.0f;
    for (int c = lane; c < a.group; c += 32) {
      const float deviation = means[g * a.group + c] - mean;
      square += deviations[g * a.group + c] + count * deviation * deviation;
    }
    square = warp_sum(square);
    if (lane == 0) result[g] = rows > 0 ? Statistics{mean, square, count * a.group} : Statistics{0.0f, 0.0f, 0.0f};
  }
}

struct Moments {
  float mean, rstd;
};

__device__ inline Moments moments(const Statistics& group, float eps) {
  return {group.mean, rsqrtf(group.squares / group.count + eps)};
}

// The weight and the bias of one vector of channels, loaded before they are needed.
template <typename T>
struct Affine {
  static constexpr int kSize = Vector<T>::kSize;

  __device__ Affine(const Arguments& a, int64_t channel) {
#pragma unroll
    for (int j = 0; j < kSize; ++j) {
      scale[j] = a.weight.data == nullptr ? 1.0f : at<T>(a.weight, channel + j);
      shift[j] = a.bias.data == nullptr ? 0.0f : at<T>(a.bias, channel + j);
    }
  }

  float scale[kSize], shift[kSize];
};

// y = silu((value - mean) * scale + shift) for one vector of channels.
template <typename T>
struct Normaliser {
  static constexpr int kSize = Vector<T>::kSize;

  __device__ Normaliser(const Arguments& a, const Affine<T>& affine, const Moments* groups, int vector)
      : affine(affine), silu(a.silu) {
    int group = vector * kSize / a.group, member = vector * kSize % a.group;
#pragma unroll
    for (int j = 0; j < kSize; ++j) {
      mean[j] = groups[group].mean;
      this->affine.scale[j] *= groups[group].rstd;
      if (++member == a.group) {
        member = 0;
        ++group;
      }
    }
  }

  __device__ Vector<T> operator()(const Vector<T>& value) const {
    Vector<T> result;
#pragma unroll
    for (int j = 0; j < kSize; ++j) {
      float y = (wide(value.values[j]) - mean[j]) * affine.scale[j] + affine.shift[j];
      if (silu) y = sizeof(T) == 4 ? y / (1.0f + expf(-y)) : __fdividef(y, 1.0f + __expf(-y));
      result.values[j] = narrow<T>(y);
    }
    return result;
  }

  Affine<T> affine;
  bool silu;
  float mean[kSize];
};

template <typename T, bool kSum>
__global__ void __launch_bounds__(kThreads, kBlocks) resident(const Arguments a) {
#if __CUDA_ARCH__ >= 900
  constexpr int kSize = Vector<T>::kSize;
  extern __shared__ __align__(16) unsigned char memory[];
  __shared__ Statistics own[kMaxGroups];
  __shared__ Moments whole[kMaxGroups];
  auto cluster = cg::this_cluster();
  const int rank = cluster.block_rank(), blocks = cluster.num_blocks();
  const int chunk = blockIdx.x / blocks, held = a.width / a.group;
  const Place place(a.width, kSize);
  float* statistics = reinterpret_cast<float*>(memory);
  auto* tile = reinterpret_cast<Vector<T>*>(statistics + statistics_floats(place.lanes, a.width));
  const int first = rank * a.rows_per_block;
  const int rows = max(0, min(a.rows - first, a.rows_per_block));
  const int64_t channel = int64_t{chunk} * a.width + (place.idle() ? 0 : place.vector * kSize);
  const Source<T, kSum> source(a, blockIdx.y, channel);
  Sums<kSize> sums(rows > 0 ? source.value(source.load(first)) : Vector<T>{});
  if (!place.idle()) {
    each_row(source, place, first, rows, [&](int row, const Vector<T>& value) {
      source.keep(first + row, value);
      tile[row * place.vectors + place.vector] = value;
      sums.add(value);
    });
  }
  const Affine<T> affine(a, channel);
  block_statistics(a, place, sums, rows, statistics, own);
  if (blocks == 1) {
    __syncthreads();
    if (threadIdx.x < held) whole[threadIdx.x] = moments(own[threadIdx.x], a.eps);
    __syncthreads();
  } else {
    cluster.sync();
    for (int g = threadIdx.x / 32; g < held; g += blockDim.x / 32) {
      const Statistics found = merge(blocks, [&](int e) { return cluster.map_shared_rank(own, e)[g]; });
      if (threadIdx.x % 32 == 0) whole[g] = moments(found, a.eps);
    }
    __syncthreads();
    cluster.barrier_arrive();
  }
  if (!place.idle()) {
    const Normaliser<T> normalise(a, affine, whole, place.vector);
    T* y = static_cast<T*>(a.y) + (int64_t{blockIdx.y} * a.rows + first) * a.channels + channel;
#pragma unroll 4
    for (int row = place.lane; row < rows; row += place.lanes) {
      *reinterpret_cast<Vector<T>*>(y + int64_t{row} * a.channels) = normalise(tile[row * place.vectors + place.vector]);
    }
  }
  // Nobody may leave while another still reads its statistics.
  if (blocks > 1) cluster.barrier_wait();
#endif
}

// parts: [N, groups, gridDim.x].
template <typename T, bool kSum>
__global__ void __launch_bounds__(kThreads, kBlocks) part_statistics(const Arguments a, Statistics* parts) {
  constexpr int kSize = Vector<T>::kSize;
  extern __shared__ __align__(16) unsigned char memory[];
  __shared__ Statistics own[kMaxGroups];
  const Place place(a.width, kSize);
  const int first = blockIdx.x * a.rows_per_block;
  const int rows = max(0, min(a.rows - first, a.rows_per_block));
  const int64_t channel = int64_t{blockIdx.z} * a.width + (place.idle() ? 0 : place.vector * kSize);
  const Source<T, kSum> source(a, blockIdx.y, channel);
  Sums<kSize> sums(rows > 0 ? source.value(source.load(first)) : Vector<T>{});
  if (!place.idle()) {
    each_row(source, place, first, rows, [&](int row, const Vector<T>& value) {
      source.keep(first + row, value);
      sums.add(value);
    });
  }
  block_statistics(a, place, sums, rows, reinterpret_cast<float*>(memory), own);
  __syncthreads();
  const int held = a.width / a.group;
  if (threadIdx.x < held) {
    const int64_t group = blockIdx.z * held + threadIdx.x;
    parts[(int64_t{blockIdx.y} * a.groups + group) * gridDim.x + blockIdx.x] = own[threadIdx.x];
  }
}

template <typename T, bool kSum>
__global__ void __launch_bounds__(kThreads, kBlocks) normalise_parts(const Arguments a, const Statistics* parts) {
  constexpr int kSize = Vector<T>::kSize;
  __shared__ Moments whole[kMaxGroups];
  const Place place(a.width, kSize);
  const int64_t channel = int64_t{blockIdx.z} * a.width + (place.idle() ? 0 : place.vector * kSize);
  const Affine<T> affine(a, channel);
  const int held = a.width / a.group;
  for (int g = threadIdx.x / 32; g < held; g += blockDim.x / 32) {
    const int64_t group = int64_t{blockIdx.y} * a.groups + blockIdx.z * held + g;
    const Statistics found = merge(gridDim.x, [&](int e) { return parts[group * gridDim.x + e]; });
    if (threadIdx.x % 32 == 0) whole[g] = moments(found, a.eps);
  }
  __syncthreads();
  if (place.idle()) return;
  // Backwards: of a tensor larger than the cache, the end was read last.
  const int part = gridDim.x - 1 - blockIdx.x;
  const int first = part * a.rows_per_block;
  const int rows = max(0, min(a.rows - first, a.rows_per_block));
  const Source<T, kSum> source(a, blockIdx.y, channel);
  const Normaliser<T> normalise(a, affine, whole, place.vector);
  T* y = static_cast<T*>(a.y) + (int64_t{blockIdx.y} * a.rows + first) * a.channels + channel;
  each_row(source, place, first, rows, [&](int row, const Vector<T>& value) {
    *reinterpret_cast<Vector<T>*>(y + int64_t{row} * a.channels) = normalise(value);
  });
}

int threads_for(const Arguments& a, int size) {
  const int vectors = a.width / size;
  const int lanes = std::max(1, std::min(kThreads / vectors, a.rows_per_block));
  return (vectors * lanes + 31) / 32 * 32;
}

// Bytes for the statistics of each lane and channel.
int statistics_bytes(const Arguments& a, int size) {
  const int vectors = a.width / size, lanes = threads_for(a, size) / vectors;
  return statistics_floats(lanes, a.width) * static_cast<int>(sizeof(float));
}

template <typename T, bool kSum>
void run_resident(const Arguments& a, int samples, int cluster, cudaStream_t stream) {
  constexpr int kSize = Vector<T>::kSize;
  auto* kernel = resident<T, kSum>;
  const int bytes = statistics_bytes(a, kSize) + a.rows_per_block * a.width * static_cast<int>(sizeof(T));
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes), "shared memory");
  if (cluster > 8) {
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1), "cluster size");
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
  check(cudaLaunchKernelEx(&config, kernel, a), "group norm in shared memory");
}

template <typename T, bool kSum>
void run_split(const Arguments& a, int samples, int splits, const Tensor& like, cudaStream_t stream) {
  constexpr int kSize = Vector<T>::kSize;
  const Tensor held = scratch(like, int64_t{samples} * a.groups * splits * sizeof(Statistics));
  auto* parts = static_cast<Statistics*>(held.mutable_data_ptr());
  const dim3 grid(splits, samples, a.channels / a.width);
  const int threads = threads_for(a, kSize), bytes = statistics_bytes(a, kSize);
  part_statistics<T, kSum><<<grid, threads, bytes, stream>>>(a, parts);
  check(cudaGetLastError(), "statistics of a group norm");
  if (a.total == nullptr) {
    normalise_parts<T, kSum><<<grid, threads, 0, stream>>>(a, parts);
  } else {
    Arguments summed = a;
    summed.x = a.total;
    summed.x_sample = int64_t{a.rows} * a.channels;
    summed.x_row = a.channels;
    normalise_parts<T, false><<<grid, threads, 0, stream>>>(summed, parts);
  }
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
  auto run_as = [&](auto zero, auto sum) {
    using T = decltype(zero);
    if (cluster > 0) {
      run_resident<T, sum.value>(a, static_cast<int>(samples), static_cast<int>(cluster), device.stream);
    } else {
      run_split<T, sum.value>(a, static_cast<int>(samples), static_cast<int>(splits), x, device.stream);
    }
  };
  auto run = [&](auto zero) {
    if (a.addend != nullptr || a.channel_bias.data != nullptr) {
      run_as(zero, std::true_type{});
    } else {
      run_as(zero, std::false_type{});
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
