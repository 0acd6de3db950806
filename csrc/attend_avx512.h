// Scores of attention with AVX-512's products of bfloat16 pairs.
#pragma once

#include <immintrin.h>

#include "attend.h"
#include "widen_avx512.h"

namespace fathom {
namespace {

// Keys are rows, columns of sixteen queries are outputs: as above with fewer or more of either.
template <int M, int B>
void score_keys(const uint16_t* const* rows, const uint16_t* queries, int width, float* to) {
  __m512 sums[M][B];
#pragma GCC unroll 16
  for (int m = 0; m < M; ++m)
#pragma GCC unroll 4
    for (int j = 0; j < B; ++j) sums[m][j] = _mm512_setzero_ps();
  for (int d = 0; d < width; d += 2, queries += 32 * B) {
    __m512bh b[B];
#pragma GCC unroll 4
    for (int j = 0; j < B; ++j) b[j] = (__m512bh)_mm512_loadu_si512(queries + 32 * j);
#pragma GCC unroll 16
    for (int m = 0; m < M; ++m) {
      const __m512bh a = (__m512bh)pair_of(rows[m], d);
#pragma GCC unroll 4
      for (int j = 0; j < B; ++j) sums[m][j] = _mm512_dpbf16_ps(sums[m][j], a, b[j]);
    }
  }
#pragma GCC unroll 16
  for (int m = 0; m < M; ++m)
#pragma GCC unroll 4
    for (int j = 0; j < B; ++j) _mm512_store_ps(to + (m * B + j) * 16, sums[m][j]);
}

template <int M, int B>
void score_all(const KeyBlock& keys, const uint16_t* queries, int width, float* to) {
  int key = 0;
  for (; key + M <= keys.count; key += M)
    score_keys<M, B>(keys.rows + key, queries, width, to + key * B * 16);
  for (; key + 4 <= keys.count; key += 4)
    score_keys<4, B>(keys.rows + key, queries, width, to + key * B * 16);
  for (; key < keys.count; ++key)
    score_keys<1, B>(keys.rows + key, queries, width, to + key * B * 16);
}

inline void scores_avx512(const KeyBlock& keys, const uint16_t* queries, int width, int blocks,
                          float* to) {
  switch (blocks) {
    case 1: return score_all<12, 1>(keys, queries, width, to);
    case 2: return score_all<10, 2>(keys, queries, width, to);
    case 3: return score_all<8, 3>(keys, queries, width, to);
    default: return score_all<6, 4>(keys, queries, width, to);
  }
}

}  // namespace
}  // namespace fathom
