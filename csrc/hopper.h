// What kernels for Hopper need from the chip: barriers in shared memory, the copy engine, clusters, descriptors.
#pragma once

#include <cuda.h>

#include <cstdint>

namespace rewriter::hopper {

__device__ inline uint32_t shared_address(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
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

// Rows of 128 bytes in shared memory, as the copy engine lays them out with its 128-byte swizzle, from a multiple of
// 1024 bytes on; a step of 16 elements along the rows adds 32 bytes to `pointer`.
__device__ inline uint64_t operand(const void* pointer) {
  constexpr uint64_t kAtom = 1024 >> 4, kSwizzle128 = 1;
  return ((shared_address(pointer) & 0x3FFFF) >> 4) | (uint64_t{1} << 16) | (kAtom << 32) | (kSwizzle128 << 62);
}

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

__device__ inline void begin_products() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ inline void commit_products() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

// Waits until all but the last `N` committed groups are done.
template <int N>
__device__ inline void await_products() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory");
}

// Keeps the compiler from moving a use of the sums across this point.
template <int N>
__device__ inline void pin(float (&sums)[N]) {
#pragma unroll
  for (int i = 0; i < N; ++i) asm volatile("" : "+f"(sums[i])::"memory");
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

#endif

// A stage of the ring that operands go through, and the parity of the turn.
template <int kStages>
struct Ring {
  int stage = 0;
  uint32_t turn = 0;

  __device__ void next() {
    if (++stage == kStages) {
      stage = 0;
      turn ^= 1;
    }
  }
  __device__ int before() const { return stage == 0 ? kStages - 1 : stage - 1; }
};

}  // namespace rewriter::hopper
