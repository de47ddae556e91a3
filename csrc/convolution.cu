// Convolutions as products of tiles on Hopper's tensor cores.
//
// A block makes 128 x 160 results. One warp keeps the copy engine busy, two groups of four warps multiply 64 rows each.
// Rows are boxes of neighbouring pixels, so that for each tap of the filter the copy engine fetches the box, moved by the
// tap, with zeros beyond the picture's edge: no index is computed and nothing is unfolded.
//
// Blocks of a cluster share what they read: `across` blocks with the same rows, `along` blocks with the same columns, and
// each loads its part for all. `splits` of them share the steps along the depth and add their sums up at the end.

#include "convolution.h"
#include "hopper.h"
#include "wgmma.h"

#include <cstdint>

namespace rewriter::convolving {
namespace {

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

struct Box {
  int x, y, z, image;
};

__device__ Box box_at(const Pixels& pixels, int index) {
  Box box;
  box.x = (index % pixels.across) << pixels.log_width;
  index /= pixels.across;
  box.y = (index % pixels.down) << pixels.log_height;
  index /= pixels.down;
  box.z = index % pixels.depth;
  box.image = (index / pixels.depth) << pixels.log_images;
  return box;
}

// The number of the box's pixel `index`, -1 beyond the picture's edge.
__device__ int64_t pixel_of(const Pixels& pixels, const Box& box, int index) {
  const int x = box.x + (index & ((1 << pixels.log_width) - 1));
  index >>= pixels.log_width;
  const int y = box.y + (index & ((1 << pixels.log_height) - 1));
  const int image = box.image + (index >> pixels.log_height);
  if (x >= pixels.width || y >= pixels.height || image >= pixels.images) return -1;
  return ((static_cast<int64_t>(image) * pixels.depth + box.z) * pixels.height + y) * pixels.width + x;
}

__device__ float widened(__half value) { return __half2float(value); }
__device__ float widened(__nv_bfloat16 value) { return __bfloat162float(value); }
template <typename T>
__device__ T narrowed(float value);
template <>
__device__ __half narrowed(float value) { return __float2half_rn(value); }
template <>
__device__ __nv_bfloat16 narrowed(float value) { return __float2bfloat16_rn(value); }

// Eight results, or eight of the residual's elements.
template <typename T>
struct alignas(16) Line {
  T values[8];
};

// Where a cluster's block stands, and the tiles that it works on.
struct Place {
  __device__ Place(const Plan& plan) {
    const int rank = static_cast<int>(hopper::rank_in_cluster());
    const int sharing = plan.across * plan.along;
    split = rank / sharing;
    first = split * sharing;
    along = rank % sharing / plan.across;
    across = rank % plan.across;
    begin = plan.steps * split / plan.splits;
    end = plan.steps * (split + 1) / plan.splits;
  }
  int split, first, along, across;
  int begin, end;
};

// A step along the depth: some channels of a tap. Counted, not computed: one thread feeds the tensor cores, and a division
// takes it as long as a step takes them.
struct Tap {
  __device__ Tap(const Plan& plan, int step) {
    index = step / plan.chunks;
    channel = step % plan.chunks * kDepth;
    x = index % plan.taps_x;
    y = index / plan.taps_x % plan.taps_y;
    z = index / plan.taps_x / plan.taps_y;
  }
  __device__ void next(const Plan& plan) {
    channel += kDepth;
    if (channel < plan.chunks * kDepth) return;
    channel = 0;
    ++index;
    if (++x < plan.taps_x) return;
    x = 0;
    if (++y < plan.taps_y) return;
    y = 0;
    ++z;
  }
  int index, channel, x, y, z;
};

template <typename T>
__global__ void __launch_bounds__(kThreads, 1)
    multiply(const __grid_constant__ CUtensorMap left_map, const __grid_constant__ CUtensorMap right_map,
             const __grid_constant__ Plan plan, const Operands operands) {
  extern __shared__ unsigned char memory[];
  unsigned char* const base = memory + (kAlignment - hopper::shared_address(memory) % kAlignment) % kAlignment;
  unsigned char* const left = base;
  unsigned char* const right = left + Tile::kStages * Tile::kLeft;
  T* const staged = reinterpret_cast<T*>(right + Tile::kStages * Tile::kRight);
  float* const shifts = reinterpret_cast<float*>(right + Tile::kStages * Tile::kRight + Tile::kStaged);
  uint64_t* const full = reinterpret_cast<uint64_t*>(shifts + Tile::kColumns);
  uint64_t* const empty = full + Tile::kStages;

  const Place place(plan);
  const int group = threadIdx.x / 128, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  // Every block that reads what this one loads, itself included, says when it has: a warp of it, once.
  const int readers = plan.across + plan.along - 1;
  if (threadIdx.x == 0) {
    hopper::prefetch(left_map);
    hopper::prefetch(right_map);
    for (int stage = 0; stage < Tile::kStages; ++stage) {
      hopper::make_barrier(full + stage, 1);
      hopper::make_barrier(empty + stage, 8 * readers);
    }
    hopper::publish_barriers();
  }
  __syncthreads();
  hopper::await_cluster();

  const int cluster = blockIdx.x / (plan.across * plan.along * plan.splits);
  const int clusters = gridDim.x / (plan.across * plan.along * plan.splits);
  const int tiles = plan.row_groups * plan.column_groups;

  if (group == 0) {
    hopper::give_up_registers<40>();
    if (warp == 0 && lane == 0) {
      const int left_rows = kRows / plan.across;
      uint16_t same_rows = 0, same_columns = 0;
      for (int i = 0; i < plan.across; ++i) same_rows |= 1 << (place.first + place.along * plan.across + i);
      for (int i = 0; i < plan.along; ++i) same_columns |= 1 << (place.first + i * plan.across + place.across);
      hopper::Ring<Tile::kStages> ring;
      for (int tile = cluster; tile < tiles; tile += clusters) {
        const int row_tile = tile / plan.column_groups * plan.along + place.along;
        const int column = (tile % plan.column_groups * plan.across + place.across) * Tile::kColumns;
        const Box box = box_at(plan.pixels, row_tile * plan.across + place.across);
        Tap tap(plan, place.begin);
        for (int step = place.begin; step < place.end; ++step, ring.next(), tap.next(plan)) {
          hopper::wait(empty + ring.stage, ring.turn ^ 1);
          hopper::expect(full + ring.stage, Tile::kLeft + Tile::kRight);
          hopper::copy(left + ring.stage * Tile::kLeft + place.across * left_rows * 128, left_map, full + ring.stage,
                       same_rows, plan.across > 1, tap.channel, box.x * plan.step + tap.x - plan.pad_x,
                       box.y * plan.step + tap.y - plan.pad_y, box.z + tap.z - plan.pad_z, box.image);
          for (int piece = place.along; piece < plan.pieces; piece += plan.along) {
            hopper::copy(right + ring.stage * Tile::kRight + piece * plan.piece * 128, right_map,
                         full + ring.stage, same_columns, plan.along > 1, tap.channel, tap.index,
                         column + piece * plan.piece);
          }
        }
      }
    }
    // The others of the first warp must not wait for the cluster before its first thread does.
    __syncwarp();
    if (plan.splits > 1) hopper::meet_cluster();
  } else {
    hopper::take_registers<232>();
    const int half = group - 1, worker = threadIdx.x - 128;
    // The barriers that this lane tells about what its warp has read.
    int reader = -1;
    if (lane < plan.across) {
      reader = place.first + place.along * plan.across + lane;
    } else if (lane < readers) {
      const int other = lane - plan.across;
      reader = place.first + (other + (other >= place.along)) * plan.across + place.across;
    }
    float sums[Tile::kColumns / 2];
    hopper::Ring<Tile::kStages> ring;
    for (int tile = cluster; tile < tiles; tile += clusters) {
      const int row_tile = tile / plan.column_groups * plan.along + place.along;
      const int column = (tile % plan.column_groups * plan.across + place.across) * Tile::kColumns;
      // Read while the first operands are on their way, not one by one at the end.
      if (worker < Tile::kColumns) {
        const int own = column + worker;
        const T* const bias = static_cast<const T*>(operands.bias);
        shifts[worker] = bias != nullptr && own < plan.columns ? widened(bias[own]) : 0.0f;
      }
      hopper::meet(3, 256);
      for (int step = place.begin; step < place.end; ++step, ring.next()) {
        hopper::wait(full + ring.stage, ring.turn);
        const uint64_t a = hopper::operand(left + ring.stage * Tile::kLeft + half * 64 * 128);
        const uint64_t b = hopper::operand(right + ring.stage * Tile::kRight);
        hopper::pin(sums);
        hopper::begin_products();
#pragma unroll
        for (int k = 0; k < kDepth / 16; ++k) {
          hopper::Multiply<T, Tile::kColumns>::run(sums, a + 2 * k, b + 2 * k, step > place.begin || k > 0);
        }
        hopper::commit_products();
        // The products before these are done then, and their stage is free.
        hopper::await_products<1>();
        hopper::pin(sums);
        if (step > place.begin && reader >= 0) hopper::arrive_at(empty + ring.before(), reader);
      }
      hopper::await_products<0>();
      hopper::pin(sums);
      if (reader >= 0) hopper::arrive_at(empty + ring.before(), reader);

      const int box_rows = kRows / plan.across;
      const Box boxes[2] = {box_at(plan.pixels, row_tile * plan.across),
                            box_at(plan.pixels, row_tile * plan.across + plan.across - 1)};
      const T* const residual = static_cast<const T*>(operands.residual);
      T* const result = static_cast<T*>(operands.result);
      const int upper = warp % 4 * 16 + lane / 4;

      if (plan.splits == 1) {
        auto stage_pair = [&](int row, int from, float one, float two) {
          T pair[2] = {narrowed<T>(one), narrowed<T>(two)};
          *reinterpret_cast<uint32_t*>(staged + row * Tile::kPitch + from) = *reinterpret_cast<const uint32_t*>(pair);
        };
#pragma unroll
        for (int j = 0; j < Tile::kColumns / 8; ++j) {
          const int from = 8 * j + lane % 4 * 2;
#pragma unroll
          for (int lower = 0; lower < 2; ++lower) {
            const int at = 4 * j + 2 * lower;
            stage_pair(half * 64 + upper + 8 * lower, from, sums[at] + shifts[from], sums[at + 1] + shifts[from + 1]);
          }
        }
        hopper::meet(1 + half, 128);
        constexpr int kLines = Tile::kColumns / 8;
        for (int index = worker % 128; index < 64 * kLines; index += 128) {
          const int row = half * 64 + index / kLines, chunk = index % kLines;
          const int64_t pixel = pixel_of(plan.pixels, boxes[row >= box_rows], row & (box_rows - 1));
          if (pixel < 0 || column + chunk * 8 >= plan.columns) continue;
          Line<T> line = *reinterpret_cast<const Line<T>*>(staged + row * Tile::kPitch + chunk * 8);
          const int64_t at = pixel * plan.columns + column + chunk * 8;
          if (residual != nullptr) {
            const Line<T> more = *reinterpret_cast<const Line<T>*>(residual + at);
#pragma unroll
            for (int i = 0; i < 8; ++i) line.values[i] = narrowed<T>(widened(line.values[i]) + widened(more.values[i]));
          }
          *reinterpret_cast<Line<T>*>(result + at) = line;
        }
        // Neither what is staged nor the bias may change before both groups have read it.
        hopper::meet(3, 256);
      } else {
        // Nothing is copied into the stages any more, once both groups have read them.
        hopper::meet(3, 256);
        float* const partial = reinterpret_cast<float*>(left);
#pragma unroll
        for (int j = 0; j < Tile::kColumns / 8; ++j) {
#pragma unroll
          for (int lower = 0; lower < 2; ++lower) {
            float* const to = partial + (half * 64 + upper + 8 * lower) * Tile::kSumPitch + 8 * j + lane % 4 * 2;
            *reinterpret_cast<float2*>(to) = make_float2(sums[4 * j + 2 * lower], sums[4 * j + 2 * lower + 1]);
          }
        }
        hopper::meet_cluster();
        constexpr int kLines = Tile::kColumns / 8;
        const int rows = kRows / plan.splits, others = plan.across * plan.along;
        for (int index = worker; index < rows * kLines; index += 256) {
          const int row = place.split * rows + index / kLines, chunk = index % kLines;
          const int64_t pixel = pixel_of(plan.pixels, boxes[row >= box_rows], row & (box_rows - 1));
          if (pixel < 0 || column + chunk * 8 >= plan.columns) continue;
          float total[8] = {};
          for (int split = 0; split < plan.splits; ++split) {
            const uint32_t rank = split * others + place.along * plan.across + place.across;
            const float* const from = partial + row * Tile::kSumPitch + chunk * 8;
            const float4 one = hopper::read_from(from, rank), two = hopper::read_from(from + 4, rank);
            total[0] += one.x, total[1] += one.y, total[2] += one.z, total[3] += one.w;
            total[4] += two.x, total[5] += two.y, total[6] += two.z, total[7] += two.w;
          }
          const int64_t at = pixel * plan.columns + column + chunk * 8;
          Line<T> line, more;
          if (residual != nullptr) more = *reinterpret_cast<const Line<T>*>(residual + at);
#pragma unroll
          for (int i = 0; i < 8; ++i) {
            total[i] += shifts[chunk * 8 + i];
            if (residual != nullptr) total[i] += widened(more.values[i]);
            line.values[i] = narrowed<T>(total[i]);
          }
          *reinterpret_cast<Line<T>*>(result + at) = line;
        }
      }
    }
  }
  // A block's shared memory stays until no other reads it, or tells its barriers anything.
  hopper::await_cluster();
}

#else

template <typename T>
__global__ void multiply(const __grid_constant__ CUtensorMap, const __grid_constant__ CUtensorMap,
                         const __grid_constant__ Plan, const Operands) {}

#endif

}  // namespace

const void* kernel(bool f16) {
  return f16 ? reinterpret_cast<const void*>(multiply<__half>) : reinterpret_cast<const void*>(multiply<__nv_bfloat16>);
}

}  // namespace rewriter::convolving
