// Products of activations with strips of packed weights, with AVX-512 (BF16, VNNI, VBMI).
//
// Six rows of activations by 64 outputs fill 24 registers with sums. Inputs go by blocks that keep
// the block's weights in the first-level cache; sums go to memory and back between blocks, which
// changes no bit. Weights that are not bf16 or int8 are widened in registers for few rows, once
// into scratch for many; both give the same values.
#include <immintrin.h>

#include "attend_avx512.h"
#include "attend_ops.h"
#include "isa.h"
#include "logit_ops.h"
#include "row_kernels.h"
#include "row_ops.h"
#include "widen_avx512.h"

namespace fathom {
namespace {

constexpr int kRows = 6;
constexpr int kBlock = 128;  // inputs

inline __m512i quad_of(const void* row, int64_t element) {
  int32_t quad;
  std::memcpy(&quad, static_cast<const uint8_t*>(row) + element, 4);
  return _mm512_set1_epi32(quad);
}

template <int M>
inline void add_pairs(__m512 (&sums)[M][4], const ActRow* rows, int64_t element, const __m512i* b) {
#pragma GCC unroll 8
  for (int m = 0; m < M; ++m) {
    const __m512bh a = (__m512bh)pair_of(rows[m].values, element);
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) sums[m][j] = _mm512_dpbf16_ps(sums[m][j], a, (__m512bh)b[j]);
  }
}

template <int M>
inline void load_sums(__m512 (&sums)[M][4], const float* from, bool is_first) {
#pragma GCC unroll 8
  for (int m = 0; m < M; ++m)
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j)
      sums[m][j] = is_first ? _mm512_setzero_ps() : _mm512_load_ps(from + m * kStrip + 16 * j);
}

template <int M>
inline void store_sums(float* to, const __m512 (&sums)[M][4]) {
#pragma GCC unroll 8
  for (int m = 0; m < M; ++m)
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) _mm512_store_ps(to + m * kStrip + 16 * j, sums[m][j]);
}

// Asks for the four lines of a step that comes soon. Few rows are done with a step faster than
// memory gives the next one, and the processor's own look-ahead ends at every page.
inline void fetch_ahead(const uint8_t* data) {
  constexpr int kDistance = 4096;
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) _mm_prefetch(data + kDistance + 64 * j, _MM_HINT_T0);
}

// One block of inputs of one group of rows. `data`: the block's weights.
struct Block {
  const uint8_t* data;
  int64_t first, size;  // inputs
  bool is_first;
};

template <int M>
void block_bf16(const ActRow* rows, const Block& block, float* out) {
  __m512 sums[M][4];
  load_sums<M>(sums, out, block.is_first);
  const uint8_t* data = block.data;
  for (int64_t k = 0; k < block.size; k += 2, data += 256) {
    if (M < kRows) fetch_ahead(data);
    __m512i b[4];
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) b[j] = _mm512_load_si512(data + 64 * j);
    add_pairs<M>(sums, rows, block.first + k, b);
  }
  store_sums<M>(out, sums);
}

// The block's sum is scaled and added: the block is one of FP8's.
template <int M>
void add_scaled(float* out, const __m512 (&sums)[M][4], float scale, bool is_first) {
  const __m512 factor = _mm512_set1_ps(scale);
#pragma GCC unroll 8
  for (int m = 0; m < M; ++m)
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
      float* at = out + m * kStrip + 16 * j;
      const __m512 before = is_first ? _mm512_setzero_ps() : _mm512_load_ps(at);
      _mm512_store_ps(at, _mm512_fmadd_ps(sums[m][j], factor, before));
    }
}

template <int M>
void block_fp8(const ActRow* rows, const Block& block, float scale, bool is_wide, float* out) {
  __m512 sums[M][4];
  load_sums<M>(sums, out, true);
  const uint8_t* data = block.data;
  if (is_wide) {
    for (int64_t k = 0; k < block.size; k += 2, data += 256) {
      __m512i b[4];
#pragma GCC unroll 4
      for (int j = 0; j < 4; ++j) b[j] = _mm512_load_si512(data + 64 * j);
      add_pairs<M>(sums, rows, block.first + k, b);
    }
  } else {
    const Widen8 widen;
    for (int64_t k = 0; k < block.size; k += 4, data += 256) {
      if (M < kRows) fetch_ahead(data);
      __m512i b[2][4];
#pragma GCC unroll 4
      for (int j = 0; j < 4; ++j) widen(_mm512_load_si512(data + 64 * j), b[0][j], b[1][j]);
      add_pairs<M>(sums, rows, block.first + k, b[0]);
      add_pairs<M>(sums, rows, block.first + k + 2, b[1]);
    }
  }
  add_scaled<M>(out, sums, scale, block.is_first);
}

