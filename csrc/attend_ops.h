// The arithmetic of attention in vec.h's portable vectors, but for `scores`; included and compiled
// by each instruction set's file.
#pragma once

#include <cmath>

#include "attend.h"
#include "row_ops.h"

namespace fathom {
namespace {

constexpr float kNothing = -INFINITY;

inline v16f masked(v16f score, v16i visible, int key) {
  return select(visible > key, score, splat(kNothing));
}

void weigh_block(const float* scores, int keys, int blocks, int block, v16i visible, bool is_masked,
                 float scale, Found& found, float* rescale, uint16_t* weights) {
  const int stride = blocks * kLanes;
  const float* from = scores + block * kLanes;
  v16f most = load<v16f>(found.most + block * kLanes);
  const v16f before = most;
  for (int key = 0; key < keys; ++key) {
    v16f score = load<v16f>(from + key * stride) * scale;
    if (is_masked) score = masked(score, visible, key);
    most = vmax(score, most);
  }
  // A column that has seen no key yet keeps a maximum of -inf; 0 stands in for it below.
  const v16f anchor = select(most == kNothing, splat(0.0f), most);
  const v16f factor = exp(before - anchor);
  v16f total = load<v16f>(found.total + block * kLanes) * factor;
  uint16_t* to = weights + block * kLanes * kKeyBlock;
  for (int key = 0; key < keys; ++key) {
    v16f score = load<v16f>(from + key * stride) * scale;
    if (is_masked) score = masked(score, visible, key);
    const v16f weight = exp(score - anchor);
    total = total + weight;
    const v16h bits = narrow(weight);
    for (int lane = 0; lane < kLanes; ++lane) to[lane * kKeyBlock + key] = bits[lane];
  }
  for (int lane = 0; lane < kLanes; ++lane)
    for (int key = keys; key < kKeyBlock; ++key) to[lane * kKeyBlock + key] = 0;
  store(found.most + block * kLanes, most);
  store(found.total + block * kLanes, total);
  store(rescale + block * kLanes, factor);
}

void weigh(const float* scores, int keys, int blocks, const int32_t* visible, bool is_masked,
           float scale, Found& found, float* rescale, uint16_t* weights) {
  for (int block = 0; block < blocks; ++block)
    weigh_block(scores, keys, blocks, block, load<v16i>(visible + block * kLanes), is_masked, scale,
                found, rescale, weights);
}

void interleave(const KeyBlock& keys, int rank, uint16_t* to) {
  alignas(64) static const uint16_t zeros[kStrip] = {};
  for (int at = 0; at < rank; at += kStrip, to += kKeyBlock * kStrip)
    for (int key = 0; key < kKeyBlock; key += 2) {
      const uint16_t* first = key < keys.count ? keys.rows[key] + at : zeros;
      const uint16_t* second = key + 1 < keys.count ? keys.rows[key + 1] + at : zeros;
      for (int i = 0; i < kStrip; i += kLanes) {
        const int64_t width = std::min<int64_t>(rank - at, kStrip);
        const bool is_whole = i + kLanes <= width;
        v16h low = v16h{}, high = v16h{};
        if (is_whole) {
          low = load<v16h>(first + i);
          high = load<v16h>(second + i);
        } else {
          for (int j = i; j < width; ++j) {
            low[j - i] = first[j];
            high[j - i] = second[j];
          }
        }
        const v16u pair =
            __builtin_convertvector(low, v16u) | (__builtin_convertvector(high, v16u) << 16);
        store(to + (key / 2 * kStrip + i) * 2, pair);
      }
    }
}

void rescale_add(float* sums, const float* values, float factor) {
  for (int i = 0; i < kStrip; i += kLanes)
    store(sums + i, load<v16f>(sums + i) * factor + load<v16f>(values + i));
}

void merge(Found& into, const Found& later, int columns, int64_t width) {
  for (int block = 0; block < kColumns; block += kLanes) {
    const v16f mine = load<v16f>(into.most + block), other = load<v16f>(later.most + block);
    const v16f most = vmax(other, mine);
    const v16f anchor = select(most == kNothing, splat(0.0f), most);
    const v16f mine_factor = exp(mine - anchor), other_factor = exp(other - anchor);
    store(into.most + block, most);
    store(into.total + block, load<v16f>(into.total + block) * mine_factor +
                                  load<v16f>(later.total + block) * other_factor);
    for (int lane = 0; lane < kLanes && block + lane < columns; ++lane) {
      float* to = into.latent + (block + lane) * width;
      const float* from = later.latent + (block + lane) * width;
      for (int64_t i = 0; i < width; i += kLanes)
        store(to + i,
              load<v16f>(to + i) * mine_factor[lane] + load<v16f>(from + i) * other_factor[lane]);
    }
  }
}

void finish(const Found& found, int column, int64_t width, int rank, uint16_t* to) {
  const float factor = 1.0f / found.total[column];
  const float* from = found.latent + column * width;
  for (int64_t i = 0; i < width; i += kLanes)
    store_tail(to, i, rank, narrow(load<v16f>(from + i) * factor));
}

void rotate(const uint16_t* from, const float* cos, const float* sin, int rope, bool is_interleaved,
            uint16_t* to) {
  const int half = rope / 2;
  for (int i = 0; i < half; ++i) {
    const int a = is_interleaved ? 2 * i : i, b = is_interleaved ? 2 * i + 1 : i + half;
    const float x = bf16_to_float(from[a]), y = bf16_to_float(from[b]);
    to[a] = float_to_bf16(x * cos[i] - y * sin[i]);
    to[b] = float_to_bf16(y * cos[i] + x * sin[i]);
  }
}

inline v16f e4m3_to_float(v16u byte) {
  const v16u magnitude = byte & 0x7fu;
  const v16f normal = reinterpret_cast<v16f>((magnitude << 20) + (120u << 23));
  const v16f small = __builtin_convertvector(magnitude, v16f) * 0.001953125f;  // 2^-9
  const v16f value = select(reinterpret_cast<v16i>(magnitude) < 8, small, normal);
  return reinterpret_cast<v16f>(reinterpret_cast<v16u>(value) | ((byte & 0x80u) << 24));
}

// Round to nearest even for |x| <= 448.
inline uint8_t float_to_e4m3(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  const uint8_t sign = uint8_t(bits >> 24 & 0x80);
  const float magnitude = std::fabs(x);
  if (!(magnitude == magnitude)) return uint8_t(sign | 0x7f);
  if (magnitude < 0.015625f)  // 2^-6: multiples of 2^-9
    return uint8_t(sign | uint8_t(std::nearbyint(magnitude * 512.0f)));
  const uint32_t positive = bits & 0x7fffffffu;
  const uint32_t rounded = positive + 0x7ffffu + (positive >> 20 & 1u);
  const uint32_t code = (rounded >> 20) - (120u << 3);
  return uint8_t(sign | (code > 0x7e ? 0x7e : code));
}

typedef uint8_t v16c __attribute__((vector_size(16), aligned(16)));

void read_fp8(const Cache& cache, const uint8_t* cell, uint16_t* to) {
  for (int at = 0; at < cache.rank; at += kLanes) {
    float scale;
    std::memcpy(&scale, cell + cache.scale_offset() + at / 128 * 4, 4);
    v16c bytes = {};
    const int n = std::min(kLanes, cache.rank - at);
    std::memcpy(&bytes, cell + at, n);
    const v16h values = narrow(e4m3_to_float(__builtin_convertvector(bytes, v16u)) * scale);
    store_tail(to, at, cache.rank, values);
  }
  std::memcpy(to + cache.rank, cell + cache.rope_offset(), 2 * cache.rope);
}

void write_fp8(const Cache& cache, const uint16_t* from, uint8_t* cell) {
  for (int first = 0; first < cache.rank; first += 128) {
    const int end = std::min(first + 128, int(cache.rank));
    float most = 0;
    for (int i = first; i < end; ++i) most = std::fmax(most, std::fabs(bf16_to_float(from[i])));
    const float scale = most > 0 ? most / 448.0f : 1.0f;
    const float inverse = 1.0f / scale;
    std::memcpy(cell + cache.scale_offset() + first / 128 * 4, &scale, 4);
    for (int i = first; i < end; ++i)
      cell[i] =
          float_to_e4m3(std::fmin(std::fmax(bf16_to_float(from[i]) * inverse, -448.0f), 448.0f));
  }
  std::memcpy(cell + cache.rope_offset(), from + cache.rank, 2 * cache.rope);
}

}  // namespace
}  // namespace fathom
