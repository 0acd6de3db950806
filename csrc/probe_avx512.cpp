// For benchmarks only, see probe.cpp: the products of tile_avx512.cpp, in registers alone.
#include <immintrin.h>

#include "probe.h"

namespace fathom {

int64_t peak_avx512(bool is_int8, int64_t rounds) {
  constexpr int kSums = 16;
  if (is_int8) {
    __m512i sums[kSums] = {}, a = _mm512_set1_epi8(1), b = _mm512_set1_epi8(2);
    for (int64_t i = 0; i < rounds; ++i)
      for (int j = 0; j < kSums; ++j) {
        asm volatile("" : "+v"(a));
        sums[j] = _mm512_dpbusd_epi32(sums[j], a, b);
      }
    for (int j = 0; j < kSums; ++j) asm volatile("" ::"v"(sums[j]));
    return rounds * kSums * 128;
  }
  __m512 sums[kSums] = {};
  __m512i a = _mm512_set1_epi16(0x3f80), b = _mm512_set1_epi16(0x4000);
  for (int64_t i = 0; i < rounds; ++i)
    for (int j = 0; j < kSums; ++j) {
      asm volatile("" : "+v"(a));
      sums[j] = _mm512_dpbf16_ps(sums[j], (__m512bh)a, (__m512bh)b);
    }
  for (int j = 0; j < kSums; ++j) asm volatile("" ::"v"(sums[j]));
  return rounds * kSums * 64;
}

}  // namespace fathom
