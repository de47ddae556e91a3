#include "machine.h"

#include "indices.h"

#include <algorithm>
#include <cstring>

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>

Index threadIdx, blockIdx, gridDim;

namespace emulated {
namespace {

constexpr std::size_t kStack = 128 * 1024;

Thread* current = nullptr;

struct Barrier {
  uint16_t expected, pending;
  int32_t bytes : 31;
  uint32_t parity : 1;
};
static_assert(sizeof(Barrier) == 8);

void turn_if_complete(Barrier& barrier) {
  if (barrier.pending != 0 || barrier.bytes != 0) return;
  barrier.parity ^= 1;
  barrier.pending = barrier.expected;
}

void enter() {
  Thread& thread = self();
  Cluster& cluster = *thread.block->cluster;
  try {
    cluster.kernel();
  } catch (const std::exception& error) {
    cluster.fault = error.what();
  }
  thread.done = true;
}

// The 128-byte swizzle: 16-byte chunks change places by the address's bits above.
uint32_t swizzled(uint32_t address) { return address ^ (address >> 7 & 7) << 4; }

float number(Format format, uint16_t bits) {
  if (format == Format::f16) return __half2float(__ushort_as_half(bits));
  if (format == Format::bf16) return __bfloat162float(__ushort_as_bfloat16(bits));
  return __half2float(__half(__nv_cvt_fp8_to_halfraw(static_cast<__nv_fp8_storage_t>(bits), __NV_E4M3)));
}

int bytes_of(Format format) { return format == Format::f8e4m3 ? 1 : 2; }

float element(const Product& product, uint32_t address) {
  uint16_t bits = 0;
  std::memcpy(&bits, at(swizzled(address), self().block->rank), bytes_of(product.format));
  return number(product.format, bits);
}

float element_of(const Product& product, uint32_t word, bool upper) {
  return number(product.format, static_cast<uint16_t>(upper ? word >> 16 : word));
}

// What a descriptor says, by the PTX ISA's matrix-descriptor format.
struct Described {
  explicit Described(uint64_t bits)
      : start((bits & 0x3FFF) << 4), stride((bits >> 32 & 0x3FFF) << 4) {
    if (bits >> 62 != 1) throw Fault("a descriptor without the 128-byte swizzle");
    if ((bits >> 49 & 7) != 0) throw Fault("a descriptor with a base offset");
  }
  uint32_t start, stride;
};

void execute(Product& product) {
  const Described b(product.b);
  // Of 32 bytes.
  const int size = bytes_of(product.format), depth = 32 / size;
  static float left[64][32], right[256][32];
  for (int k = 0; k < depth; ++k) {
    for (int n = 0; n < product.columns; ++n) {
      const uint32_t place =
          product.held ? k / 8 * b.stride + k % 8 * 128 + n * 2 : n / 8 * b.stride + n % 8 * 128 + k * size;
      right[n][k] = element(product, b.start + place);
    }
  }
  for (int row = 0; row < 64; ++row) {
    for (int k = 0; k < depth; ++k) {
      if (product.held) {
        const int thread = row / 16 * 32 + row % 8 * 4 + k % 8 / 2;
        left[row][k] = element_of(product, product.words[thread][k / 8 * 2 + row % 16 / 8], k % 2 != 0);
      } else {
        const Described a(product.a);
        left[row][k] = element(product, a.start + row / 8 * a.stride + row % 8 * 128 + k * size);
      }
    }
  }
  for (int row = 0; row < 64; ++row) {
    for (int n = 0; n < product.columns; ++n) {
      const int thread = row / 16 * 32 + row % 8 * 4 + n % 8 / 2;
      float& sum = product.sums[thread][n / 8 * 4 + row % 16 / 8 * 2 + n % 2];
      float total = product.add ? sum : 0.0f;
      for (int k = 0; k < depth; ++k) total += left[row][k] * right[n][k];
      sum = total;
    }
  }
}

// Products up to number `until` that all threads have issued.
void execute_until(Group& group, std::size_t until) {
  while (group.first < until && !group.products.empty() && group.products.front().threads == 128) {
    execute(group.products.front());
    group.products.pop_front();
    ++group.first;
  }
}

bool issued_by_all(const Group& group, std::size_t until) {
  if (group.first >= until) return true;
  return group.products.size() >= until - group.first && group.products[until - group.first - 1].threads == 128;
}

}  // namespace

Warp& Thread::warp() const { return block->warps[index / 32]; }
Group& Thread::group() const { return block->groups[index / 128]; }

bool Block::done() const {
  return std::all_of(threads.begin(), threads.end(), [](const Thread& thread) { return thread.done; });
}

Cluster::Cluster(unsigned grid, unsigned first, unsigned size, unsigned threads, std::size_t shared, Pace pace,
                 std::mt19937& random, std::function<void()> kernel)
    : grid(grid), blocks(size), pace(pace), random(random), kernel(std::move(kernel)) {
  for (unsigned rank = 0; rank < size; ++rank) {
    Block& block = blocks[rank];
    block.cluster = this;
    block.index = first + rank;
    block.rank = rank;
    block.size = kShared + shared;
    block.bytes.resize(block.size + 1024);
    auto base = reinterpret_cast<uintptr_t>(block.bytes.data());
    block.shared = block.bytes.data() + (1024 - base % 1024) % 1024;
    // What nobody has written is not zero.
    std::fill(block.bytes.begin(), block.bytes.end(), 0xFF);
    block.threads.resize(threads);
    block.warps.resize(threads / 32);
    block.groups.resize(threads / 128);
    for (unsigned index = 0; index < threads; ++index) {
      Thread& thread = block.threads[index];
      thread.block = &block;
      thread.index = index;
      thread.stack = std::make_unique_for_overwrite<char[]>(kStack);
      getcontext(&thread.context);
      thread.context.uc_stack.ss_sp = thread.stack.get();
      thread.context.uc_stack.ss_size = kStack;
      thread.context.uc_link = &scheduler_;
      makecontext(&thread.context, enter, 0);
    }
  }
}

bool Cluster::copies_now() {
  return pace == Pace::early || pace == Pace::apart || (pace == Pace::random && random() % 2 == 0);
}

bool Cluster::multiplies_now() { return pace == Pace::early || (pace == Pace::random && random() % 2 == 0); }

void Cluster::beside(std::function<void()> work) {
  if (waiting.empty() && copies_now()) {
    work();
  } else {
    waiting.push_back(std::move(work));
  }
}

void Cluster::resume(Thread& thread) {
  current = &thread;
  threadIdx = {thread.index, 0, 0};
  blockIdx = {thread.block->index, 0, 0};
  gridDim = {grid, 1, 1};
  thread.goes_on = nullptr;
  swapcontext(&scheduler_, &thread.context);
  if (!fault.empty()) throw Fault(fault);
}

bool Cluster::any_goes_on(std::vector<Thread*>& order) {
  std::shuffle(order.begin(), order.end(), random);
  bool any = false;
  for (Thread* thread : order) {
    if (thread->done || (thread->goes_on && !thread->goes_on())) continue;
    any = true;
    resume(*thread);
  }
  std::erase_if(order, [](const Thread* thread) { return thread->done; });
  return any;
}

void Cluster::run() {
  std::vector<Thread*> order;
  for (Block& block : blocks) {
    for (Thread& thread : block.threads) order.push_back(&thread);
  }
  while (!order.empty()) {
    const bool any = any_goes_on(order);
    if (!waiting.empty() && (!any || (pace == Pace::random && random() % 2 == 0))) {
      waiting.front()();
      waiting.pop_front();
    } else if (!any && !order.empty()) {
      throw Fault("no thread can go on: " + std::to_string(order.size()) + " wait");
    }
  }
  if (!waiting.empty()) throw Fault("a copy is not done when the last thread ends");
}

Thread& self() { return *current; }

void await(std::function<bool()> goes_on) {
  Thread& thread = self();
  if (goes_on()) return;
  thread.goes_on = std::move(goes_on);
  // To the scheduler, which `uc_link` names.
  swapcontext(&thread.context, thread.context.uc_link);
}

bool announce(Meeting& meeting, int count) {
  if (++meeting.arrived < count) return false;
  meeting.arrived = 0;
  ++meeting.generation;
  return true;
}

void meet(Meeting& meeting, int count) {
  const int generation = meeting.generation;
  if (!announce(meeting, count)) await([&meeting, generation] { return meeting.generation != generation; });
}

uint32_t offset_of(const void* pointer) {
  const auto place = static_cast<const unsigned char*>(pointer) - self().block->shared;
  if (place < static_cast<std::ptrdiff_t>(kShared) || place >= static_cast<std::ptrdiff_t>(self().block->size)) {
    throw Fault("a pointer that is not into the block's shared memory");
  }
  return static_cast<uint32_t>(place);
}

unsigned char* at(uint32_t offset, unsigned rank) {
  Block& block = self().block->cluster->blocks.at(rank);
  if (offset < kShared || offset >= block.size) throw Fault("an address beyond the block's shared memory");
  if (block.done()) throw Fault("the shared memory of a block that has ended");
  return block.shared + offset;
}

void make_barrier(uint64_t* barrier, uint32_t arrivals) {
  if (reinterpret_cast<uintptr_t>(barrier) % 8 != 0) throw Fault("a barrier that is not aligned");
  *reinterpret_cast<Barrier*>(barrier) = {static_cast<uint16_t>(arrivals), static_cast<uint16_t>(arrivals), 0, 0};
}

void arrive(uint64_t* barrier) {
  Barrier& found = *reinterpret_cast<Barrier*>(barrier);
  if (found.pending == 0) throw Fault("more arrivals at a barrier than it was made for");
  --found.pending;
  turn_if_complete(found);
}

void expect(uint64_t* barrier, int32_t bytes) {
  Barrier& found = *reinterpret_cast<Barrier*>(barrier);
  found.bytes = found.bytes + bytes;
  turn_if_complete(found);
}

bool complete(const uint64_t* barrier, uint32_t parity) {
  return reinterpret_cast<const Barrier*>(barrier)->parity != parity;
}

void issue(Product product, float* sums, const uint32_t* words) {
  Thread& thread = self();
  Group& group = thread.group();
  const std::size_t index = thread.issued++ - group.first;
  if (index == group.products.size()) group.products.push_back(product);
  Product& found = group.products.at(index);
  if (found.a != product.a || found.b != product.b || found.columns != product.columns || found.add != product.add) {
    throw Fault("threads of a group that do not issue the same product");
  }
  found.sums[thread.index % 128] = sums;
  found.words[thread.index % 128] = words;
  ++found.threads;
  if (thread.block->cluster->multiplies_now()) execute_until(group, thread.issued);
}

void commit() { self().committed.push_back(self().issued); }

void await_products(std::size_t but) {
  Thread& thread = self();
  if (thread.committed.size() <= but) return;
  const std::size_t until = thread.committed[thread.committed.size() - 1 - but];
  Group& group = thread.group();
  await([&group, until] { return issued_by_all(group, until); });
  execute_until(group, until);
}

}  // namespace emulated
