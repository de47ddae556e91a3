// What kernels for Hopper need from the chip, an instruction or two each: barriers in shared memory, the copy engine,
// clusters, tensor cores.
#pragma once

#include <cuda.h>

#include <cstdint>

namespace rewriter::hopper {

// A kernel's address as launches take it.
template <typename... Arguments>
const void* address_of(void (*kernel)(Arguments...)) {
  return reinterpret_cast<const void*>(kernel);
}

// --- memory ----------------------------------------------------------------------------------------------------------

// What the launch asked for, shared by the threads of a block.
__device__ inline unsigned char* shared_memory() {
  extern __shared__ unsigned char memory[];
  return memory;
}

__device__ inline uint32_t shared_address(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

// Not moved to where it is used, at the end of the tile: it is read while the products run.
__device__ inline uint32_t read_ahead(const void* pointer) {
  uint32_t word;
  asm volatile("ld.global.nc.b32 %0, [%1];" : "=r"(word) : "l"(pointer));
  return word;
}

__device__ inline uint4 read_line_ahead(const void* pointer) {
  uint4 line;
  asm volatile("ld.global.v4.b32 {%0, %1, %2, %3}, [%4];"
               : "=r"(line.x), "=r"(line.y), "=r"(line.z), "=r"(line.w)
               : "l"(pointer));
  return line;
}

// Four 8 x 8 matrices of 16-bit elements, whose rows of 16 bytes go to where the lanes 0 to 7, 8 to 15 and so on say. A
// lane has two elements of each, those of row lane / 4 from column 2 (lane % 4) on.
__device__ inline void store_matrices(unsigned char* row, const uint32_t (&words)[4]) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(shared_address(row)),
               "r"(words[0]), "r"(words[1]), "r"(words[2]), "r"(words[3])
               : "memory");
}

// --- arithmetic ------------------------------------------------------------------------------------------------------

__device__ inline float exp2_of(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// Off by two units in the last place at most; 0 where b is infinite.
__device__ inline float quotient(float a, float b) {
  float y;
  asm("div.approx.ftz.f32 %0, %1, %2;" : "=f"(y) : "f"(a), "f"(b));
  return y;
}

// The larger of two unsigned numbers of 16 bits, in each half of a word.
__device__ inline uint32_t larger_halves(uint32_t one, uint32_t two) {
  uint32_t larger;
  asm("max.u16x2 %0, %1, %2;" : "=r"(larger) : "r"(one), "r"(two));
  return larger;
}

__device__ inline uint32_t largest_of_warp(uint32_t own) {
  uint32_t largest;
  asm volatile("redux.sync.max.u32 %0, %1, 0xFFFFFFFF;" : "=r"(largest) : "r"(own));
  return largest;
}

// --- barriers -------------------------------------------------------------------------------------------------------

__device__ inline void make_barrier(uint64_t* barrier, uint32_t arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(arrivals));
}

// Makes new barriers known to the copy engine and the other blocks of the cluster.
__device__ inline void publish_barriers() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }

// Arrives, and lets the phase wait for so many bytes of the copy engine.
__device__ inline void expect(uint64_t* barrier, uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)), "r"(bytes)
               : "memory");
}

// Arrives at the same barrier of the cluster's block `rank`. It says that reads are done: a release to the whole cluster
// would wait for memory, and takes longer than a step's products.
__device__ inline void arrive_at(uint64_t* barrier, uint32_t rank) {
  asm volatile(
      "{.reg .b32 remote; mapa.shared::cluster.u32 remote, %0, %1; "
      "mbarrier.arrive.shared::cluster.b64 _, [remote];}" ::"r"(shared_address(barrier)),
      "r"(rank)
      : "memory");
}

// Waits until the phase of this parity is complete.
__device__ inline void wait(uint64_t* barrier, uint32_t parity) {
  asm volatile(
      "{.reg .pred done;\n"
      "AGAIN:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@!done bra AGAIN;}" ::"r"(shared_address(barrier)),
      "r"(parity)
      : "memory");
}

// --- launches --------------------------------------------------------------------------------------------------------

// Before the first access to global memory: the kernel before may still run when this one is launched to overlap with it.
__device__ inline void await_earlier() { asm volatile("griddepcontrol.wait;" ::: "memory"); }

// --- clusters -------------------------------------------------------------------------------------------------------

__device__ inline uint32_t rank_in_cluster() {
  uint32_t rank;
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}

