// Packed weights: how they lie in memory, for every format and instruction set alike.
//
// A matrix of N outputs and K inputs is cut into strips of 64 outputs. A strip holds, for one step
// of inputs after the other, the 64 outputs' values side by side, so that a product with one row of
// activations reads memory once, straight ahead:
//
//   bf16   [K / 2][4][16][2]        pairs of inputs, as VDPBF16PS and AMX want them
//   fp8    [K / 4][4][4][2][4][2]   64 bytes: pairs 2i and 2i + 1 of 16 outputs, interleaved by
//   eight
//                                   bytes so that unpacking low and high halves puts them in order
//   int8   [K / 4][4][16][4]        quads of inputs, as VPDPBUSD and AMX want them
//   int4   [K / 64][8][4][16][4]    byte i holds quad i in its low half and quad i + 8 in its high
//
// K is padded with zeros to a multiple of 64, N to one of 64. Scales stand where they are needed:
//   fp8    after the payload: one float for each 128 inputs (the strip lies in one block of rows)
//   int8   after the payload: 64 floats, then 64 int32: 128 times the sum of each output's weights
//   int4   after each unit of max(group, 64) inputs, for each of its groups: 64 float16 scales, 64
//          uint8 zero points
// Gated matrices (gate and up of an MLP) alternate strips: gate 0, up 0, gate 1, up 1, ...
#pragma once

#include <cstddef>
#include <cstdint>

namespace fathom {

constexpr int kStrip = 64;
constexpr int kStep = 64;  // inputs are padded to this
constexpr int kFp8Block = 128;

enum Format : int32_t { kBf16 = 0, kFp8 = 1, kInt8 = 2, kInt4 = 3, kNumFormats = 4 };

inline int64_t round_up(int64_t x, int64_t to) { return (x + to - 1) / to * to; }

// Mirrored in ops/backends/cpu/library.py.
struct Matrix {
  int32_t format;
  int32_t group;     // int4: inputs that share a scale; else 0
  int32_t is_gated;  // outputs are N / 2 of a gate, then N / 2 of an up-projection
  int32_t experts;
  int64_t n, k;
  const uint8_t* data;
  int64_t num_bytes;  // of `data`

  int64_t k_padded() const { return round_up(k, kStep); }
  int64_t half() const { return is_gated ? n / 2 : n; }
  int64_t strips() const { return round_up(half(), kStrip) / kStrip * (is_gated ? 2 : 1); }
  int64_t unit() const { return group > kStep ? group : kStep; }
  int64_t unit_bytes() const { return unit() * kStrip / 2 + unit() / group * kStrip * 3; }
  int64_t strip_bytes() const {
    const int64_t values = k_padded() * kStrip;
    switch (format) {
      case kBf16: return values * 2;
      case kFp8: return values + round_up((k + kFp8Block - 1) / kFp8Block * 4, 64);
      case kInt8: return values + kStrip * 8;
      default: return round_up(k_padded(), unit()) / unit() * unit_bytes();
    }
  }
  int64_t expert_bytes() const { return strips() * strip_bytes(); }
  const uint8_t* strip(int64_t expert, int64_t index) const {
    return data + expert * expert_bytes() + index * strip_bytes();
  }
};

// One row of activations as the kernels of a format want it, K padded with zeros:
//   bf16, fp8: bfloat16. int8: int8, one scale. int4: int8, for each group of inputs a scale and
//   the sum of its values.
struct ActRow {
  const void* values;
  const float* scales;
  const float* sums;
};

// Where a row of activations in a matrix's format takes bytes: values, then scales, then sums.
inline int64_t act_groups(const Matrix& m) {
  return m.format == kInt4 ? round_up(m.k_padded(), m.unit()) / m.group : 1;
}
inline int64_t act_value_bytes(const Matrix& m) {
  const int64_t k = m.format == kInt4 ? round_up(m.k_padded(), m.unit()) : m.k_padded();
  return m.format == kBf16 || m.format == kFp8 ? 2 * k : round_up(k, 64);
}
inline int64_t act_bytes(const Matrix& m) {
  return act_value_bytes(m) + round_up(8 * act_groups(m), 64);
}

}  // namespace fathom
