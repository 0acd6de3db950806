// Products of activations with strips of packed weights, with AVX2, FMA and F16C.
//
// Up to six rows by 16 outputs fill twelve registers with sums, so the strip's block is gone over
// in slices of outputs; it stays in the first-level cache meanwhile. Every sum takes its inputs in
// ascending order, alone in its lane, whatever the shape of the slice. Activations are widened into
// scratch once a block, to what a broadcast can load; int4's stay bytes.
#include <immintrin.h>

#include "attend_ops.h"
#include "isa.h"
#include "logit_ops.h"
#include "row_kernels.h"
#include "row_ops.h"
#include "vec.h"

namespace fathom {
namespace {

constexpr int kRows = 6;
constexpr int kBlock = 128;               // inputs of bf16 and fp8
constexpr int kIntBlock = 256;            // inputs of int8
constexpr int kRegisters = 8;             // of eight outputs each, in a strip
constexpr int64_t kActScratch = 1 << 15;  // of a tile call's scratch; weights come after it
static_assert(kMaxRows * kBlock * 4 <= kActScratch && kMaxRows * kIntBlock * 2 <= kActScratch);

// Calls body<rows, registers>(first row, first register): all rows by all outputs.
template <int M, int C, class Body>
inline void by_slices(int row, Body&& body) {
  for (int first = 0; first < kRegisters; first += C) body.template operator()<M, C>(row, first);
}
template <class Body>
inline void by_tiles(int num_rows, Body&& body) {
  int row = 0;
  for (; row + kRows <= num_rows; row += kRows) by_slices<kRows, 2>(row, body);
  switch (num_rows - row) {
    case 1: by_slices<1, 8>(row, body); break;
    case 2: by_slices<2, 4>(row, body); break;
    case 3: by_slices<3, 4>(row, body); break;
    case 4: by_slices<4, 2>(row, body); break;
    case 5: by_slices<5, 2>(row, body); break;
  }
}

// One block of inputs: `data` its weights, `acts` its activations, [rows][kBlock or kIntBlock / 2].
struct Block {
  const uint8_t* data;
  const void* acts;
  int64_t size;
  bool is_first;
};

// [rows][kBlock] float32 from bfloat16.
const float* widen_rows(const TileCall& call, int64_t first, int64_t size) {
  float* to = reinterpret_cast<float*>(call.scratch);
  for (int m = 0; m < call.num_rows; ++m) {
    const uint16_t* from = static_cast<const uint16_t*>(call.rows[m].values) + first;
    for (int64_t k = 0; k < size; k += kLanes) store(to + m * kBlock + k, load_bf16(from + k));
  }
  return to;
}

// A register holds pairs of eight outputs: the even input in the low halves, the odd in the high.
template <int M, int C>
inline void sum_pairs(__m256 (&sums)[M][C], const Block& block, int row, int first) {
  const __m256i high_half = _mm256_set1_epi32(int(0xffff0000));
  const uint8_t* data = block.data + 32 * first;
  const float* acts = static_cast<const float*>(block.acts) + row * kBlock;
  for (int64_t k = 0; k < block.size; k += 2, data += 256, acts += 2) {
    __m256 b[C];
#pragma GCC unroll 8
    for (int c = 0; c < C; ++c)
      b[c] = _mm256_castsi256_ps(
          _mm256_slli_epi32(_mm256_load_si256((const __m256i*)(data + 32 * c)), 16));
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) {
      in_order();
      const __m256 a = _mm256_broadcast_ss(acts + m * kBlock);
#pragma GCC unroll 8
      for (int c = 0; c < C; ++c) sums[m][c] = _mm256_fmadd_ps(a, b[c], sums[m][c]);
    }
    in_order();
#pragma GCC unroll 8
    for (int c = 0; c < C; ++c)
      b[c] = _mm256_castsi256_ps(
          _mm256_and_si256(_mm256_load_si256((const __m256i*)(data + 32 * c)), high_half));
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) {
      in_order();
      const __m256 a = _mm256_broadcast_ss(acts + m * kBlock + 1);
#pragma GCC unroll 8
      for (int c = 0; c < C; ++c) sums[m][c] = _mm256_fmadd_ps(a, b[c], sums[m][c]);
    }
  }
}

