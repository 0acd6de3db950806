#include "pack_words.h"

#include <immintrin.h>

#include "vec.h"

namespace fathom {
namespace {

constexpr int64_t kHalf = kStep / 2;  // input k + kHalf shares a byte with input k
constexpr uint64_t kLowHalves = 0x0f0f0f0f0f0f0f0full;

// Eight values, one a byte.
uint64_t spread(uint32_t word) { return _pdep_u64(word, kLowHalves); }

// Two words of the same outputs, the second one's values in the high halves of the bytes.
uint64_t pair(const uint32_t* low, const uint32_t* high) {
  return spread(load<uint32_t>(low)) | (high == nullptr ? 0 : spread(load<uint32_t>(high)) << 4);
}

// Inputs k .. k + 63 of eight outputs: `to` is the first one's place in a tile. Beyond `is_whole`
// inputs end after 32.
void awq_tile(const Eight& from, int64_t k, bool is_whole, uint8_t* to) {
  const Source& s = *from.source;
  const uint32_t* at = static_cast<const uint32_t*>(s.data) + k * s.stride + from.row / 8;
  for (int quad = 0; quad < kHalf / 4; ++quad, to += 4 * kStrip) {
    __m128i inputs[4];
    for (__m128i& input : inputs) {
      input = _mm_cvtsi64_si128(int64_t(pair(at, is_whole ? at + kHalf * s.stride : nullptr)));
      at += s.stride;
    }
    // Inputs side by side, first the even outputs, then the odd ones.
    const __m128i a = _mm_unpacklo_epi8(inputs[0], inputs[1]);
    const __m128i b = _mm_unpacklo_epi8(inputs[2], inputs[3]);
    const __m128i even = _mm_unpacklo_epi16(a, b), odd = _mm_unpackhi_epi16(a, b);
    store(to, _mm_unpacklo_epi32(even, odd));
    store(to + 16, _mm_unpackhi_epi32(even, odd));
  }
}

void gptq_tile(const Eight& from, int64_t k, bool is_whole, uint8_t* to) {
  const Source& s = *from.source;
  const uint32_t* at = static_cast<const uint32_t*>(s.data) + k / 8 * s.stride + from.row;
  for (int word = 0; word < kHalf / 8; ++word, at += s.stride, to += 8 * kStrip)
    for (int c = 0; c < 8; ++c) {
      const uint64_t quads = pair(at + c, is_whole ? at + c + kHalf / 8 * s.stride : nullptr);
      store(to + 4 * c, uint32_t(quads));
      store(to + 4 * kStrip + 4 * c, uint32_t(quads >> 32));
    }
}

void group_tail(const Eight& from, int64_t group, uint8_t* scales, uint8_t* zeros) {
  const Source& s = *from.source;
  std::memcpy(scales, static_cast<const uint16_t*>(s.scale) + group * s.scale_stride + from.row,
              16);
  const auto words = static_cast<const uint32_t*>(s.zero) + group * s.zero_stride + from.row / 8;
  uint64_t points = spread(load<uint32_t>(words));
  if (s.kind == kSourceAwq) {
    const __m128i mixed = _mm_cvtsi64_si128(int64_t(points));
    points = uint64_t(_mm_cvtsi128_si64(_mm_unpacklo_epi8(mixed, _mm_srli_epi64(mixed, 32))));
  } else if (s.kind == kSourceGptq) {
    points = (points + 0x0101010101010101ull) & kLowHalves;  // -1 was stored as 15
  }
  std::memcpy(zeros, &points, 8);
}

}  // namespace

void pack_words(const Matrix& matrix, const Eight (&columns)[kStrip / 8], uint8_t* strip) {
  const int64_t unit = matrix.unit(), groups = unit / matrix.group;
  const bool is_padded = matrix.k % unit != 0 || columns[kStrip / 8 - 1].source == nullptr;
  if (is_padded) std::memset(strip, 0, matrix.strip_bytes());
  for (int64_t first = 0; first < matrix.k; first += unit, strip += matrix.unit_bytes())
    for (int i = 0; i < kStrip / 8; ++i) {
      const Eight& from = columns[i];
      if (from.source == nullptr) continue;
      for (int64_t k = first; k < first + unit && k < matrix.k; k += kStep) {
        uint8_t* to = strip + (k - first) * kStrip / 2 + 32 * i;
        const auto tile = from.source->kind == kSourceAwq ? awq_tile : gptq_tile;
        tile(from, k, k + kHalf < matrix.k, to);
      }
      for (int64_t g = 0; g < groups && first + g * matrix.group < matrix.k; ++g) {
        uint8_t* tail = strip + unit * kStrip / 2 + g * 3 * kStrip;
        group_tail(from, first / matrix.group + g, tail + 16 * i, tail + 2 * kStrip + 8 * i);
      }
    }
}

}  // namespace fathom
