// AMX's tile operations in plain C++, for tests on processors without them; as amx_native.h.
//
// After the operations' definitions in Intel's manual (SDM volume 2, TDPBF16PS and TDPB[SU][SU]D):
// within one TDPBF16PS, the even and the odd inputs are summed apart by fused steps, then added to
// each other and to the old sum; denormals count as zero, in and out. Whatever the processor would
// refuse ends the process here: tiles that were not configured, rows or bytes beyond a tile's.
#pragma once

#include <cstdint>
#include <cstring>

namespace fathom {
namespace {

struct alignas(64) TileConfig {
  uint8_t palette, start_row, reserved[14];
  uint16_t row_bytes[16];
  uint8_t rows[16];
};

struct TileRegisters {
  alignas(64) uint8_t bytes[8][16][64];
  TileConfig config;
  bool is_configured;
};

inline TileRegisters& tile_registers() {
  static thread_local TileRegisters registers;
  return registers;
}

inline bool is_amx_allowed() { return true; }

inline void configure_tiles(const TileConfig& config) {
  TileRegisters& own = tile_registers();
  std::memset(&own, 0, sizeof own);
  if (config.palette != 1) __builtin_trap();
  for (int t = 0; t < 16; ++t)
    if (config.rows[t] > (t < 8 ? 16 : 0) || config.row_bytes[t] > (t < 8 ? 64 : 0))
      __builtin_trap();
  own.config = config;
  own.is_configured = true;
}
inline void release_tiles() { tile_registers().is_configured = false; }

inline TileRegisters& configured(int tile) {
  TileRegisters& own = tile_registers();
  if (!own.is_configured || own.config.rows[tile] == 0) __builtin_trap();
  return own;
}

template <int T>
void tile_zero() {
  std::memset(configured(T).bytes[T], 0, sizeof tile_registers().bytes[T]);
}
template <int T>
void tile_load(const void* from, int64_t stride) {
  tile_zero<T>();
  TileRegisters& own = configured(T);
  for (int r = 0; r < own.config.rows[T]; ++r)
    std::memcpy(own.bytes[T][r], static_cast<const uint8_t*>(from) + r * stride,
                own.config.row_bytes[T]);
}
template <int T>
void tile_store(void* to, int64_t stride) {
  const TileRegisters& own = configured(T);
  for (int r = 0; r < own.config.rows[T]; ++r)
    std::memcpy(static_cast<uint8_t*>(to) + r * stride, own.bytes[T][r], own.config.row_bytes[T]);
}

// The products' inner loops stay within the registers above: sanitizers would only slow them down.
#define FATHOM_UNCHECKED __attribute__((no_sanitize("address", "undefined")))

// Zero for a denormal, with its sign.
FATHOM_UNCHECKED inline float flush(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  if ((bits & 0x7f800000u) == 0) bits &= 0x80000000u;
  std::memcpy(&x, &bits, 4);
  return x;
}
FATHOM_UNCHECKED inline float flushed_bf16(const uint8_t* at) {
  uint16_t half;
  std::memcpy(&half, at, 2);
  const uint32_t bits = uint32_t(half) << 16;
  float x;
  std::memcpy(&x, &bits, 4);
  return flush(x);
}

// The shapes that a product of tiles wants: C [M, N], A [M, K], B [K, N] in fours of bytes.
struct DotShape {
  int m, n, k;
};
inline DotShape dot_shape(int c, int a, int b) {
  configured(a);
  configured(b);
  const TileConfig& config = configured(c).config;
  const DotShape shape{config.rows[c], config.row_bytes[c] / 4, config.row_bytes[a] / 4};
  if (config.rows[a] != shape.m || config.rows[b] != shape.k || config.row_bytes[b] / 4 != shape.n)
    __builtin_trap();
  return shape;
}

template <int C, int A, int B>
FATHOM_UNCHECKED void tile_dot_bf16() {
  const DotShape shape = dot_shape(C, A, B);
  auto& bytes = tile_registers().bytes;
  for (int m = 0; m < shape.m; ++m) {
    float sums[2][16] = {};
    for (int k = 0; k < shape.k; ++k)
      for (int odd = 0; odd < 2; ++odd) {
        const float a = flushed_bf16(&bytes[A][m][4 * k + 2 * odd]);
        for (int n = 0; n < shape.n; ++n) {
          const float b = flushed_bf16(&bytes[B][k][4 * n + 2 * odd]);
          sums[odd][n] = flush(__builtin_fmaf(a, b, sums[odd][n]));
        }
      }
    for (int n = 0; n < shape.n; ++n) {
      float sum;
      std::memcpy(&sum, &bytes[C][m][4 * n], 4);
      sum = flush(flush(sum) + flush(sums[0][n] + sums[1][n]));
      std::memcpy(&bytes[C][m][4 * n], &sum, 4);
    }
  }
}

// `Weight` is the type of B's bytes; A's are signed. Sums wrap around as the processor's do.
template <int C, int A, int B, class Weight>
FATHOM_UNCHECKED void tile_dot_bytes() {
  const DotShape shape = dot_shape(C, A, B);
  auto& bytes = tile_registers().bytes;
  for (int m = 0; m < shape.m; ++m)
    for (int n = 0; n < shape.n; ++n) {
      uint32_t sum;
      std::memcpy(&sum, &bytes[C][m][4 * n], 4);
      for (int k = 0; k < shape.k; ++k)
        for (int i = 0; i < 4; ++i)
          sum += uint32_t(int8_t(bytes[A][m][4 * k + i]) * Weight(bytes[B][k][4 * n + i]));
      std::memcpy(&bytes[C][m][4 * n], &sum, 4);
    }
}
template <int C, int A, int B>
void tile_dot_signed() {
  tile_dot_bytes<C, A, B, int8_t>();
}
template <int C, int A, int B>
void tile_dot_unsigned() {
  tile_dot_bytes<C, A, B, uint8_t>();
}

}  // namespace
}  // namespace fathom