template <int M>
void block_int8(const ActRow* rows, const Block& block, float* out) {
  __m512i sums[M][4];
#pragma GCC unroll 8
  for (int m = 0; m < M; ++m)
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j)
      sums[m][j] =
          block.is_first ? _mm512_setzero_si512() : _mm512_load_si512(out + m * kStrip + 16 * j);
  const uint8_t* data = block.data;
  for (int64_t k = 0; k < block.size; k += 4, data += 256) {
    if (M < kRows) fetch_ahead(data);
    __m512i b[4];
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) b[j] = _mm512_load_si512(data + 64 * j);
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) {
      const __m512i a = quad_of(rows[m].values, block.first + k);
#pragma GCC unroll 4
      for (int j = 0; j < 4; ++j) sums[m][j] = _mm512_dpbusd_epi32(sums[m][j], a, b[j]);
    }
  }
#pragma GCC unroll 8
  for (int m = 0; m < M; ++m)
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) _mm512_store_si512(out + m * kStrip + 16 * j, sums[m][j]);
}

// One group of int4.
struct Group {
  const uint8_t* data;  // whole rows of nibbles, or widened
  int64_t first;        // its first input
  int32_t size;
  bool is_high;  // groups of 32: the values are in the high halves
};

template <int M>
inline void add_quads(__m512i (&sums)[M][4], const ActRow* rows, int64_t element,
                      const __m512i* b) {
#pragma GCC unroll 8
  for (int m = 0; m < M; ++m) {
    const __m512i a = quad_of(rows[m].values, element);
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) sums[m][j] = _mm512_dpbusd_epi32(sums[m][j], b[j], a);
  }
}

// One half of the bytes at a time: both would push sums out of the registers.
template <int M>
inline void sum_nibbles(__m512i (&sums)[M][4], const ActRow* rows, const uint8_t* data,
                        int64_t element, int shift) {
  const __m512i mask = _mm512_set1_epi8(0x0f);
  for (int i = 0; i < 8; ++i, data += 256) {
    __m512i b[4];
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j)
      b[j] = _mm512_and_si512(_mm512_srli_epi16(_mm512_load_si512(data + 64 * j), shift), mask);
    add_quads<M>(sums, rows, element + 4 * i, b);
  }
}

// Both halves at once, 64 inputs: for few rows, whose sums leave registers for it. Memory is then
// read in one stream without a pause.
template <int M>
inline void sum_both_nibbles(__m512i (&sums)[M][4], const ActRow* rows, const uint8_t* data,
                             int64_t element) {
  const __m512i mask = _mm512_set1_epi8(0x0f);
  for (int i = 0; i < 8; ++i, data += 256) {
    __m512i low[4], high[4];
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
      const __m512i both = _mm512_load_si512(data + 64 * j);
      low[j] = _mm512_and_si512(both, mask);
      high[j] = _mm512_and_si512(_mm512_srli_epi16(both, 4), mask);
    }
    add_quads<M>(sums, rows, element + 4 * i, low);
    add_quads<M>(sums, rows, element + 4 * i + kStep / 2, high);
  }
}

// Sums of nibbles times int8, [M][64] int32. Nothing else is done here, so that the sums stay in
// registers: see add_group.
template <int M, bool kIsWide>
void sum_group(const ActRow* rows, const Group& group, int32_t* to) {
  __m512i sums[M][4];
#pragma GCC unroll 8
  for (int m = 0; m < M; ++m)
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) sums[m][j] = _mm512_setzero_si512();
  if (kIsWide) {
    const uint8_t* data = group.data;
    for (int64_t k = 0; k < group.size; k += 4, data += 256) {
      __m512i b[4];
#pragma GCC unroll 4
      for (int j = 0; j < 4; ++j) b[j] = _mm512_load_si512(data + 64 * j);
      add_quads<M>(sums, rows, group.first + k, b);
    }
  } else if (M <= 3 && group.size >= kStep) {
    for (int64_t k = 0; k < group.size; k += kStep)
      sum_both_nibbles<M>(sums, rows, group.data + k / kStep * 2048, group.first + k);
  } else {
    // Thirty-two inputs each time: low halves, then high ones; a group of 32 has one of them.
    for (int64_t k = 0; k < group.size; k += kStep / 2) {
      const bool is_high = group.size < kStep ? group.is_high : k % kStep != 0;
      sum_nibbles<M>(sums, rows, group.data + k / kStep * 2048, group.first + k, is_high ? 4 : 0);
    }
  }
#pragma GCC unroll 8
  for (int m = 0; m < M; ++m)
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) _mm512_store_si512(to + m * kStrip + 16 * j, sums[m][j]);
}

// Calls body<M>(first row) for groups of up to six rows.
template <class Body>
inline void by_rows(int num_rows, Body&& body) {
  int row = 0;
  for (; row + kRows <= num_rows; row += kRows) body.template operator()<kRows>(row);
  switch (num_rows - row) {
    case 1: body.template operator()<1>(row); break;
    case 2: body.template operator()<2>(row); break;
    case 3: body.template operator()<3>(row); break;
    case 4: body.template operator()<4>(row); break;
    case 5: body.template operator()<5>(row); break;
  }
}

