// What is done to single rows, in vec.h's portable vectors; each instruction set's file includes
// this and so compiles it with its own flags.
#pragma once

#include <cmath>

#include "isa.h"
#include "vec.h"

namespace fathom {
namespace {

// Sixteen values from a row of `width`, zeros beyond its end.
inline v16f load_tail(const uint16_t* row, int64_t at, int64_t width) {
  if (at + kLanes <= width) return load_bf16(row + at);
  alignas(32) uint16_t part[kLanes] = {};
  for (int64_t i = at; i < width; ++i) part[i - at] = row[i];
  return load_bf16(part);
}

inline void store_tail(uint16_t* row, int64_t at, int64_t width, v16h values) {
  if (at + kLanes <= width) return store(row + at, values);
  for (int64_t i = at; i < width; ++i) row[i] = values[i - at];
}

// x, or residual + x (rounded to bfloat16 and kept), sixteen values at a time.
inline v16f take(const RowInput& in, int64_t at) {
  const v16f x = load_tail(in.x, at, in.width);
  if (in.residual == nullptr) return x;
  const v16h added = narrow(load_tail(in.residual, at, in.width) + x);
  store_tail(in.residual, at, in.width, added);
  return widen(added);
}

// 1 / sqrt(mean of squares + eps); adds x to the residual in passing.
inline float norm_scale(const RowInput& in) {
  v16f squares[4] = {};
  for (int64_t at = 0; at < in.width; at += kLanes) {
    const v16f x = take(in, at);
    v16f& sum = squares[at / kLanes % 4];
    sum = sum + x * x;
  }
  const float total = sum((squares[0] + squares[1]) + (squares[2] + squares[3]));
  return 1.0f / std::sqrt(total / float(in.width) + in.eps);
}

// Calls each(at, sixteen values) for the row as the product sees it; reads of `residual` come after
// its update.
template <class Each>
inline void for_row(const RowInput& in, Each&& each) {
  if (in.norm == nullptr) {
    for (int64_t at = 0; at < in.width; at += kLanes) each(at, take(in, at));
    return;
  }
  const float scale = norm_scale(in);
  const uint16_t* row = in.residual == nullptr ? in.x : in.residual;
  for (int64_t at = 0; at < in.width; at += kLanes) {
    const v16f normed = widen(narrow(load_tail(row, at, in.width) * scale));
    each(at, widen(narrow(normed * load_tail(in.norm, at, in.width))));
  }
}

inline void norm_row(const RowInput& in, uint16_t* to) {
  for_row(in, [&](int64_t at, v16f x) { store_tail(to, at, in.width, narrow(x)); });
}

inline ActRow prepare_bf16(const RowInput& in, const Matrix& matrix, uint8_t* to) {
  uint16_t* values = reinterpret_cast<uint16_t*>(to);
  std::memset(values + in.width / kLanes * kLanes, 0,
              2 * (matrix.k_padded() - in.width / kLanes * kLanes));
  for_row(in, [&](int64_t at, v16f x) { store(values + at, narrow(x)); });
  return {values, nullptr, nullptr};
}

// The largest magnitude of row[first .. end), zeros beyond the row's end; NaN where there is one,
// for bits of magnitudes are ordered as floats are, and NaN's stand above all.
inline float largest_magnitude(const uint16_t* row, int64_t first, int64_t end, int64_t width) {
  v16u most = {};
  for (int64_t at = first; at < end && at < width; at += kLanes) {
    const v16u bits = reinterpret_cast<v16u>(load_tail(row, at, width)) & 0x7fffffffu;
    const v16u is_more = reinterpret_cast<v16u>(bits > most);
    most = (bits & is_more) | (most & ~is_more);
  }
  uint32_t lanes[kLanes], best = 0;
  std::memcpy(lanes, &most, sizeof lanes);
  for (uint32_t lane : lanes) best = lane > best ? lane : best;
  float magnitude;
  std::memcpy(&magnitude, &best, 4);
  return magnitude;
}

// int8 with one scale for each `group` values. With an offset of 128 the bytes are unsigned. A
// group with a value that is infinite or no number gets zeros and a scale of NaN, which spoils its
// row's sums and no others; one of values so small that their inverse overflows counts as zeros.
inline ActRow prepare_int8(const RowInput& in, const Matrix& matrix, uint8_t* to, int offset) {
  const int64_t groups = act_groups(matrix), padded = act_value_bytes(matrix);
  const int64_t size = groups == 1 ? padded : matrix.group;
  float* scales = reinterpret_cast<float*>(to + padded);
  float* sums = scales + groups;
  // The row in float32 stands in this thread's stack: rows are narrow beside it.
  constexpr int64_t kChunk = 4096;
  alignas(64) uint16_t chunk[kChunk];
  const bool is_direct = in.norm == nullptr && in.residual == nullptr;
  const uint16_t* row = in.x;
  uint16_t* normed = nullptr;
  if (!is_direct) {
    normed = padded <= kChunk ? chunk : new uint16_t[padded];
    norm_row(in, normed);
    row = normed;
  }
  for (int64_t g = 0; g < groups; ++g) {
    const int64_t first = g * size, end = first + size;
    const float amax = largest_magnitude(row, first, end, in.width);
    const float inverse = 127.0f / amax;
    if (!std::isfinite(amax) || !std::isfinite(inverse)) {
      scales[g] = std::isfinite(amax) ? 0.0f : std::nanf("");
      sums[g] = 0.0f;
      std::memset(to + first, offset, size);
      continue;
    }
    scales[g] = amax / 127.0f;
    v16i total = splat(0);
    for (int64_t at = first; at < end; at += kLanes) {
      const v16f x = at < in.width ? load_tail(row, at, in.width) : splat(0.0f);
      const v16i whole = __builtin_convertvector(round_even(x * inverse), v16i);
      total = total + whole;
      store(to + at, __builtin_convertvector(whole + offset, v16b));
    }
    int32_t lanes[kLanes], sum = 0;
    std::memcpy(lanes, &total, sizeof lanes);
    for (int lane : lanes) sum += lane;
    sums[g] = float(sum);
  }
  if (normed != nullptr && normed != chunk) delete[] normed;
  return {to, scales, sums};
}

template <int kOffset>
ActRow prepare_row(const RowInput& in, const Matrix& matrix, uint8_t* to) {
  switch (matrix.format) {
    case kInt8: return prepare_int8(in, matrix, to, kOffset);
    case kInt4: return prepare_int8(in, matrix, to, 0);
    default: return prepare_bf16(in, matrix, to);
  }
}

void silu_mul_strip(const float* gate, const float* up, uint16_t* to) {
  for (int at = 0; at < kStrip; at += kLanes)
    store(to + at, narrow(silu(load<v16f>(gate + at)) * load<v16f>(up + at)));
}

void add_weighted_strip(float* sums, const float* values, float weight) {
  for (int at = 0; at < kStrip; at += kLanes)
    store(sums + at, load<v16f>(sums + at) + load<v16f>(values + at) * weight);
}

void round_strip(const float* values, int n, uint16_t* to) {
  int at = 0;
  for (; at + kLanes <= n; at += kLanes) store(to + at, narrow(load<v16f>(values + at)));
  for (; at < n; ++at) to[at] = float_to_bf16(values[at]);
}

}  // namespace
}  // namespace fathom