template <int M, int C>
void block_bf16(const Block& block, int row, int first, float* out) {
  __m256 sums[M][C];
#pragma GCC unroll 8
  for (int m = 0; m < M; ++m)
#pragma GCC unroll 8
    for (int c = 0; c < C; ++c)
      sums[m][c] = block.is_first ? _mm256_setzero_ps() : _mm256_load_ps(out + m * kStrip + 8 * c);
  sum_pairs<M, C>(sums, block, row, first);
#pragma GCC unroll 8
  for (int m = 0; m < M; ++m)
#pragma GCC unroll 8
    for (int c = 0; c < C; ++c) _mm256_store_ps(out + m * kStrip + 8 * c, sums[m][c]);
}

// A block of FP8's: its sum is scaled before it is added.
template <int M, int C>
void block_fp8(const Block& block, float scale, int row, int first, float* out) {
  __m256 sums[M][C];
#pragma GCC unroll 8
  for (int m = 0; m < M; ++m)
#pragma GCC unroll 8
    for (int c = 0; c < C; ++c) sums[m][c] = _mm256_setzero_ps();
  sum_pairs<M, C>(sums, block, row, first);
  const __m256 factor = _mm256_set1_ps(scale);
#pragma GCC unroll 8
  for (int m = 0; m < M; ++m)
#pragma GCC unroll 8
    for (int c = 0; c < C; ++c) {
      float* at = out + m * kStrip + 8 * c;
      const __m256 before = block.is_first ? _mm256_setzero_ps() : _mm256_load_ps(at);
      _mm256_store_ps(at, _mm256_fmadd_ps(sums[m][c], factor, before));
    }
}

void tile_bf16(const TileCall& call) {
  const int64_t k_padded = call.matrix->k_padded();
  for (int64_t first = 0; first < k_padded; first += kBlock) {
    const int64_t size = k_padded - first < kBlock ? k_padded - first : kBlock;
    const Block block{call.strip + first * kStrip * 2, widen_rows(call, first, size), size,
                      first == 0};
    by_tiles(call.num_rows, [&]<int M, int C>(int row, int c) {
      block_bf16<M, C>(block, row, c, call.out + row * kStrip + 8 * c);
    });
  }
}

// e4m3 to bfloat16, exact. Normal values: the exponent's bias grows from 7 to 127, so the high byte
// is the three upper bits of the magnitude plus 60, and the low byte its four lower bits moved up.
// The seven subnormal ones come from a table; magnitude 127 is NaN.
void widen_fp8(const uint8_t* from, int64_t bytes, uint8_t* to) {
  const __m256i low_table = _mm256_broadcastsi128_si256(
      _mm_setr_epi8(0, 0, char(0x80), char(0xc0), 0, 0x20, 0x40, 0x60, 0, 0, 0, 0, 0, 0, 0, 0));
  const __m256i high_table = _mm256_broadcastsi128_si256(
      _mm_setr_epi8(0, 0x3b, 0x3b, 0x3b, 0x3c, 0x3c, 0x3c, 0x3c, 0, 0, 0, 0, 0, 0, 0, 0));
  const __m256i low_bits = _mm256_set1_epi8(0x0f), sign_bit = _mm256_set1_epi8(char(0x80));
  const __m256i nan = _mm256_set1_epi8(0x7f);
  for (int64_t at = 0; at < bytes; at += 256, to += 512)
    for (int i = 0; i < 8; ++i) {
      const __m256i both = _mm256_load_si256((const __m256i*)(from + at + 32 * i));
      const __m256i magnitude = _mm256_and_si256(both, nan);
      const __m256i upper = _mm256_and_si256(_mm256_srli_epi16(magnitude, 4), low_bits);
      const __m256i lower = _mm256_and_si256(magnitude, low_bits);
      const __m256i is_subnormal = _mm256_cmpgt_epi8(_mm256_set1_epi8(8), magnitude);
      const __m256i is_nan = _mm256_cmpeq_epi8(magnitude, nan);
      const __m256i low = _mm256_blendv_epi8(_mm256_slli_epi16(lower, 4),
                                             _mm256_shuffle_epi8(low_table, lower), is_subnormal);
      __m256i high = _mm256_blendv_epi8(_mm256_add_epi8(upper, _mm256_set1_epi8(60)),
                                        _mm256_shuffle_epi8(high_table, lower), is_subnormal);
      high = _mm256_or_si256(high, _mm256_and_si256(is_nan, nan));
      high = _mm256_or_si256(high, _mm256_and_si256(both, sign_bit));
      _mm256_store_si256((__m256i*)(to + 32 * i), _mm256_unpacklo_epi8(low, high));
      _mm256_store_si256((__m256i*)(to + 256 + 32 * i), _mm256_unpackhi_epi8(low, high));
    }
}