// All threads of all blocks of the cluster meet; what they wrote to shared memory before is seen after.
__device__ inline void meet_cluster() {
  asm volatile("barrier.cluster.arrive.release; barrier.cluster.wait.acquire;" ::: "memory");
}

// The same without a promise about memory, which costs a trip to it.
__device__ inline void await_cluster() {
  asm volatile("barrier.cluster.arrive.relaxed; barrier.cluster.wait;" ::: "memory");
}

// Four floats at `pointer` in the shared memory of the cluster's block `rank`.
__device__ inline float4 read_from(const float* pointer, uint32_t rank) {
  float4 value;
  asm volatile(
      "{.reg .b32 remote; mapa.shared::cluster.u32 remote, %4, %5; "
      "ld.shared::cluster.v4.f32 {%0, %1, %2, %3}, [remote];}"
      : "=f"(value.x), "=f"(value.y), "=f"(value.z), "=f"(value.w)
      : "r"(shared_address(pointer)), "r"(rank)
      : "memory");
  return value;
}

// --- the copy engine ------------------------------------------------------------------------------------------------

__device__ inline void prefetch(const CUtensorMap& map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(&map) : "memory");
}

// A box of a 5-D tensor to the same place in each block of `blocks`, a mask, whose barriers count its bytes.
__device__ inline void copy(void* to, const CUtensorMap& map, uint64_t* barrier, uint16_t blocks, bool many, int c0,
                            int c1, int c2, int c3, int c4) {
  if (many) {
    asm volatile(
        "cp.async.bulk.tensor.5d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster "
        "[%0], [%1, {%3, %4, %5, %6, %7}], [%2], %8;" ::"r"(shared_address(to)),
        "l"(&map), "r"(shared_address(barrier)), "r"(c0), "r"(c1), "r"(c2), "r"(c3), "r"(c4), "h"(blocks)
        : "memory");
  } else {
    asm volatile(
        "cp.async.bulk.tensor.5d.shared::cluster.global.mbarrier::complete_tx::bytes "
        "[%0], [%1, {%3, %4, %5, %6, %7}], [%2];" ::"r"(shared_address(to)),
        "l"(&map), "r"(shared_address(barrier)), "r"(c0), "r"(c1), "r"(c2), "r"(c3), "r"(c4)
        : "memory");
  }
}

// A box of a 3-D tensor, likewise.
__device__ inline void copy(void* to, const CUtensorMap& map, uint64_t* barrier, uint16_t blocks, bool many, int c0,
                            int c1, int c2) {
  if (many) {
    asm volatile(
        "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster "
        "[%0], [%1, {%3, %4, %5}], [%2], %6;" ::"r"(shared_address(to)),
        "l"(&map), "r"(shared_address(barrier)), "r"(c0), "r"(c1), "r"(c2), "h"(blocks)
        : "memory");
  } else {
    asm volatile(
        "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes "
        "[%0], [%1, {%3, %4, %5}], [%2];" ::"r"(shared_address(to)),
        "l"(&map), "r"(shared_address(barrier)), "r"(c0), "r"(c1), "r"(c2)
        : "memory");
  }
}

// --- tensor cores ---------------------------------------------------------------------------------------------------

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

__device__ inline void begin_products() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ inline void commit_products() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

// Waits until all but the last `N` committed groups are done.
template <int N>
__device__ inline void await_products() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory");
}

// Keeps the compiler from moving a use of sums, or of operands in registers, across this point.
template <int N>
__device__ inline void pin(float (&sums)[N]) {
#pragma unroll
  for (int i = 0; i < N; ++i) asm volatile("" : "+f"(sums[i])::"memory");
}

template <int N>
__device__ inline void pin(uint32_t (&words)[N]) {
#pragma unroll
  for (int i = 0; i < N; ++i) asm volatile("" : "+r"(words[i])::"memory");
}

// The assembler moves waits for products ahead of arithmetic that follows nothing but registers, which would run beside
// the products. It does not move them ahead of a store: to `spare`, four bytes of shared memory that nobody reads.
__device__ inline void finish_before(float value, void* spare) {
  asm volatile("st.shared.f32 [%0], %1;" ::"r"(shared_address(spare)), "f"(value) : "memory");
}

template <int N>
__device__ inline void give_up_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(N));
}
template <int N>
__device__ inline void take_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(N));
}

// Some warps of a block meet; `name` from 1 on.
__device__ inline void meet(int name, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(name), "r"(threads) : "memory");
}
// Counts as meeting the others there, and goes on.
__device__ inline void announce(int name, int threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(name), "r"(threads) : "memory");
}

#endif

}  // namespace rewriter::hopper
