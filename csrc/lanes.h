// What GCC's vector extensions lack: fused multiply and add, bits of comparisons, float64. Included
// by the files of each instruction set only; nothing here has a name outside of its file.
//
// Vectors wider than the processor's live in memory, which is slow where they are carried through a
// loop. So loops that matter are written for the processor's own width (vf, vd), by parts of a
// fixed number of lanes: the same sums in the same order on all.
#pragma once

#include <immintrin.h>

#include "vec.h"

namespace fathom {
namespace {

#ifdef __AVX512F__
constexpr int kOwnBytes = 64;
#else
constexpr int kOwnBytes = 32;
#endif
constexpr int kFloats = kOwnBytes / 4, kDoubles = kOwnBytes / 8;
constexpr int kParts = kLanes / kFloats;  // of sixteen floats
typedef float vf __attribute__((vector_size(kOwnBytes), aligned(kOwnBytes)));
typedef int32_t vi __attribute__((vector_size(kOwnBytes), aligned(kOwnBytes)));
typedef uint32_t vu __attribute__((vector_size(kOwnBytes), aligned(kOwnBytes)));
typedef double vd __attribute__((vector_size(kOwnBytes), aligned(kOwnBytes)));
typedef int64_t vl __attribute__((vector_size(kOwnBytes), aligned(kOwnBytes)));
typedef float vf_of_vd __attribute__((vector_size(kOwnBytes / 2), aligned(kOwnBytes / 2)));

#ifdef __AVX512F__
inline vf fma(vf a, vf b, vf c) { return (vf)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c); }
inline vd fma(vd a, vd b, vd c) { return (vd)_mm512_fmadd_pd((__m512d)a, (__m512d)b, (__m512d)c); }
// Of a NaN and a number the second operand comes out.
inline vf max_of(vf a, vf b) { return (vf)_mm512_max_ps((__m512)a, (__m512)b); }
inline vd to_double(vf_of_vd x) { return (vd)_mm512_cvtps_pd((__m256)x); }
template <int kPredicate>
inline uint32_t compare(vf a, vf b) {
  return _mm512_cmp_ps_mask((__m512)a, (__m512)b, kPredicate);
}
#else
inline vf fma(vf a, vf b, vf c) { return (vf)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c); }
inline vd fma(vd a, vd b, vd c) { return (vd)_mm256_fmadd_pd((__m256d)a, (__m256d)b, (__m256d)c); }
inline vf max_of(vf a, vf b) { return (vf)_mm256_max_ps((__m256)a, (__m256)b); }
inline vd to_double(vf_of_vd x) { return (vd)_mm256_cvtps_pd((__m128)x); }
template <int kPredicate>
inline uint32_t compare(vf a, vf b) {
  return _mm256_movemask_ps(_mm256_cmp_ps((__m256)a, (__m256)b, kPredicate));
}
#endif

// Bits of which of sixteen values are in a relation to `to`.
template <int kPredicate>
inline uint32_t compare(const float* x, float to) {
  uint32_t bits = 0;
#pragma GCC unroll 2
  for (int i = 0; i < kLanes; i += kFloats)
    bits |= compare<kPredicate>(load<vf>(x + i), vf{} + to) << i;
  return bits;
}

// e^x for x <= 0 to about 1e-14 of its value; 0 below -700, and for NaN. Cody-Waite reduction by
// ln 2 in two parts, then the Taylor polynomial of degree 11 on [-ln2/2, ln2/2].
inline vd exp_double(vd x) {
  const vl is_in = x >= -700.0;
  const vd bounded = (vd)((vl)x & is_in);
  const double magic = 6755399441055744.0;  // 1.5 * 2^52: the integer stands in the low bits
  const vd shifted = fma(bounded, vd{} + 1.4426950408889634, vd{} + magic);
  const vd n = shifted - magic;
  vd r = fma(n, vd{} - 6.93147180369123816490e-01, bounded);
  r = fma(n, vd{} - 1.90821492927058770002e-10, r);
  vd p = vd{} + 1.0 / 39916800;
  constexpr double terms[] = {1.0 / 3628800, 1.0 / 362880, 1.0 / 40320, 1.0 / 5040,
                              1.0 / 720,     1.0 / 120,    1.0 / 24,    1.0 / 6,
                              0.5,           1.0,          1.0};
#pragma GCC unroll 11
  for (double term : terms) p = fma(p, r, vd{} + term);
  const vl power = ((vl)shifted + 1023) << 52;
  return (vd)((vl)(p * (vd)power) & is_in);
}

// The sum of N values in a fixed order: halves are added to halves.
template <int N, class T>
inline T sum_halves(T (&x)[N]) {
#pragma GCC unroll 8
  for (int half = N / 2; half > 0; half /= 2)
#pragma GCC unroll 16
    for (int i = 0; i < half; ++i) x[i] += x[i + half];
  return x[0];
}

}  // namespace
}  // namespace fathom