void tile_fp8(const TileCall& call) {
  const int64_t k_padded = call.matrix->k_padded();
  const float* scales = reinterpret_cast<const float*>(call.strip + k_padded * kStrip);
  uint8_t* weights = call.scratch + kActScratch;
  static_assert(kBlock == kFp8Block && kBlock * kStrip * 2 <= kTileScratch - kActScratch);
  for (int64_t first = 0; first < k_padded; first += kBlock) {
    const int64_t size = k_padded - first < kBlock ? k_padded - first : kBlock;
    widen_fp8(call.strip + first * kStrip, size * kStrip, weights);
    const Block block{weights, widen_rows(call, first, size), size, first == 0};
    const float scale = scales[first / kBlock];
    by_tiles(call.num_rows, [&]<int M, int C>(int row, int c) {
      block_fp8<M, C>(block, scale, row, c, call.out + row * kStrip + 8 * c);
    });
  }
}

// For every four int8: the even two, then the odd two, as pairs of int16.
const int32_t* split_rows(const TileCall& call, int64_t first, int64_t size) {
  uint8_t* to = call.scratch;
  for (int m = 0; m < call.num_rows; ++m) {
    const uint8_t* from = static_cast<const uint8_t*>(call.rows[m].values) + first;
    for (int64_t k = 0; k < size; k += 16) {
      const __m128i bytes = _mm_loadu_si128((const __m128i*)(from + k));
      const __m128i even = _mm_srai_epi16(_mm_slli_epi16(bytes, 8), 8);
      const __m128i odd = _mm_srai_epi16(bytes, 8);
      uint8_t* at = to + 2 * (m * kIntBlock + k);
      _mm_store_si128((__m128i*)at, _mm_unpacklo_epi32(even, odd));
      _mm_store_si128((__m128i*)(at + 16), _mm_unpackhi_epi32(even, odd));
    }
  }
  return reinterpret_cast<const int32_t*>(to);
}

// Products of int16 halves: nothing saturates, -128 included.
template <int M, int C>
void block_int8(const Block& block, int row, int first, float* out) {
  constexpr int kRowStride = kIntBlock / 2;  // int32
  __m256i sums[M][C];
#pragma GCC unroll 8
  for (int m = 0; m < M; ++m)
#pragma GCC unroll 8
    for (int c = 0; c < C; ++c)
      sums[m][c] = block.is_first ? _mm256_setzero_si256()
                                  : _mm256_load_si256((const __m256i*)(out + m * kStrip + 8 * c));
  const uint8_t* data = block.data + 32 * first;
  const int32_t* acts = static_cast<const int32_t*>(block.acts) + row * kRowStride;
  for (int64_t k = 0; k < block.size; k += 4, data += 256, acts += 2) {
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half) {
      __m256i b[C];
#pragma GCC unroll 8
      for (int c = 0; c < C; ++c) {
        b[c] = _mm256_load_si256((const __m256i*)(data + 32 * c));
        b[c] = _mm256_srai_epi16(half ? b[c] : _mm256_slli_epi16(b[c], 8), 8);
      }
#pragma GCC unroll 8
      for (int m = 0; m < M; ++m) {
        in_order();
        const __m256i a = _mm256_set1_epi32(acts[m * kRowStride + half]);
#pragma GCC unroll 8
        for (int c = 0; c < C; ++c)
          sums[m][c] = _mm256_add_epi32(sums[m][c], _mm256_madd_epi16(a, b[c]));
      }
    }
  }
#pragma GCC unroll 8
  for (int m = 0; m < M; ++m)
#pragma GCC unroll 8
    for (int c = 0; c < C; ++c)
      _mm256_store_si256((__m256i*)(out + m * kStrip + 8 * c), sums[m][c]);
}

