// The kernels of logits.h in portable vectors; each instruction set's file includes this and so
// compiles it with its own flags.
#pragma once

#include "key.h"
#include "lanes.h"
#include "logits.h"

namespace fathom {
namespace {

const float kLowest = -__builtin_inff();

// N values of a row from `at`, with `fill` beyond its end, which takes a copy.
template <int N>
struct Slice {
  alignas(64) float copy[N];
  const float* x;
  Slice(const float* row, int64_t at, int64_t size, float fill) : x(row + at) {
    if (at + N <= size) return;
    for (int i = 0; i < N; ++i) copy[i] = at + i < size ? row[at + i] : fill;
    x = copy;
  }
};

// The largest of each lane of a group, NaN left out.
inline void group_max(const float* row, int64_t at, int64_t size, float* to) {
  const Slice<kGroup> group(row, at, size, kLowest);
#pragma GCC unroll 2
  for (int part = 0; part < kLanes; part += kFloats) {
    vf most = vf{} + kLowest;
#pragma GCC unroll 8
    for (int i = part; i < kGroup; i += kLanes) most = max_of(load<vf>(group.x + i), most);
    store(to + part, most);
  }
}

// Sixteen maxima so far, taken further.
inline void keep_max(float* most, const float* x) {
#pragma GCC unroll 2
  for (int i = 0; i < kLanes; i += kFloats)
    store(most + i, max_of(load<vf>(x + i), load<vf>(most + i)));
}

struct Maxima {
  alignas(64) float lanes[kLanes];
  Maxima() {
    for (float& lane : lanes) lane = kLowest;
  }
  float largest() const {
    float best = kLowest;
    for (const float lane : lanes) best = lane > best ? lane : best;
    return best;
  }
};

float largest_logit(const float* row, int64_t size) {
  vf most[kParts];
  for (vf& lanes : most) lanes = vf{} + kLowest;
  uint32_t is_nan = 0;
  for (int64_t at = 0; at < size; at += kLanes) {
    const Slice<kLanes> part(row, at, size, kLowest);
#pragma GCC unroll 2
    for (int i = 0; i < kParts; ++i) {
      const vf x = load<vf>(part.x + i * kFloats);
      is_nan |= compare<_CMP_UNORD_Q>(x, x);
      most[i] = max_of(x, most[i]);
    }
  }
  Maxima found;
  std::memcpy(found.lanes, most, sizeof most);
  return is_nan ? __builtin_nanf("") : found.largest();
}

int64_t argmax_logit(const float* row, int64_t size) {
  constexpr int64_t kBlock = 8 * kGroup;
  float best = kLowest;
  int64_t first = 0;
  for (int64_t block = 0; block < size; block += kBlock) {
    Maxima most;
    for (int64_t at = block; at < block + kBlock && at < size; at += kGroup) {
      alignas(64) float lanes[kLanes];
      group_max(row, at, size, lanes);
      keep_max(most.lanes, lanes);
    }
    if (compare<_CMP_GT_OQ>(most.lanes, best) == 0) continue;
    best = most.largest();
    first = block;
  }
  for (int64_t at = first; at < size; ++at)
    if (row[at] == best) return at;
  return 0;
}

float lane_maxima(const float* row, int64_t size, float* to) {
  Maxima most;
  for (int64_t at = 0; at < size; at += kGroup, to += kLanes) {
    group_max(row, at, size, to);
    keep_max(most.lanes, to);
  }
  return most.largest();
}

int64_t collect_logits(const float* row, int64_t size, const float* maxima, float threshold,
                       int64_t max_equal, Key* to) {
  int64_t found = 0, equal = 0;
  for (int64_t group = 0; group < size; group += kGroup, maxima += kLanes) {
    if (compare<_CMP_GE_OQ>(maxima, threshold) == 0) continue;
    for (int64_t at = group; at < group + kGroup && at < size; at += kLanes) {
      const Slice<kLanes> part(row, at, size, __builtin_nanf(""));
      uint32_t bits = compare<_CMP_GE_OQ>(part.x, threshold);
      for (; bits != 0; bits &= bits - 1) {
        const int64_t place = at + __builtin_ctz(bits);
        if (row[place] == threshold && equal++ >= max_equal) continue;
        to[found++] = key_of(row[place], place);
      }
    }
  }
  return found;
}

// The bins of sixteen values. A NaN, of a NaN or of 0 times inf, goes to the last one too.
inline void find_bins(const float* x, float best, float scale, int32_t* to) {
#pragma GCC unroll 2
  for (int i = 0; i < kLanes; i += kFloats) {
    const vf bin = (best - load<vf>(x + i)) * scale, last = vf{} + float(kBins - 1);
    const vi is_in = bin < last;
    const vi chosen = ((vi)bin & is_in) | ((vi)last & ~is_in);
    store(to + i, __builtin_convertvector((vf)chosen, vi));
  }
}

int64_t collect_bin(const float* row, int64_t size, float best, float scale, int bin, Key* to) {
  int64_t found = 0;
  for (int64_t at = 0; at < size; at += kLanes) {
    const Slice<kLanes> part(row, at, size, __builtin_nanf(""));
    alignas(64) int32_t bins[kLanes];
    find_bins(part.x, best, scale, bins);
    uint32_t bits = 0;
#pragma GCC unroll 2
    for (int i = 0; i < kLanes; i += kFloats) {
      const vf x = load<vf>(part.x + i);
      const vi is_here = load<vi>(bins + i) == bin;
      bits |= compare<_CMP_ORD_Q>((vf)((vi)x | ~is_here), x) << i;
    }
    for (; bits != 0; bits &= bits - 1) {
      const int64_t place = at + __builtin_ctz(bits);
      to[found++] = key_of(row[place], place);
    }
  }
  return found;
}

inline vd weights_of(vf_of_vd x, const Weighing& by) {
  const vd weight = exp_double((to_double(x) - double(by.best)) * by.inverse_t);
  return (vd)((vl)weight & (weight >= by.least));
}

constexpr int kSums = 32;

// Adds the weights of 32 values to as many sums.
inline void add_weights(const float* from, const Weighing& by, vd (&sums)[kSums / kDoubles]) {
#pragma GCC unroll 8
  for (int i = 0; i < kSums / kDoubles; ++i)
    sums[i] += weights_of(load<vf_of_vd>(from + kDoubles * i), by);
}

double sum_weights(const float* row, int64_t size, const Weighing& by) {
  vd sums[kSums / kDoubles] = {};
  int64_t at = 0;
  for (; at + kSums <= size; at += kSums) {
    if (compare<_CMP_GE_OQ>(row + at, by.from) | compare<_CMP_GE_OQ>(row + at + kLanes, by.from))
      add_weights(row + at, by, sums);
  }
  if (at < size) add_weights(Slice<kSums>(row, at, size, kLowest).x, by, sums);
  alignas(64) double total[kSums];
  __builtin_memcpy(total, sums, sizeof total);
  return sum_halves(total);
}

void weigh_keys(const Key* keys, int64_t n, const Weighing& by, double* to) {
  for (int64_t at = 0; at < n; at += kDoubles) {
    alignas(32) float part[kDoubles] = {};
    for (int64_t i = at; i < n && i < at + kDoubles; ++i) part[i - at] = value_of(keys[i]);
    const vd weights = weights_of(load<vf_of_vd>(part), by);
    for (int64_t i = at; i < n && i < at + kDoubles; ++i) to[i] = weights[i - at];
  }
}

void fill_bins(const float* row, int64_t size, const Weighing& by, float scale, Bin* bins) {
  for (int64_t at = 0; at < size; at += kLanes) {
    const Slice<kLanes> part(row, at, size, kLowest);
    if (compare<_CMP_GE_OQ>(part.x, by.from) == 0) continue;
    alignas(64) double weights[kLanes];
    alignas(64) int32_t places[kLanes];
    find_bins(part.x, by.best, scale, places);
#pragma GCC unroll 4
    for (int i = 0; i < kLanes; i += kDoubles)
      store(weights + i, weights_of(load<vf_of_vd>(part.x + i), by));
    const int64_t end = size - at < kLanes ? size - at : kLanes;
    for (int64_t i = 0; i < end; ++i) {
      Bin& bin = bins[places[i]];
      bin.sum += weights[i];
      ++bin.count;
    }
  }
}

int64_t count_before(const float* row, int64_t size, int64_t place) {
  const float value = row[place];
  int64_t count = 0;
  for (int64_t at = 0; at < size; at += kLanes) {
    const Slice<kLanes> part(row, at, size, __builtin_nanf(""));
    // Equal ones count in the vectors before the place, and in its own up to it.
    uint32_t before = at + kLanes <= place ? 0xffffu : at < place ? (1u << (place - at)) - 1 : 0;
    count += __builtin_popcount(compare<_CMP_GT_OQ>(part.x, value) |
                                (compare<_CMP_EQ_OQ>(part.x, value) & before));
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
