// A cluster of blocks of threads on the CPU: each thread a fiber, all in one thread of the process, so that every run with
// the same seed is the same run.
#pragma once

#include <array>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <random>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include <ucontext.h>

namespace emulated {

// Where shared memory begins: where a launch may place it, at 16 bytes and no more.
constexpr std::size_t kShared = 1024 + 16;

// When what runs beside the threads is done. early: as soon as it may be; late: copies when nothing else can go on, and
// products when they are waited for; apart: copies early and products late; random: now this, now that.
enum class Pace { early, late, apart, random };

// Where so many threads meet again and again.
struct Meeting {
  int arrived = 0, generation = 0;
};

enum class Format { f16, bf16, f8e4m3 };

// A product of 64 rows by four warps. Each thread gives its sums, and its words of `a` where that is in registers.
struct Product {
  uint64_t a = 0, b = 0;
  int columns = 0;
  Format format = Format::f16;
  bool add = false, held = false;
  int threads = 0;
  std::array<float*, 128> sums{};
  std::array<const uint32_t*, 128> words{};
};

// Four warps: products that some of them have issued, in order, from number `first` on.
struct Group {
  std::deque<Product> products;
  std::size_t first = 0;
};

struct Warp {
  Meeting meeting;
  std::array<uint32_t, 32> values{};
  std::array<unsigned char*, 32> pointers{};
};

struct Block;

struct Thread {
  ucontext_t context{};
  std::unique_ptr<char[]> stack;
  Block* block = nullptr;
  unsigned index = 0;
  std::function<bool()> goes_on;
  bool done = false;
  std::size_t issued = 0;
  std::vector<std::size_t> committed;

  unsigned lane() const { return index % 32; }
  Warp& warp() const;
  Group& group() const;
};

struct Cluster;

struct Block {
  Cluster* cluster = nullptr;
  unsigned index = 0, rank = 0;
  std::vector<unsigned char> bytes;
  unsigned char* shared = nullptr;
  std::size_t size = 0;
  std::vector<Thread> threads;
  std::vector<Warp> warps;
  std::vector<Group> groups;
  std::array<Meeting, 16> meetings;

  bool done() const;
};

// Thrown where a kernel does what the chip would not survive, or what it gives no promise about.
struct Fault : std::runtime_error {
  using std::runtime_error::runtime_error;
};

struct Cluster {
  // The grid has `grid` blocks, those of this cluster from number `first` on.
  Cluster(unsigned grid, unsigned first, unsigned size, unsigned threads, std::size_t shared, Pace pace,
          std::mt19937& random, std::function<void()> kernel);

  // Runs all threads to their ends. Raises Fault.
  void run();
  // Does a copy's work, or keeps it for later.
  void beside(std::function<void()> work);
  bool copies_now();
  bool multiplies_now();

  unsigned grid;
  std::vector<Block> blocks;
  Meeting meeting;
  Pace pace;
  std::mt19937& random;
  std::function<void()> kernel;
  std::deque<std::function<void()>> waiting;
  std::string fault;

 private:
  void resume(Thread& thread);
  bool any_goes_on(std::vector<Thread*>& order);
  ucontext_t scheduler_{};
};

Thread& self();
// Lets others run until `goes_on`.
void await(std::function<bool()> goes_on);
// Waits until `count` threads have come.
void meet(Meeting& meeting, int count);

// Counts as one of those who meet, and does not wait for them. Returns whether it was the last.
bool announce(Meeting& meeting, int count);

// A place in shared memory: how far from its begin, and the same of another block of the cluster.
uint32_t offset_of(const void* pointer);
unsigned char* at(uint32_t offset, unsigned rank);

// Barriers of the chip, in their eight bytes.
void make_barrier(uint64_t* barrier, uint32_t arrivals);
void arrive(uint64_t* barrier);
void expect(uint64_t* barrier, int32_t bytes);
bool complete(const uint64_t* barrier, uint32_t parity);

void issue(Product product, float* sums, const uint32_t* words);
void commit();
void await_products(std::size_t but);

}  // namespace emulated