void tile_bf16(const TileCall& call) {
  const int64_t k_padded = call.matrix->k_padded();
  for (int64_t first = 0; first < k_padded; first += kBlock) {
    const int64_t size = k_padded - first < kBlock ? k_padded - first : kBlock;
    const Block block{call.strip + first * kStrip * 2, first, size, first == 0};
    by_rows(call.num_rows, [&]<int M>(int row) {
      block_bf16<M>(call.rows + row, block, call.out + row * kStrip);
    });
  }
}

void tile_fp8(const TileCall& call) {
  const int64_t k_padded = call.matrix->k_padded();
  const float* scales = reinterpret_cast<const float*>(call.strip + k_padded * kStrip);
  const bool is_wide = call.num_rows > kRows;
  for (int64_t first = 0; first < k_padded; first += kFp8Block) {
    const int64_t size = k_padded - first < kFp8Block ? k_padded - first : kFp8Block;
    const uint8_t* data = call.strip + first * kStrip;
    if (is_wide) widen_fp8(data, size * kStrip, call.scratch);
    const Block block{is_wide ? call.scratch : data, first, size, first == 0};
    const float scale = scales[first / kFp8Block];
    by_rows(call.num_rows, [&]<int M>(int row) {
      block_fp8<M>(call.rows + row, block, scale, is_wide, call.out + row * kStrip);
    });
  }
}

void tile_int8(const TileCall& call) {
  const int64_t k_padded = call.matrix->k_padded();
  for (int64_t first = 0; first < k_padded; first += 2 * kBlock) {
    const int64_t size = k_padded - first < 2 * kBlock ? k_padded - first : 2 * kBlock;
    const Block block{call.strip + first * kStrip, first, size, first == 0};
    by_rows(call.num_rows, [&]<int M>(int row) {
      block_int8<M>(call.rows + row, block, call.out + row * kStrip);
    });
  }
  const float* scales = reinterpret_cast<const float*>(call.strip + k_padded * kStrip);
  const int32_t* offsets = reinterpret_cast<const int32_t*>(scales + kStrip);
  for (int m = 0; m < call.num_rows; ++m) {
    const __m512 row_scale = _mm512_set1_ps(call.rows[m].scales[0]);
    for (int j = 0; j < 4; ++j) {
      float* at = call.out + m * kStrip + 16 * j;
      const __m512i sums =
          _mm512_sub_epi32(_mm512_load_si512(at), _mm512_load_si512(offsets + 16 * j));
      const __m512 scale = _mm512_mul_ps(_mm512_load_ps(scales + 16 * j), row_scale);
      _mm512_store_ps(at, _mm512_mul_ps(_mm512_cvtepi32_ps(sums), scale));
    }
  }
}

void tile_int4(const TileCall& call) {
  const Matrix& matrix = *call.matrix;
  const int64_t unit = matrix.unit(), units = round_up(matrix.k_padded(), unit) / unit;
  const int64_t groups = unit / matrix.group;
  const bool is_wide = call.num_rows > kRows;
  constexpr int64_t kWidened = 128 * kStrip;  // bytes of the largest unit
  static_assert(kWidened + kMaxRows * kStrip * 4 <= kTileScratch);
  int32_t* sums = reinterpret_cast<int32_t*>(call.scratch + kWidened);
  for (int64_t u = 0; u < units; ++u) {
    const uint8_t* data = call.strip + u * matrix.unit_bytes();
    if (is_wide) widen_int4(data, unit, call.scratch);
    for (int64_t g = 0; g < groups; ++g) {
      const Group group{is_wide ? call.scratch + g * matrix.group * kStrip : data,
                        u * unit + g * matrix.group, matrix.group, g > 0};
      by_rows(call.num_rows, [&]<int M>(int row) {
        const auto sum = is_wide ? sum_group<M, true> : sum_group<M, false>;
        sum(call.rows + row, group, sums + row * kStrip);
      });
      add_group(call, sums, data + unit * kStrip / 2 + g * 3 * kStrip, u * groups + g);
    }
  }
}

bool is_supported() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512vbmi") && __builtin_cpu_supports("avx512vnni") &&
         __builtin_cpu_supports("avx512bf16");
}

}  // namespace

const Isa* isa_avx512() {
  static const AttendKernels attend{scores_avx512, weigh,  interleave, rescale_add, merge,
                                    finish,        rotate, read_fp8,   write_fp8};
  static const Isa table{
      "avx512",         48,       true,           {tile_bf16, tile_fp8, tile_int8, tile_int4},
      prepare_row<128>, norm_row, silu_mul_strip, add_weighted_strip,
      round_strip,      &attend,  &logit_kernels, &row_kernels};
  return is_supported() ? &table : nullptr;
}

}  // namespace fathom