void tile_int8(const TileCall& call) {
  const int64_t k_padded = call.matrix->k_padded();
  for (int64_t first = 0; first < k_padded; first += kIntBlock) {
    const int64_t size = k_padded - first < kIntBlock ? k_padded - first : kIntBlock;
    const Block block{call.strip + first * kStrip, split_rows(call, first, size), size, first == 0};
    by_tiles(call.num_rows, [&]<int M, int C>(int row, int c) {
      block_int8<M, C>(block, row, c, call.out + row * kStrip + 8 * c);
    });
  }
  const float* scales = reinterpret_cast<const float*>(call.strip + k_padded * kStrip);
  for (int m = 0; m < call.num_rows; ++m) {
    const __m256 row_scale = _mm256_set1_ps(call.rows[m].scales[0]);
    for (int c = 0; c < kRegisters; ++c) {
      float* at = call.out + m * kStrip + 8 * c;
      const __m256 sums = _mm256_cvtepi32_ps(_mm256_load_si256((const __m256i*)at));
      const __m256 scale = _mm256_mul_ps(_mm256_load_ps(scales + 8 * c), row_scale);
      _mm256_store_ps(at, _mm256_mul_ps(sums, scale));
    }
  }
}

// One group of int4: sums of nibbles times int8, then the zero points and the scales.
struct Group {
  const uint8_t* data;    // of its unit
  const uint8_t* scales;  // 64 float16, then 64 uint8
  int64_t first;          // its first input
  int64_t begin;          // and that within the unit
  int64_t index;          // among the row's groups
  int32_t size;
  bool is_first;
};

// Adds 32 inputs from `k` of the unit on: nibbles of one half. Eight products of two nibbles and
// two int8 stay below 2^15, so that int16 sums them exactly.
template <int M, int C>
inline void sum_nibbles(__m256i (&sums)[M][C], const ActRow* rows, const Group& group, int64_t k,
                        int first) {
  const __m256i mask = _mm256_set1_epi8(0x0f);
  const int shift = k % kStep == 0 ? 0 : 4;
  const uint8_t* data = group.data + k / kStep * 2048 + 32 * first;
  const int64_t element = group.first - group.begin + k;
  __m256i narrow_sums[M][C];
#pragma GCC unroll 8
  for (int m = 0; m < M; ++m)
#pragma GCC unroll 8
    for (int c = 0; c < C; ++c) narrow_sums[m][c] = _mm256_setzero_si256();
  for (int i = 0; i < 8; ++i, data += 256) {
    __m256i b[C];
#pragma GCC unroll 8
    for (int c = 0; c < C; ++c) {
      const __m256i both = _mm256_load_si256((const __m256i*)(data + 32 * c));
      b[c] = _mm256_and_si256(_mm256_srli_epi16(both, shift), mask);
    }
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) {
      in_order();
      int32_t quad;
      std::memcpy(&quad, static_cast<const int8_t*>(rows[m].values) + element + 4 * i, 4);
      const __m256i a = _mm256_set1_epi32(quad);
#pragma GCC unroll 8
      for (int c = 0; c < C; ++c)
        narrow_sums[m][c] = _mm256_add_epi16(narrow_sums[m][c], _mm256_maddubs_epi16(b[c], a));
    }
  }
  const __m256i ones = _mm256_set1_epi16(1);
#pragma GCC unroll 8
  for (int m = 0; m < M; ++m)
#pragma GCC unroll 8
    for (int c = 0; c < C; ++c)
      sums[m][c] = _mm256_add_epi32(sums[m][c], _mm256_madd_epi16(narrow_sums[m][c], ones));
}

template <int M, int C>
void group_int4(const ActRow* rows, const Group& group, int first, float* out) {
  __m256i sums[M][C];
#pragma GCC unroll 8
  for (int m = 0; m < M; ++m)
#pragma GCC unroll 8
    for (int c = 0; c < C; ++c) sums[m][c] = _mm256_setzero_si256();
  for (int64_t k = group.begin; k < group.begin + group.size; k += 32)
    sum_nibbles<M, C>(sums, rows, group, k, first);
#pragma GCC unroll 8
  for (int c = 0; c < C; ++c) {
    const int column = 8 * (first + c);
    const __m256 scale =
        _mm256_cvtph_ps(_mm_load_si128((const __m128i*)(group.scales + 2 * column)));
    const __m256 zero = _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(
        _mm_loadl_epi64((const __m128i*)(group.scales + 2 * kStrip + column))));
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) {
      const __m256 row_scale = _mm256_set1_ps(rows[m].scales[group.index]);
      const __m256 row_sum = _mm256_set1_ps(rows[m].sums[group.index]);
      float* at = out + m * kStrip + 8 * c;
      const __m256 before = group.is_first ? _mm256_setzero_ps() : _mm256_load_ps(at);
      const __m256 exact = _mm256_fnmadd_ps(zero, row_sum, _mm256_cvtepi32_ps(sums[m][c]));
      _mm256_store_ps(at, _mm256_fmadd_ps(exact, _mm256_mul_ps(scale, row_scale), before));
    }
  }
}

