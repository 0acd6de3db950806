// Sixteen floats as one value, in GCC's vector extensions: one source for every instruction set,
// and the same bits on all of them (no contraction, no reassociation: see the flags in setup.py).
#pragma once

#include <cstdint>
#include <cstring>

namespace fathom {
// Without a name: every file needs its own copies, in its own instructions.
namespace {

constexpr int kLanes = 16;

typedef float v16f __attribute__((vector_size(64), aligned(64)));
typedef int32_t v16i __attribute__((vector_size(64), aligned(64)));
typedef uint32_t v16u __attribute__((vector_size(64), aligned(64)));
typedef uint16_t v16h __attribute__((vector_size(32), aligned(32)));
typedef int8_t v16b __attribute__((vector_size(16), aligned(16)));

// Keeps loads where they stand. The compiler would gather them at the top of a loop's body, where
// they push sums out of the registers.
inline void in_order() { asm volatile("" ::: "memory"); }

inline v16f splat(float x) { return v16f{} + x; }
inline v16i splat(int32_t x) { return v16i{} + x; }

template <class V>
inline V load(const void* from) {
  V out;
  __builtin_memcpy(&out, from, sizeof out);
  return out;
}
template <class V>
inline void store(void* to, V value) {
  __builtin_memcpy(to, &value, sizeof value);
}

inline v16f widen(v16h bits) {
  return reinterpret_cast<v16f>(__builtin_convertvector(bits, v16u) << 16);
}
inline v16f load_bf16(const uint16_t* from) { return widen(load<v16h>(from)); }

// bfloat16 by round to nearest, ties to even; a NaN stays one.
inline v16h narrow(v16f x) {
  const v16u bits = reinterpret_cast<v16u>(x);
  const v16u rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const v16u is_nan = reinterpret_cast<v16u>((bits & 0x7fffffffu) > 0x7f800000u);
  const v16u quiet = (bits >> 16) | 0x40u;
  return __builtin_convertvector((rounded & ~is_nan) | (quiet & is_nan), v16h);
}

inline float bf16_to_float(uint16_t bits) {
  const uint32_t wide = uint32_t(bits) << 16;
  float out;
  std::memcpy(&out, &wide, 4);
  return out;
}
inline uint16_t float_to_bf16(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return uint16_t((bits >> 16) | 0x40u);
  return uint16_t((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

inline v16f select(v16i mask, v16f yes, v16f no) {
  return reinterpret_cast<v16f>((mask & reinterpret_cast<v16i>(yes)) |
                                (~mask & reinterpret_cast<v16i>(no)));
}
inline v16f vmax(v16f a, v16f b) { return select(a > b, a, b); }
inline v16f vmin(v16f a, v16f b) { return select(a < b, a, b); }
inline v16f vabs(v16f a) { return reinterpret_cast<v16f>(reinterpret_cast<v16u>(a) & 0x7fffffffu); }

// The sum in a fixed order: halves are added to halves.
inline float sum(v16f v) {
  float x[kLanes];
  std::memcpy(x, &v, sizeof x);
  for (int half = kLanes / 2; half > 0; half /= 2)
    for (int i = 0; i < half; ++i) x[i] += x[i + half];
  return x[0];
}
inline float largest(v16f v) {
  float x[kLanes];
  std::memcpy(x, &v, sizeof x);
  float best = x[0];
  for (int i = 1; i < kLanes; ++i) best = x[i] > best ? x[i] : best;
  return best;
}

// Nearest integer, ties to even, for |x| < 2^22.
inline v16f round_even(v16f x) {
  const float magic = 12582912.0f;  // 1.5 * 2^23
  return (x + magic) - magic;
}

// e^x to within 2 units in the last place for x <= 88; 0 below -87, and for -inf; NaN gives NaN.
// Cody-Waite reduction by ln 2 in two parts, then the Taylor polynomial of degree 7 on
// [-ln2/2, ln2/2].
inline v16f exp(v16f x) {
  const v16i is_tiny = x < -87.0f;
  const v16f bounded = vmin(select(is_tiny, splat(-87.0f), x), splat(88.0f));
  const v16f n = round_even(bounded * 1.44269504088896341f);
  const v16f r = (bounded - n * 0.693359375f) + n * 2.12194440e-4f;
  v16f p = splat(1.0f / 5040.0f);
  p = p * r + 1.0f / 720.0f;
  p = p * r + 1.0f / 120.0f;
  p = p * r + 1.0f / 24.0f;
  p = p * r + 1.0f / 6.0f;
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  const v16i power = (__builtin_convertvector(n, v16i) + 127) << 23;
  const v16f scaled = select(x != x, x, p * reinterpret_cast<v16f>(power));
  return select(is_tiny, splat(0.0f), scaled);
}

inline v16f sigmoid(v16f x) { return 1.0f / (1.0f + exp(-x)); }
inline v16f silu(v16f x) { return x / (1.0f + exp(-x)); }

}  // namespace
}  // namespace fathom
