// What the kernel in rows.cu is told, and where its instances are.
#pragma once

#include <cstdint>

namespace rewriter::rows {

// Eight elements of 16 bits each; so many of them for a thread, at most.
constexpr int kLine = 8, kLines = 5;
constexpr int kMostThreads = 512;
// Rows of a block, where a warp makes a row.
constexpr int kTogether = 4;
// A word for each warp.
constexpr int kShared = kMostThreads / 32 * 4;

// Of what comes from x; with GEGLU x has the gates behind.
enum Activation : int { kNone, kGelu, kGeluTanh, kQuickGelu, kSilu, kGeglu, kActivations };

struct Work {
  const void *x, *left;
  int64_t pitch, left_pitch;  // elements from a row to the next
  int width, columns;         // lines of `left`, and of the result: those of `left` first
  int rows, threads;          // and threads of a row
  void* codes;
  float* scales;
};

// The address of the instance for these operands and results, as launches take it, or null. Its argument: Work.
const void* kernel(bool f16, bool integers, int activation);

}  // namespace rewriter::rows
