// What each instruction set provides; the rest of the library is the same on all of them.
#pragma once

#include "matrix.h"

namespace fathom {

struct TileCall {
  const Matrix* matrix;
  const uint8_t* strip;
  const ActRow* rows;
  int num_rows;      // at most max_rows
  float* out;        // [num_rows][64] float32 in room for kMaxRows rows, 64-byte aligned
  uint8_t* scratch;  // kTileScratch bytes of this thread
};

// What becomes of one row of activations before a product, in this order.
struct RowInput {
  const uint16_t* x;     // [width] bfloat16
  uint16_t* residual;    // x is added to it, and it is taken instead of x; null for none
  const uint16_t* norm;  // weight of an RMS norm; null for none
  float eps;
  int64_t width;
};

constexpr int kMaxRows = 64;
constexpr int64_t kTileScratch = 1 << 17;

struct Isa {
  const char* name;
  // Rows that one tile call takes best; at most kMaxRows.
  int max_rows;
  // Whether int8 activations are stored with 128 added, for products of unsigned by signed bytes.
  bool is_int8_offset;
  // out = activations times 64 outputs, by format. The sum over inputs runs in the same order
  // whatever num_rows is.
  void (*tile[kNumFormats])(const TileCall& call);
  // Writes one row for products with `matrix` to `to`, act_bytes of it, 64-byte aligned.
  ActRow (*prepare)(const RowInput& in, const Matrix& matrix, uint8_t* to);
  // The same without a product: the row as bfloat16, to `to`.
  void (*norm)(const RowInput& in, uint16_t* to);
  // to[i] = silu(gate[i]) * up[i], rounded to bfloat16; n <= 64, all of 64 readable and writable.
  void (*silu_mul)(const float* gate, const float* up, uint16_t* to);
  // sums[i] += weight * values[i], for 64 values.
  void (*add_weighted)(float* sums, const float* values, float weight);
  // Rounds n <= 64 values to bfloat16.
  void (*round)(const float* values, int n, uint16_t* to);
  // Dot products of attention, see attend.h.
  const struct AttendKernels* attend;
  // Small ops, see logits.h and rows.h.
  const struct LogitKernels* logits;
  const struct RowKernels* rows;
};

// Null where this processor cannot run it.
const Isa* isa_amx();
const Isa* isa_avx512();
const Isa* isa_avx2();
const Isa* isa_amx_emulated();  // as isa_amx, its tiles in plain C++: for tests, never the best

// The best that this processor runs, or the one named by choose_isa; null for none.
const Isa* isa();
bool choose_isa(const char* name);

}  // namespace fathom
