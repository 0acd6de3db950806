// The ops behind the C interface (api.cpp checks their arguments). Each gives null, or what failed.
#pragma once

#include <algorithm>
#include <cstring>
#include <vector>

#include "isa.h"
#include "pool.h"

namespace fathom {

// Rows of activations: `num_rows` of `width` bfloat16, `stride` elements apart.
struct Rows {
  const uint16_t* x;
  int64_t stride, num_rows, width;
  uint16_t* residual;  // x is added to it in place; null for none
  int64_t residual_stride;
  const uint16_t* norm;  // weight of an RMS norm, [width]; null for none
  float eps;

  RowInput at(int64_t row) const {
    return {x + row * stride, residual == nullptr ? nullptr : residual + row * residual_stride,
            norm, eps, width};
  }
};

// Where a product goes: bfloat16, or float32 where `is_wide`.
struct Output {
  void* to;
  int64_t stride;
  bool is_wide;
  int64_t expert;  // of the matrix

  void put(const Isa& isa, int64_t row, int64_t column, int width, const float* values) const {
    const int64_t at = row * stride + column;
    if (is_wide) std::memcpy(static_cast<float*>(to) + at, values, 4 * width);
    else isa.round(values, width, static_cast<uint16_t*>(to) + at);
  }
};

// Memory of an op that all threads share, kept between calls; one buffer for each purpose. What
// each is asked for is counted beforehand by perf/kernel_memory.py, in this order.
enum Arena {
  kArenaActs,
  kArenaInner,
  kArenaInnerActs,
  kArenaSums,
  kArenaQueries,
  kArenaFound,
  kNumArenas
};
uint8_t* arena(Arena purpose, int64_t bytes);

// A thread's buffers for tile calls.
struct TileBuffers {
  static constexpr int64_t kBytes = 2 * kMaxRows * kStrip * 4 + kTileScratch;
  float* sums;       // two tiles: [2][kMaxRows][64]
  uint8_t* scratch;  // kTileScratch
  uint8_t* more;     // as many bytes as were asked for; null where memory ends
  explicit TileBuffers(int thread, int64_t more_bytes = 0) {
    uint8_t* memory = static_cast<uint8_t*>(fathom::scratch(thread, kBytes + more_bytes));
    sums = reinterpret_cast<float*>(memory);
    scratch = memory + 2 * kMaxRows * kStrip * 4;
    more = memory == nullptr ? nullptr : memory + kBytes;
  }
};

// Rows as the products of a matrix want them: as they lie, where that will do, else in `memory`.
void prepare_rows(const Matrix& matrix, const Rows& in, std::vector<ActRow>& rows, uint8_t* memory);

const char* linear(const Matrix& matrix, const Rows& in, const Output& out);

// A gated MLP, or many: out = sum of weight * down(silu(gate x) * up x) over the routed experts of
// each row in ascending order of their ids, then the shared one with weight 1.
struct Mlp {
  const Matrix* gate_up;  // null for none
  const Matrix* down;
};
struct Routing {
  const int64_t* ids;    // [rows][per_row]
  const float* weights;  // [rows][per_row]
  int64_t per_row;
};
const char* experts(const Mlp& routed, const Routing& routing, const Mlp& shared, const Rows& in,
                    const Output& out);

}  // namespace fathom
