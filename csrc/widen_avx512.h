// Narrow weights to what products take, with AVX-512 (VBMI): fp8 to bfloat16, int4 to bytes; and
// what becomes of the sums of a group of int4.
#pragma once

#include <immintrin.h>

#include "isa.h"
#include "vec.h"

namespace fathom {
namespace {

// The bfloat16 bits of e4m3 magnitudes 0 .. 127, split into their low and high bytes.
struct Fp8Tables {
  __m512i low[2], high[2];
};

inline uint16_t bf16_of_e4m3(int magnitude) {
  const int exponent = magnitude >> 3, mantissa = magnitude & 7;
  if (magnitude == 127) return 0x7fc0;  // NaN
  const float value = exponent ? (8 + mantissa) * 0.125f : mantissa * 0.125f;
  const int power = (exponent ? exponent : 1) - 7;
  uint32_t bits = uint32_t(127 + power) << 23;
  float scale;
  std::memcpy(&scale, &bits, 4);
  return float_to_bf16(value * scale);
}

inline const Fp8Tables& fp8_tables() {
  static const Fp8Tables tables = [] {
    alignas(64) uint8_t low[128], high[128];
    for (int i = 0; i < 128; ++i) {
      const uint16_t bits = bf16_of_e4m3(i);
      low[i] = uint8_t(bits);
      high[i] = uint8_t(bits >> 8);
    }
    Fp8Tables made;
    for (int i = 0; i < 2; ++i) {
      made.low[i] = _mm512_load_si512(low + 64 * i);
      made.high[i] = _mm512_load_si512(high + 64 * i);
    }
    return made;
  }();
  return tables;
}

// 64 values of e4m3 as two registers of bfloat16, exact.
struct Widen8 {
  __m512i low0, low1, high0, high1, sign;
  Widen8() {
    const Fp8Tables& tables = fp8_tables();
    low0 = tables.low[0];
    low1 = tables.low[1];
    high0 = tables.high[0];
    high1 = tables.high[1];
    sign = _mm512_set1_epi8(char(0x80));
  }
  void operator()(__m512i bytes, __m512i& first, __m512i& second) const {
    const __m512i low = _mm512_permutex2var_epi8(low0, bytes, low1);
    const __m512i magnitude = _mm512_permutex2var_epi8(high0, bytes, high1);
    // magnitude | (bytes & sign)
    const __m512i high = _mm512_ternarylogic_epi32(magnitude, bytes, sign, 0xf8);
    first = _mm512_unpacklo_epi8(low, high);
    second = _mm512_unpackhi_epi8(low, high);
  }
};

// Packed fp8 to packed bf16; see matrix.h. `bytes` is a multiple of 256.
inline void widen_fp8(const uint8_t* from, int64_t bytes, uint8_t* to) {
  const Widen8 widen;
  for (int64_t at = 0; at < bytes; at += 256, to += 512)
    for (int j = 0; j < 4; ++j) {
      __m512i first, second;
      widen(_mm512_load_si512(from + at + 64 * j), first, second);
      _mm512_store_si512(to + 64 * j, first);
      _mm512_store_si512(to + 256 + 64 * j, second);
    }
}

// The first `inputs` of a unit of int4, a multiple of 64, to int8's layout: nibbles one a byte.
inline void widen_int4(const uint8_t* from, int64_t inputs, uint8_t* to) {
  const __m512i mask = _mm512_set1_epi8(0x0f);
  for (int64_t tile = 0; tile < inputs / kStep; ++tile, to += 4096)
    for (int i = 0; i < 32; ++i, from += 64) {
      const __m512i both = _mm512_load_si512(from);
      _mm512_store_si512(to + 64 * i, _mm512_and_si512(both, mask));
      _mm512_store_si512(to + 2048 + 64 * i, _mm512_and_si512(_mm512_srli_epi16(both, 4), mask));
    }
}

// Two bfloat16 of a row in every lane.
inline __m512i pair_of(const void* row, int64_t element) {
  int32_t pair;
  std::memcpy(&pair, static_cast<const uint16_t*>(row) + element, 4);
  return _mm512_set1_epi32(pair);
}

// Adds group `index` of int4 to the tile's outputs: its int32 sums [num_rows][64] less its zero
// points, scaled. `scales`: 64 float16, then 64 uint8.
inline void add_group(const TileCall& call, const void* sums, const uint8_t* scales,
                      int64_t index) {
  const __mmask16 has_before = index == 0 ? 0 : 0xffff;
  for (int j = 0; j < 4; ++j) {
    const __m512 scale = _mm512_cvtph_ps(_mm256_load_si256((const __m256i*)(scales + 32 * j)));
    const __m512 zero = _mm512_cvtepi32_ps(
        _mm512_cvtepu8_epi32(_mm_load_si128((const __m128i*)(scales + 2 * kStrip + 16 * j))));
    for (int m = 0; m < call.num_rows; ++m) {
      const int at = m * kStrip + 16 * j;
      const __m512 row_scale = _mm512_set1_ps(call.rows[m].scales[index]);
      const __m512 row_sum = _mm512_set1_ps(call.rows[m].sums[index]);
      const __m512i whole = _mm512_load_si512(static_cast<const int32_t*>(sums) + at);
      const __m512 exact = _mm512_fnmadd_ps(zero, row_sum, _mm512_cvtepi32_ps(whole));
      const __m512 before = _mm512_maskz_load_ps(has_before, call.out + at);
      const __m512 factor = _mm512_mul_ps(scale, row_scale);
      _mm512_store_ps(call.out + at, _mm512_fmadd_ps(exact, factor, before));
    }
  }
}

}  // namespace
}  // namespace fathom
