// Multi-head latent attention over pages, absorbed: every head attends to the latents themselves
// (DeepSeek-V2 paper, arXiv 2405.04434, section 2.1), in decoding and in prefill alike, so that a
// token's result does not depend on how its sequence was cut into steps.
//
// A column is one head of one token. Keys go by blocks of 128, blocks by splits of 512 keys, both
// counted from the start of the sequence. Within a split the softmax runs on line; splits are
// merged in order. Whether splits run one after the other or side by side changes no bit.
#pragma once

#include "ops.h"

namespace fathom {

constexpr int kKeyBlock = 128;
constexpr int kSplitKeys = 512;
constexpr int kColumns = 64;  // of one item
constexpr int kLanesInBlock = 16;
// What splits that run side by side may take until they are merged: 256 MiB. Sequences beyond it,
// of which there are enough for all threads, have theirs one after the other.
constexpr int64_t kMaxPartialFloats = 1 << 26;

enum KvFormat : int32_t { kKvBf16 = 0, kKvFp8 = 1 };

// One layer's cache: cells of R latents, normalised, then Dr rotated key values.
//   bf16: R + Dr bfloat16
//   fp8:  R e4m3, then a float scale for each 128 of them, then Dr bfloat16
struct Cache {
  uint8_t* data;
  int64_t pages, page_size;
  int32_t format, rank, rope;

  int64_t scale_offset() const { return round_up(rank, 4); }
  int64_t rope_offset() const {
    return format == kKvBf16 ? 2 * rank : scale_offset() + 4 * ((rank + 127) / 128);
  }
  int64_t cell_bytes() const { return rope_offset() + 2 * rope; }
  uint8_t* cell(int64_t slot) const { return data + slot * cell_bytes(); }
};

// Angles of each token: cos and sin [T, Dr / 2] float32.
struct Angles {
  const float* cos;
  const float* sin;
  bool is_interleaved;
};

struct Batch {
  int64_t sequences, tokens;
  const int64_t* query_starts;  // [sequences + 1]
  const int64_t* context_lens;  // [sequences]
  const int64_t* page_table;    // [sequences][table_width]
  int64_t table_width;
};

struct AttendCall {
  const uint16_t* q;     // [T][H][Dn + Dr], not rotated
  int64_t q_stride;      // between tokens
  const Matrix* absorb;  // H matrices [R, Dn]: a head's query into the latents' space
  const Matrix* expand;  // H matrices [Dv, R]: what a head found, out of it
  Cache cache;
  Batch batch;
  Angles angles;
  float scale;
  uint16_t* out;  // [T][H][Dv]
};

const char* mla_attend(const AttendCall& call);

struct WriteCall {
  const uint16_t* latent;  // [T][R], not normalised
  const uint16_t* key;     // [T][Dr], not rotated
  int64_t stride;          // between tokens, of both
  const uint16_t* norm;    // [R]
  float eps;
  const int64_t* slots;  // [T]
  int64_t tokens;
  Cache cache;
  Angles angles;
};

const char* mla_write(const WriteCall& call);

// What the instruction sets provide, see attend_ops.h.
struct KeyBlock {
  const uint16_t* rows[kKeyBlock];  // R + Dr bfloat16 each
  int count;
};

// The running softmax of up to 64 columns: maximum, sum, and weighted sum of latents.
struct Found {
  float* most;    // [64]
  float* total;   // [64]
  float* latent;  // [columns][R padded to 64]
};

struct AttendKernels {
  // scores [keys][16 * blocks] of packed queries [width / 2][blocks][16][2].
  void (*scores)(const KeyBlock& keys, const uint16_t* queries, int width, int blocks, float* to);
  // Softmax step: from scores to weights [16 * blocks][kKeyBlock] bfloat16, with `found.most` and
  // `found.total` brought up to date; rescale[column] is what `found.latent` is to be multiplied
  // by. Column c sees the keys below visible[c] only.
  void (*weigh)(const float* scores, int keys, int blocks, const int32_t* visible, bool is_masked,
                float scale, Found& found, float* rescale, uint16_t* weights);
  // The block's latents, pairs of keys side by side: strips [R / 64][kKeyBlock / 2][64][2].
  void (*interleave)(const KeyBlock& keys, int rank, uint16_t* to);
  // sums = sums * factor + values, for 64 values.
  void (*rescale_add)(float* sums, const float* values, float factor);
  // `into` merged with a later split of the same `columns`.
  void (*merge)(Found& into, const Found& later, int columns, int64_t width);
  // found.latent / found.total as bfloat16, [width] of one column.
  void (*finish)(const Found& found, int column, int64_t width, int rank, uint16_t* to);
  // Rotates `rope` values by a token's angles.
  void (*rotate)(const uint16_t* from, const float* cos, const float* sin, int rope,
                 bool is_interleaved, uint16_t* to);
  // A cell of FP8: from and to R + Dr bfloat16.
  void (*read_fp8)(const Cache& cache, const uint8_t* cell, uint16_t* to);
  void (*write_fp8)(const Cache& cache, const uint16_t* from, uint8_t* cell);
};

}  // namespace fathom
