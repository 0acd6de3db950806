// The kernels of logits.h in portable vectors; each instruction set's file includes this and so
// compiles it with its own flags.
#pragma once

#include <cmath>

#include "key.h"
#include "lanes.h"
#include "logits.h"

namespace fathom {
namespace {

const float kLowest = -__builtin_inff();

// Sixteen values, `fill` beyond the end.
inline v16f load_floats(const float* row, int64_t at, int64_t size, float fill) {
  if (at + kLanes <= size) return load<v16f>(row + at);
  alignas(64) float part[kLanes];
  for (int i = 0; i < kLanes; ++i) part[i] = at + i < size ? row[at + i] : fill;
  return load<v16f>(part);
}

// The order of the operands matters: of a NaN and a number the second comes out.
inline v16f group_max(const float* row, int64_t at, int64_t size) {
  const v16f lowest = splat(kLowest);
  v16f a = lowest, b = lowest;
  if (at + kGroup <= size) {
    for (int i = 0; i < kGroup; i += 2 * kLanes) {
      a = max_of(load<v16f>(row + at + i), a);
      b = max_of(load<v16f>(row + at + i + kLanes), b);
    }
  } else {
    for (; at < size; at += kLanes) a = max_of(load_floats(row, at, size, kLowest), a);
  }
  return max_of(a, b);
}

float largest_logit(const float* row, int64_t size) {
  v16f best = splat(kLowest);
  v16i is_nan = splat(0);
  for (int64_t at = 0; at < size; at += kLanes) {
    const v16f x = load_floats(row, at, size, kLowest);
    best = max_of(x, best);
    is_nan = is_nan | (x != x);
  }
  return bits_of(is_nan) ? __builtin_nanf("") : largest(best);
}

int64_t argmax_logit(const float* row, int64_t size) {
  constexpr int64_t kBlock = 8 * kGroup;
  float best = kLowest;
  int64_t first = 0;
  for (int64_t block = 0; block < size; block += kBlock) {
    v16f most = splat(kLowest);
    for (int64_t at = block; at < block + kBlock && at < size; at += kGroup)
      most = max_of(group_max(row, at, size), most);
    if (bits_of(most > best) == 0) continue;
    best = largest(most);
    first = block;
  }
  for (int64_t at = first; at < size; ++at)
    if (row[at] == best) return at;
  return 0;
}

float lane_maxima(const float* row, int64_t size, float* to) {
  v16f best = splat(kLowest);
  for (int64_t at = 0; at < size; at += kGroup, to += kLanes) {
    const v16f most = group_max(row, at, size);
    store(to, most);
    best = max_of(most, best);
  }
  return largest(best);
}

int64_t collect_logits(const float* row, int64_t size, const float* maxima, float threshold,
                       int64_t max_equal, Key* to) {
  int64_t found = 0, equal = 0;
  for (int64_t group = 0; group < size; group += kGroup, maxima += kLanes) {
    if (bits_of(load<v16f>(maxima) >= threshold) == 0) continue;
    for (int64_t at = group; at < group + kGroup && at < size; at += kLanes) {
      const v16f x = load_floats(row, at, size, __builtin_nanf(""));
      uint32_t bits = bits_of(x >= threshold);
      for (; bits != 0; bits &= bits - 1) {
        const int64_t place = at + __builtin_ctz(bits);
        if (row[place] == threshold && equal++ >= max_equal) continue;
        to[found++] = key_of(row[place], place);
      }
    }
  }
  return found;
}

inline v16i bins_of(v16f x, float best, float scale) {
  const v16f bin = (best - x) * scale;
  // A NaN, of a NaN or of 0 times inf, goes to the last bin too.
  return __builtin_convertvector(select(bin < float(kBins - 1), bin, splat(float(kBins - 1))), v16i);
}

int64_t collect_bin(const float* row, int64_t size, float best, float scale, int bin, Key* to) {
  int64_t found = 0;
  for (int64_t at = 0; at < size; at += kLanes) {
    const v16f x = load_floats(row, at, size, __builtin_nanf(""));
    uint32_t bits = bits_of((bins_of(x, best, scale) == bin) & (x == x));
    for (; bits != 0; bits &= bits - 1) {
      const int64_t place = at + __builtin_ctz(bits);
      to[found++] = key_of(row[place], place);
    }
  }
  return found;
}

inline v8d weights_of(v8f x, const Weighing& by) {
  const v8d weight = exp_double((to_double(x) - double(by.best)) * by.inverse_t);
  return (v8d)((v8l)weight & (weight >= by.least));
}

inline v8f load_eight(const float* row, int64_t at, int64_t size) {
  if (at + 8 <= size) return load<v8f>(row + at);
  alignas(32) float part[8];
  for (int i = 0; i < 8; ++i) part[i] = at + i < size ? row[at + i] : kLowest;
  return load<v8f>(part);
}

double sum_weights(const float* row, int64_t size, const Weighing& by) {
  v8d sums[4] = {};
  int64_t at = 0;
  for (; at + 32 <= size; at += 32) {
    const v16i is_in = (load<v16f>(row + at) >= by.from) | (load<v16f>(row + at + 16) >= by.from);
    if (bits_of(is_in) == 0) continue;
    for (int i = 0; i < 4; ++i) sums[i] += weights_of(load<v8f>(row + at + 8 * i), by);
  }
  for (; at < size; at += 8) sums[at / 8 % 4] += weights_of(load_eight(row, at, size), by);
  return sum_double((sums[0] + sums[1]) + (sums[2] + sums[3]));
}

void weigh_keys(const Key* keys, int64_t n, const Weighing& by, double* to) {
  for (int64_t at = 0; at < n; at += 8) {
    alignas(32) float part[8] = {};
    for (int64_t i = at; i < n && i < at + 8; ++i) part[i - at] = value_of(keys[i]);
    const v8d weights = weights_of(load<v8f>(part), by);
    for (int64_t i = at; i < n && i < at + 8; ++i) to[i] = weights[i - at];
  }
}

void fill_bins(const float* row, int64_t size, const Weighing& by, float scale, Bin* bins) {
  for (int64_t at = 0; at < size; at += kLanes) {
    const v16f x = load_floats(row, at, size, kLowest);
    if (bits_of(x >= by.from) == 0) continue;
    alignas(64) double weights[kLanes];
    alignas(64) int32_t places[kLanes];
    store(places, bins_of(x, by.best, scale));
    store(weights, weights_of(load_eight(row, at, size), by));
    store(weights + 8, weights_of(load_eight(row, at + 8, size), by));
    const int64_t end = size - at < kLanes ? size - at : kLanes;
    for (int64_t i = 0; i < end; ++i) {
      const v2d added = {weights[i], 1.0};
      store(bins + places[i], load<v2d>(bins + places[i]) + added);
    }
  }
}

int64_t count_before(const float* row, int64_t size, int64_t place) {
  const float value = row[place];
  int64_t count = 0;
  for (int64_t at = 0; at < size; at += kLanes) {
    const v16f x = load_floats(row, at, size, __builtin_nanf(""));
    // Equal ones count in the vectors before the place, and in its own up to it.
    uint32_t before = at + kLanes <= place ? 0xffffu : at < place ? (1u << (place - at)) - 1 : 0;
    count += __builtin_popcount(bits_of(x > value) | (bits_of(x == value) & before));
  }
  return count;
}

void mask_row(float* row, int64_t size, const uint8_t* bits) {
  const v16i lanes = {1 << 0, 1 << 1, 1 << 2,  1 << 3,  1 << 4,  1 << 5,  1 << 6,  1 << 7,
                      1 << 8, 1 << 9, 1 << 10, 1 << 11, 1 << 12, 1 << 13, 1 << 14, 1 << 15};
  int64_t at = 0;
  for (; at + kLanes <= size; at += kLanes, bits += 2) {
    const v16i allowed = (splat(bits[0] | bits[1] << 8) & lanes) != 0;
    store(row + at, select(allowed, load<v16f>(row + at), splat(kLowest)));
  }
  for (int i = 0; at < size; ++at, ++i)
    if (!(bits[i / 8] >> i % 8 & 1)) row[at] = kLowest;
}

const LogitKernels logit_kernels{
    largest_logit, argmax_logit, lane_maxima, collect_logits, collect_bin,
    sum_weights,   weigh_keys,   fill_bins,   count_before,   mask_row,
};

}  // namespace
}  // namespace fathom
