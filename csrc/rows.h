// Small ops on rows of activations, routing among them, and the kernels that they need of each
// instruction set.
#pragma once

#include <cstdint>

namespace fathom {

// Products of rows of x with rows of a plain matrix, both of one type.
struct DotCall {
  const void* x;
  int64_t x_stride;
  int64_t num_rows;
  const void* weight;  // [num_outputs][width], without gaps
  int64_t num_outputs, width;
  float* to;
  int64_t to_stride;
};

struct RowKernels {
  // to[i] = silu(gate[i]) * up[i]
  void (*silu_mul)(const uint16_t* gate, const uint16_t* up, int64_t n, uint16_t* to);
  // Turns `half` pairs by their angles.
  void (*rope)(const uint16_t* x, const float* cos, const float* sin, int64_t half,
               bool is_interleaved, uint16_t* to);
  // In float32, each product in an order that depends on `width` only.
  void (*dot_bf16)(const DotCall& call);
  void (*dot_float)(const DotCall& call);
  // Softmax or sigmoid of n values, in place.
  void (*softmax)(float* values, int64_t n);
  void (*sigmoid)(float* values, int64_t n);
};

enum GroupRank { kNoGroups, kBestOfGroup, kBestTwoOfGroup };

struct Router {
  const void* weight;  // [experts][width]
  const float* bias;   // [experts]; null for none
  int64_t experts, width;
  bool is_wide;     // float32 instead of bfloat16, x too
  bool is_softmax;  // else sigmoid
  GroupRank group_rank;
  int64_t groups, groups_per_token, per_token;
  bool is_normalized;
  float scale;
};

// ids, weights: [rows][per_token]. Gives null, or what failed.
const char* route(const Router& router, const void* x, int64_t stride, int64_t rows, int64_t* ids,
                  float* weights);

}  // namespace fathom
