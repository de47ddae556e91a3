// The instructions of csrc/hopper.h, carried out by an emulated cluster.
#pragma once

#include "indices.h"
#include "machine.h"
#include "tensor.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>

#include <cuda.h>
#include <cuda_runtime.h>

#undef __launch_bounds__
#undef __grid_constant__
#define __launch_bounds__(...)
#define __grid_constant__

using std::max;
using std::min;

inline float __uint_as_float(uint32_t bits) { return std::bit_cast<float>(bits); }
inline uint32_t __float_as_uint(float value) { return std::bit_cast<uint32_t>(value); }

inline void __syncthreads() {
  emulated::Block& block = *emulated::self().block;
  emulated::meet(block.meetings[0], static_cast<int>(block.threads.size()));
}

inline void __syncwarp() { emulated::meet(emulated::self().warp().meeting, 32); }

template <typename V>
V __shfl_sync(unsigned, V value, int lane) {
  static_assert(sizeof(V) == 4);
  emulated::Warp& warp = emulated::self().warp();
  warp.values[emulated::self().lane()] = std::bit_cast<uint32_t>(value);
  __syncwarp();
  const V result = std::bit_cast<V>(warp.values[lane % 32]);
  __syncwarp();
  return result;
}

template <typename V>
V __shfl_xor_sync(unsigned mask, V value, int lanes) {
  return __shfl_sync(mask, value, static_cast<int>(emulated::self().lane()) ^ lanes);
}

namespace rewriter::hopper {

template <typename... Arguments>
const void* address_of(void (*kernel)(Arguments...)) {
  const void* const address = reinterpret_cast<const void*>(kernel);
  emulated::kernels()[address] = [kernel](void** arguments) {
    [&]<std::size_t... i>(std::index_sequence<i...>) {
      kernel(*static_cast<Arguments*>(arguments[i])...);
    }(std::index_sequence_for<Arguments...>());
  };
  return address;
}

inline unsigned char* shared_memory() { return emulated::self().block->shared + emulated::kShared; }
inline uint32_t shared_address(const void* pointer) { return emulated::offset_of(pointer); }

inline uint32_t read_ahead(const void* pointer) {
  uint32_t word;
  std::memcpy(&word, pointer, 4);
  return word;
}

inline uint4 read_line_ahead(const void* pointer) {
  uint4 line;
  std::memcpy(&line, pointer, 16);
  return line;
}

inline void store_matrices(unsigned char* row, const uint32_t (&words)[4]) {
  emulated::Warp& warp = emulated::self().warp();
  const unsigned lane = emulated::self().lane();
  if (shared_address(row) % 16 != 0) throw emulated::Fault("a matrix's row that is not aligned");
  warp.pointers[lane] = row;
  __syncwarp();
  for (unsigned matrix = 0; matrix < 4; ++matrix) {
    std::memcpy(warp.pointers[8 * matrix + lane / 4] + lane % 4 * 4, &words[matrix], 4);
  }
  __syncwarp();
}

inline float exp2_of(float x) { return std::exp2(x); }
inline float quotient(float a, float b) { return a / b; }

inline uint32_t larger_halves(uint32_t one, uint32_t two) {
  return max(one >> 16, two >> 16) << 16 | max(one & 0xFFFF, two & 0xFFFF);
}

inline uint32_t largest_of_warp(uint32_t own) {
  emulated::Warp& warp = emulated::self().warp();
  warp.values[emulated::self().lane()] = own;
  __syncwarp();
  const uint32_t largest = *std::max_element(warp.values.begin(), warp.values.end());
  __syncwarp();
  return largest;
}

inline void make_barrier(uint64_t* barrier, uint32_t arrivals) { emulated::make_barrier(barrier, arrivals); }
inline void publish_barriers() {}

inline void expect(uint64_t* barrier, uint32_t bytes) {
  emulated::expect(barrier, static_cast<int32_t>(bytes));
  emulated::arrive(barrier);
}

inline void arrive_at(uint64_t* barrier, uint32_t rank) {
  emulated::arrive(reinterpret_cast<uint64_t*>(emulated::at(emulated::offset_of(barrier), rank)));
}

inline void wait(uint64_t* barrier, uint32_t parity) {
  emulated::await([barrier, parity] { return emulated::complete(barrier, parity); });
}

inline void await_earlier() {}

inline uint32_t rank_in_cluster() { return emulated::self().block->rank; }

inline void meet_cluster() {
  emulated::Cluster& cluster = *emulated::self().block->cluster;
  emulated::meet(cluster.meeting, static_cast<int>(cluster.blocks.size() * cluster.blocks[0].threads.size()));
}

inline void await_cluster() { meet_cluster(); }

inline float4 read_from(const float* pointer, uint32_t rank) {
  float4 value;
  std::memcpy(&value, emulated::at(emulated::offset_of(pointer), rank), 16);
  return value;
}

inline void prefetch(const CUtensorMap&) {}

inline void copy(void* to, const CUtensorMap& map, uint64_t* barrier, uint16_t blocks, bool many, int c0, int c1, int c2,
                 int c3, int c4) {
  emulated::copy(to, map, barrier, many ? blocks : 1 << rank_in_cluster(), {c0, c1, c2, c3, c4}, 5);
}

inline void copy(void* to, const CUtensorMap& map, uint64_t* barrier, uint16_t blocks, bool many, int c0, int c1,
                 int c2) {
  emulated::copy(to, map, barrier, many ? blocks : 1 << rank_in_cluster(), {c0, c1, c2, 0, 0}, 3);
}

inline void begin_products() {}
inline void commit_products() { emulated::commit(); }

template <int N>
void await_products() {
  emulated::await_products(N);
}

template <typename V, int N>
void pin(V (&)[N]) {}

inline void finish_before(float value, void* spare) { std::memcpy(spare, &value, 4); }

template <int N>
void give_up_registers() {
  static_assert(N % 8 == 0 && N >= 24 && N <= 256);
}
template <int N>
void take_registers() {
  static_assert(N % 8 == 0 && N >= 24 && N <= 256);
}

inline void meet(int name, int threads) {
  emulated::meet(emulated::self().block->meetings.at(static_cast<std::size_t>(name)), threads);
}

inline void announce(int name, int threads) {
  emulated::announce(emulated::self().block->meetings.at(static_cast<std::size_t>(name)), threads);
}

}  // namespace rewriter::hopper
