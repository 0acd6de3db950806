// What GCC's vector extensions lack: fused multiply and add, bits of comparisons, float64. Included
// by the files of each instruction set only; nothing here has a name outside of its file.
#pragma once

#include <immintrin.h>

#include "vec.h"

namespace fathom {
namespace {

typedef double v8d __attribute__((vector_size(64), aligned(64)));
typedef double v2d __attribute__((vector_size(16), aligned(16)));
typedef int64_t v8l __attribute__((vector_size(64), aligned(64)));
typedef float v8f __attribute__((vector_size(32), aligned(32)));

#ifdef __AVX512F__
inline v16f fma(v16f a, v16f b, v16f c) { return (v16f)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c); }
inline v8d fma(v8d a, v8d b, v8d c) { return (v8d)_mm512_fmadd_pd((__m512d)a, (__m512d)b, (__m512d)c); }
inline uint32_t bits_of(v16i mask) { return _mm512_movepi32_mask((__m512i)mask); }
inline v16f max_of(v16f a, v16f b) { return (v16f)_mm512_max_ps((__m512)a, (__m512)b); }
inline v8d to_double(v8f x) { return (v8d)_mm512_cvtps_pd((__m256)x); }
#else
template <class Half, class V, class F>
inline V by_halves(F&& f, V a, V b, V c) {
  Half x[2], y[2], z[2];
  __builtin_memcpy(x, &a, sizeof a);
  __builtin_memcpy(y, &b, sizeof b);
  __builtin_memcpy(z, &c, sizeof c);
  for (int i = 0; i < 2; ++i) x[i] = f(x[i], y[i], z[i]);
  __builtin_memcpy(&a, x, sizeof a);
  return a;
}
inline v16f fma(v16f a, v16f b, v16f c) {
  return by_halves<__m256>([](__m256 x, __m256 y, __m256 z) { return _mm256_fmadd_ps(x, y, z); }, a, b, c);
}
inline v8d fma(v8d a, v8d b, v8d c) {
  return by_halves<__m256d>([](__m256d x, __m256d y, __m256d z) { return _mm256_fmadd_pd(x, y, z); }, a, b, c);
}
inline v16f max_of(v16f a, v16f b) {
  return by_halves<__m256>([](__m256 x, __m256 y, __m256) { return _mm256_max_ps(x, y); }, a, b, b);
}
inline uint32_t bits_of(v16i mask) {
  __m256 half[2];
  __builtin_memcpy(half, &mask, sizeof mask);
  return uint32_t(_mm256_movemask_ps(half[0])) | uint32_t(_mm256_movemask_ps(half[1])) << 8;
}
inline v8d to_double(v8f x) {
  __m128 half[2];
  __builtin_memcpy(half, &x, sizeof x);
  const __m256d wide[2] = {_mm256_cvtps_pd(half[0]), _mm256_cvtps_pd(half[1])};
  v8d out;
  __builtin_memcpy(&out, wide, sizeof out);
  return out;
}
#endif

// e^x for x <= 0 to about 1e-14 of its value; 0 below -700, and for NaN. Cody-Waite reduction by
// ln 2 in two parts, then the Taylor polynomial of degree 11 on [-ln2/2, ln2/2].
inline v8d exp_double(v8d x) {
  const v8l is_in = x >= -700.0;
  const v8d bounded = (v8d)((v8l)x & is_in);
  const double magic = 6755399441055744.0;  // 1.5 * 2^52: the integer stands in the low bits
  const v8d shifted = fma(bounded, v8d{} + 1.4426950408889634, v8d{} + magic);
  const v8d n = shifted - magic;
  v8d r = fma(n, v8d{} - 6.93147180369123816490e-01, bounded);
  r = fma(n, v8d{} - 1.90821492927058770002e-10, r);
  v8d p = v8d{} + 1.0 / 39916800;
  constexpr double terms[] = {1.0 / 3628800, 1.0 / 362880, 1.0 / 40320, 1.0 / 5040, 1.0 / 720,
                              1.0 / 120,     1.0 / 24,     1.0 / 6,     0.5,        1.0,
                              1.0};
#pragma GCC unroll 11
  for (double term : terms) p = fma(p, r, v8d{} + term);
  const v8l power = ((v8l)shifted + 1023) << 52;
  return (v8d)((v8l)(p * (v8d)power) & is_in);
}

// The sum in a fixed order: halves are added to halves.
inline double sum_double(v8d v) {
  double x[8];
  __builtin_memcpy(x, &v, sizeof x);
  for (int half = 4; half > 0; half /= 2)
    for (int i = 0; i < half; ++i) x[i] += x[i + half];
  return x[0];
}

}  // namespace
}  // namespace fathom