void tile_int4(const TileCall& call) {
  const Matrix& matrix = *call.matrix;
  const int64_t unit = matrix.unit(), units = round_up(matrix.k_padded(), unit) / unit;
  const int64_t groups = unit / matrix.group;
  for (int64_t u = 0; u < units; ++u) {
    const uint8_t* data = call.strip + u * matrix.unit_bytes();
    for (int64_t g = 0; g < groups; ++g) {
      const int64_t begin = g * matrix.group;
      const Group group{data,
                        data + unit * kStrip / 2 + g * 3 * kStrip,
                        u * unit + begin,
                        begin,
                        u * groups + g,
                        matrix.group,
                        u == 0 && g == 0};
      by_tiles(call.num_rows, [&]<int M, int C>(int row, int c) {
        group_int4<M, C>(call.rows + row, group, c, call.out + row * kStrip + 8 * c);
      });
    }
  }
}

// Scores of up to four keys and sixteen queries; see attend.h.
template <int M>
void score_keys(const uint16_t* const* rows, const uint16_t* queries, int width, int blocks,
                float* to) {
  const __m256i high_half = _mm256_set1_epi32(int(0xffff0000));
  __m256 sums[M][2];
#pragma GCC unroll 8
  for (int m = 0; m < M; ++m) sums[m][0] = sums[m][1] = _mm256_setzero_ps();
  for (int d = 0; d < width; d += 2, queries += 32 * blocks) {
#pragma GCC unroll 2
    for (int odd = 0; odd < 2; ++odd) {
      __m256 b[2];
#pragma GCC unroll 2
      for (int c = 0; c < 2; ++c) {
        const __m256i pairs = _mm256_loadu_si256((const __m256i*)(queries + 16 * c));
        b[c] = _mm256_castsi256_ps(odd ? _mm256_and_si256(pairs, high_half)
                                       : _mm256_slli_epi32(pairs, 16));
      }
#pragma GCC unroll 8
      for (int m = 0; m < M; ++m) {
        in_order();
        const __m256 a = _mm256_set1_ps(bf16_to_float(rows[m][d + odd]));
        sums[m][0] = _mm256_fmadd_ps(a, b[0], sums[m][0]);
        sums[m][1] = _mm256_fmadd_ps(a, b[1], sums[m][1]);
      }
    }
  }
#pragma GCC unroll 8
  for (int m = 0; m < M; ++m)
    for (int c = 0; c < 2; ++c) _mm256_store_ps(to + m * blocks * kLanes + 8 * c, sums[m][c]);
}

void scores(const KeyBlock& keys, const uint16_t* queries, int width, int blocks, float* to) {
  for (int block = 0; block < blocks; ++block) {
    const uint16_t* from = queries + 32 * block;
    float* out = to + block * kLanes;
    int key = 0;
    for (; key + 4 <= keys.count; key += 4)
      score_keys<4>(keys.rows + key, from, width, blocks, out + key * blocks * kLanes);
    for (; key < keys.count; ++key)
      score_keys<1>(keys.rows + key, from, width, blocks, out + key * blocks * kLanes);
  }
}

bool is_supported() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
         __builtin_cpu_supports("f16c") && __builtin_cpu_supports("bmi2");
}

}  // namespace

const Isa* isa_avx2() {
  static const AttendKernels attend{scores, weigh,  interleave, rescale_add, merge,
                                    finish, rotate, read_fp8,   write_fp8};
  static const Isa table{
      "avx2",         48,       false,          {tile_bf16, tile_fp8, tile_int8, tile_int4},
      prepare_row<0>, norm_row, silu_mul_strip, add_weighted_strip,
      round_strip,    &attend,  &logit_kernels, &row_kernels};
  return is_supported() ? &table : nullptr;
}

}  // namespace fathom
