// The kernels of rows.h in portable vectors; each instruction set's file includes this and so
// compiles it with its own flags.
#pragma once

#include "lanes.h"
#include "rows.h"

namespace fathom {
namespace {

void silu_mul_row(const uint16_t* gate, const uint16_t* up, int64_t n, uint16_t* to) {
  int64_t at = 0;
  for (; at + kLanes <= n; at += kLanes)
    store(to + at, narrow(silu(load_bf16(gate + at)) * load_bf16(up + at)));
  if (at == n) return;
  alignas(32) uint16_t last[2][kLanes] = {};
  std::memcpy(last[0], gate + at, 2 * (n - at));
  std::memcpy(last[1], up + at, 2 * (n - at));
  store(last[0], narrow(silu(load_bf16(last[0])) * load_bf16(last[1])));
  std::memcpy(to + at, last[0], 2 * (n - at));
}

struct Pair {
  v16f first, second;
};

inline Pair turn(Pair x, v16f cos, v16f sin) {
  return {x.first * cos - x.second * sin, x.second * cos + x.first * sin};
}

// 32 neighbouring values, the even ones first.
inline Pair split(const uint16_t* from) {
  const v16u both = load<v16u>(from);
  return {(v16f)(both << 16), (v16f)(both & 0xffff0000u)};
}

inline void join(uint16_t* to, Pair x) {
  const v16u first = __builtin_convertvector(narrow(x.first), v16u);
  const v16u second = __builtin_convertvector(narrow(x.second), v16u);
  store(to, first | second << 16);
}

void rope_row(const uint16_t* x, const float* cos, const float* sin, int64_t half,
              bool is_interleaved, uint16_t* to) {
  int64_t at = 0;
  for (; at + kLanes <= half; at += kLanes) {
    const v16f c = load<v16f>(cos + at), s = load<v16f>(sin + at);
    if (is_interleaved) {
      join(to + 2 * at, turn(split(x + 2 * at), c, s));
    } else {
      const Pair turned = turn({load_bf16(x + at), load_bf16(x + half + at)}, c, s);
      store(to + at, narrow(turned.first));
      store(to + half + at, narrow(turned.second));
    }
  }
  for (; at < half; ++at) {
    const int64_t i = is_interleaved ? 2 * at : at, j = is_interleaved ? i + 1 : half + at;
    const float first = bf16_to_float(x[i]), second = bf16_to_float(x[j]);
    to[i] = float_to_bf16(first * cos[at] - second * sin[at]);
    to[j] = float_to_bf16(second * cos[at] + first * sin[at]);
  }
}

// Products go by steps of 32 values in sixteen lanes, two values to a lane; a part is what one
// vector of the processor holds of the lanes.
constexpr int kDotStep = 2 * kLanes;

struct Step {
  vf first[kParts], second[kParts];
};

inline Step load_step(const uint16_t* from) {
  Step step;
  for (int i = 0; i < kParts; ++i) {
    const vu both = load<vu>(from + 2 * kFloats * i);
    step.first[i] = (vf)(both << 16);
    step.second[i] = (vf)(both & 0xffff0000u);
  }
  return step;
}
inline Step load_step(const float* from) {
  Step step;
  for (int i = 0; i < kParts; ++i) {
    step.first[i] = load<vf>(from + kFloats * i);
    step.second[i] = load<vf>(from + kLanes + kFloats * i);
  }
  return step;
}

// `n` values from `from`, then zeros.
template <class T>
inline Step load_last(const T* from, int64_t n) {
  alignas(64) T part[kDotStep] = {};
  std::memcpy(part, from, n * sizeof(T));
  return load_step(part);
}

inline void add_products(vf (&to)[kParts], const Step& x, const Step& w) {
#pragma GCC unroll 2
  for (int i = 0; i < kParts; ++i)
    to[i] = fma(x.second[i], w.second[i], fma(x.first[i], w.first[i], to[i]));
}

// M rows by N outputs: every product is summed in its lanes along the width, then the lanes are.
template <int M, int N, class T>
inline void dot_tile(const DotCall& call, int64_t row, int64_t output) {
  const T* x = static_cast<const T*>(call.x) + row * call.x_stride;
  const T* weight = static_cast<const T*>(call.weight) + output * call.width;
  vf sums[M][N][kParts] = {};
  int64_t at = 0;
  for (; at + kDotStep <= call.width; at += kDotStep) {
    Step rows[M];
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) rows[m] = load_step(x + m * call.x_stride + at);
#pragma GCC unroll 8
    for (int n = 0; n < N; ++n) {
      const Step w = load_step(weight + n * call.width + at);
#pragma GCC unroll 8
      for (int m = 0; m < M; ++m) add_products(sums[m][n], rows[m], w);
    }
  }
  if (at < call.width) {
    const int64_t left = call.width - at;
    for (int m = 0; m < M; ++m) {
      const Step row = load_last(x + m * call.x_stride + at, left);
      for (int n = 0; n < N; ++n)
        add_products(sums[m][n], row, load_last(weight + n * call.width + at, left));
    }
  }
  for (int m = 0; m < M; ++m)
    for (int n = 0; n < N; ++n) {
      float lanes[kLanes];
      std::memcpy(lanes, sums[m][n], sizeof lanes);
      call.to[(row + m) * call.to_stride + output + n] = sum_halves(lanes);
    }
}

#ifdef __AVX512F__
constexpr int kDotRows = 3, kDotOutputs = 8;
#else
constexpr int kDotRows = 1, kDotOutputs = 4;
#endif

template <int N, class T>
inline void dot_outputs(const DotCall& call, int64_t output) {
  int64_t row = 0;
  for (; row + kDotRows <= call.num_rows; row += kDotRows)
    dot_tile<kDotRows, N, T>(call, row, output);
  for (; kDotRows > 2 && row + 2 <= call.num_rows; row += 2) dot_tile<2, N, T>(call, row, output);
  for (; row < call.num_rows; ++row) dot_tile<1, N, T>(call, row, output);
}

template <class T>
void dot_rows(const DotCall& call) {
  int64_t output = 0;
  for (; output + kDotOutputs <= call.num_outputs; output += kDotOutputs)
    dot_outputs<kDotOutputs, T>(call, output);
  for (; output < call.num_outputs; ++output) dot_outputs<1, T>(call, output);
}

void softmax_row(float* values, int64_t n) {
  float best = -__builtin_inff();
  for (int64_t i = 0; i < n; ++i) best = values[i] > best ? values[i] : best;
  v16f total = splat(0.0f);
  for (int64_t at = 0; at < n; at += kLanes) {
    alignas(64) float part[kLanes];
    for (int i = 0; i < kLanes; ++i) part[i] = at + i < n ? values[at + i] : -__builtin_inff();
    const v16f weights = exp(load<v16f>(part) - best);
    total = total + weights;
    store(part, weights);
    std::memcpy(values + at, part, 4 * (n - at < kLanes ? n - at : kLanes));
  }
  const float whole = sum(total);
  for (int64_t i = 0; i < n; ++i) values[i] = values[i] / whole;
}

void sigmoid_row(float* values, int64_t n) {
  for (int64_t at = 0; at < n; at += kLanes) {
    alignas(64) float part[kLanes] = {};
    const int64_t size = 4 * (n - at < kLanes ? n - at : kLanes);
    std::memcpy(part, values + at, size);
    store(part, sigmoid(load<v16f>(part)));
    std::memcpy(values + at, part, size);
  }
}

const RowKernels row_kernels{silu_mul_row,    rope_row,    dot_rows<uint16_t>,
                             dot_rows<float>, softmax_row, sigmoid_row};

}  // namespace
}  // namespace fathom
