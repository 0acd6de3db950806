#include "pack.h"

#include <immintrin.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <memory>
#include <vector>

#include "pack_words.h"
#include "pool.h"
#include "vec.h"

namespace fathom {
namespace {

// Row r of the joined sources, or none beyond them (padding).
struct RowRef {
  const Source* source = nullptr;
  int64_t row = 0;
  template <class T>
  const T* data() const {
    return static_cast<const T*>(source->data) + row * source->stride;
  }
};

float half_to_float(uint16_t bits) { return _cvtsh_ss(bits); }
uint16_t float_to_half(float x) { return _cvtss_sh(x, _MM_FROUND_TO_NEAREST_INT); }

// `n` values of a row from input k on, as float32.
void read_floats(const RowRef& ref, int64_t k, int64_t n, float* to) {
  const Source& s = *ref.source;
  switch (s.kind) {
    case kSourceF32: std::memcpy(to, ref.data<float>() + k, 4 * n); break;
    case kSourceBf16: {
      const uint16_t* from = ref.data<uint16_t>() + k;
      for (int64_t i = 0; i < n; ++i) to[i] = bf16_to_float(from[i]);
      break;
    }
    default: {
      const uint16_t* from = ref.data<uint16_t>() + k;
      for (int64_t i = 0; i < n; ++i) to[i] = half_to_float(from[i]);
    }
  }
}

class StripPacker {
 public:
  StripPacker(const Matrix& matrix, const std::vector<RowRef>& rows, uint8_t* strip)
      : matrix_(matrix), rows_(rows), strip_(strip) {}

  // Gives false where values are not finite, or too large for their scales.
  bool run() {
    pack();
    return is_sound_;
  }

 private:
  void pack() {
    switch (matrix_.format) {
      case kBf16: return pack_bf16();
      case kFp8: return pack_fp8();
      case kInt8: return pack_int8();
      default: return rows_[0].source->is_words() ? pack_int4_words() : pack_int4();
    }
  }

  // Sixty-four inputs of a row as bfloat16, zeros beyond K.
  void bf16_step(const RowRef& ref, int64_t first, uint16_t* to) const {
    const int64_t n = std::min<int64_t>(kStep, matrix_.k - first);
    std::memset(to, 0, 2 * kStep);
    if (ref.source->kind == kSourceBf16) {
      std::memcpy(to, ref.data<uint16_t>() + first, 2 * n);
      return;
    }
    float values[kStep];
    read_floats(ref, first, n, values);
    for (int64_t i = 0; i < n; ++i) to[i] = float_to_bf16(values[i]);
  }

  void pack_bf16() {
    alignas(64) uint32_t pairs[kStep / 2];
    for (int64_t first = 0; first < matrix_.k; first += kStep) {
      uint32_t* to = reinterpret_cast<uint32_t*>(strip_) + first / 2 * kStrip;
      for (int c = 0; c < kStrip; ++c) {
        if (rows_[c].source == nullptr) {
          for (int p = 0; p < kStep / 2; ++p) to[p * kStrip + c] = 0;
          continue;
        }
        bf16_step(rows_[c], first, reinterpret_cast<uint16_t*>(pairs));
        for (int p = 0; p < kStep / 2; ++p) to[p * kStrip + c] = pairs[p];
      }
    }
  }

  void pack_fp8() {
    for (int64_t first = 0; first < matrix_.k; first += kStep)
      for (int c = 0; c < kStrip; ++c) {
        uint16_t pairs[kStep / 2] = {};
        if (rows_[c].source != nullptr)
          std::memcpy(pairs, rows_[c].data<uint8_t>() + first,
                      std::min<int64_t>(kStep, matrix_.k - first));
        uint16_t* to = reinterpret_cast<uint16_t*>(strip_ + first * kStrip);
        // Pair p of column c: 256 bytes hold two pairs of 64 columns; see matrix.h.
        for (int p = 0; p < kStep / 2; ++p)
          to[p / 2 * 128 + c / 16 * 32 + c % 16 / 4 * 8 + p % 2 * 4 + c % 4] = pairs[p];
      }
    float* scales = reinterpret_cast<float*>(strip_ + matrix_.k_padded() * kStrip);
    const RowRef& top = rows_[0];
    const float* from = static_cast<const float*>(top.source->scale) +
                        top.row / kFp8Block * top.source->scale_stride;
    for (int64_t b = 0; b < (matrix_.k + kFp8Block - 1) / kFp8Block; ++b) scales[b] = from[b];
  }

  void int8_row(const RowRef& ref, int8_t* to, float* scale) {
    const Source& s = *ref.source;
    const int64_t k = matrix_.k;
    if (s.kind == kSourceInt8) {
      std::memcpy(to, ref.data<int8_t>(), k);
      *scale = static_cast<const float*>(s.scale)[ref.row * s.scale_stride];
      return;
    }
    floats_.resize(k);
    read_floats(ref, 0, k, floats_.data());
    float amax = 0;
    for (float x : floats_) amax = std::max(amax, std::fabs(x));
    const float inverse = amax > 0 ? 127.0f / amax : 0.0f;
    *scale = amax > 0 ? amax / 127.0f : 1.0f;
    for (int64_t i = 0; i < k; ++i) to[i] = int8_t(std::nearbyint(floats_[i] * inverse));
  }

  void pack_int8() {
    const int64_t padded = matrix_.k_padded();
    std::vector<int8_t> values(padded, 0);
    float* scales = reinterpret_cast<float*>(strip_ + padded * kStrip);
    int32_t* offsets = reinterpret_cast<int32_t*>(scales + kStrip);
    uint32_t* to = reinterpret_cast<uint32_t*>(strip_);
    for (int c = 0; c < kStrip; ++c) {
      if (rows_[c].source == nullptr) {
        std::fill(values.begin(), values.end(), 0);
        scales[c] = 0;
      } else {
        int8_row(rows_[c], values.data(), &scales[c]);
      }
      int32_t sum = 0;
      for (int8_t value : values) sum += value;
      offsets[c] = 128 * sum;
      for (int64_t q = 0; q < padded / 4; ++q) std::memcpy(to + q * kStrip + c, &values[4 * q], 4);
    }
  }

  // One group of a row: nibbles one a byte, its scale (float16 bits) and zero point.
  void int4_group(const RowRef& ref, int64_t g, uint8_t* to, uint16_t* scale, uint8_t* zero) {
    const Source& s = *ref.source;
    const int64_t first = g * matrix_.group, n = matrix_.group;
    if (s.kind == kSourceInt4) {
      const uint8_t* from = ref.data<uint8_t>() + first / 2;
      // Eight values from four bytes at once: each four bits go into a byte of their own.
      for (int64_t i = 0; i < n; i += 8) {
        uint32_t packed;
        std::memcpy(&packed, from + i / 2, 4);
        store(to + i, _pdep_u64(packed, 0x0f0f0f0f0f0f0f0full));
      }
      *scale = static_cast<const uint16_t*>(s.scale)[ref.row * s.scale_stride + g];
      *zero = static_cast<const uint8_t*>(s.zero)[ref.row * s.zero_stride + g];
      return;
    }
    float values[128];
    read_floats(ref, first, n, values);
    float low = 0, high = 0, sum = 0;  // the sum is NaN where a value is
    for (int64_t i = 0; i < n; ++i) {
      low = std::min(low, values[i]);
      high = std::max(high, values[i]);
      sum += values[i] * 0;
    }
    // As ops/quant/int4_group.py does it, operation by operation: the levels are the same.
    float rounded = (high - low) * float(1.0 / 15);
    rounded = rounded == 0 ? 1.0f : std::max(rounded, 0x1p-24f);
    *scale = float_to_half(rounded);
    rounded = half_to_float(*scale);
    if (!std::isfinite(rounded) || !std::isfinite(sum)) {
      is_sound_ = false;
      return;
    }
    const float z = std::clamp(std::nearbyint(-low / rounded), 0.0f, 15.0f);
    *zero = uint8_t(z);
    for (int64_t i = 0; i < n; ++i)
      to[i] = uint8_t(std::clamp(std::nearbyint(values[i] / rounded) + z, 0.0f, 15.0f));
  }

  void pack_int4() {
    const int64_t unit = matrix_.unit(), groups = unit / matrix_.group;
    const int64_t units = round_up(matrix_.k_padded(), unit) / unit;
    std::vector<uint8_t> values(unit);
    for (int64_t u = 0; u < units; ++u) {
      uint8_t* data = strip_ + u * matrix_.unit_bytes();
      uint8_t* aux = data + unit * kStrip / 2;
      for (int c = 0; c < kStrip; ++c) {
        std::fill(values.begin(), values.end(), 0);
        for (int64_t g = 0; g < groups; ++g) {
          uint16_t scale = 0;
          uint8_t zero = 0;
          if (rows_[c].source != nullptr && (u * groups + g) * matrix_.group < matrix_.k)
            int4_group(rows_[c], u * groups + g, &values[g * matrix_.group], &scale, &zero);
          std::memcpy(aux + g * 3 * kStrip + 2 * c, &scale, 2);
          aux[g * 3 * kStrip + 2 * kStrip + c] = zero;
        }
        for (int64_t tile = 0; tile < unit / kStep; ++tile)
          for (int i = 0; i < 8; ++i) {
            const uint8_t* at = &values[tile * kStep + 4 * i];  // four bytes, none over 15
            const uint32_t quads = load<uint32_t>(at) | load<uint32_t>(at + kStep / 2) << 4;
            store(data + tile * 2048 + i * 256 + 4 * c, quads);
          }
      }
    }
  }

  void pack_int4_words() {
    Eight columns[kStrip / 8];
    for (int i = 0; i < kStrip / 8; ++i) columns[i] = {rows_[8 * i].source, rows_[8 * i].row};
    pack_words(matrix_, columns, strip_);
  }

  const Matrix& matrix_;
  const std::vector<RowRef>& rows_;
  uint8_t* strip_;
  std::vector<float> floats_;
  bool is_sound_ = true;
};

// The joined rows that the columns of a strip stand for.
std::vector<RowRef> strip_rows(const Matrix& matrix, const Source* sources, int count,
                               int64_t strip) {
  std::vector<RowRef> rows(kStrip);
  const int64_t half = matrix.half();
  const int64_t first = (matrix.is_gated ? strip / 2 : strip) * kStrip;
  const int64_t base = matrix.is_gated && strip % 2 ? half : 0;
  for (int c = 0; c < kStrip && first + c < half; ++c) {
    int64_t row = base + first + c;
    for (int i = 0; i < count; ++i) {
      if (row < sources[i].rows) {
        rows[c] = {&sources[i], row};
        break;
      }
      row -= sources[i].rows;
    }
  }
  return rows;
}

bool fits(const Matrix& matrix, const Source& source) {
  const bool is_float = source.kind <= kSourceF16;
  switch (matrix.format) {
    case kBf16: return is_float;
    case kFp8: return source.kind == kSourceFp8;
    case kInt8: return is_float || source.kind == kSourceInt8;
    default: return is_float || (source.kind >= kSourceInt4 && source.group == matrix.group);
  }
}

}  // namespace

const char* pack(const Matrix& matrix, int64_t expert, const Source* sources, int count) {
  int64_t rows = 0;
  for (int i = 0; i < count; ++i) {
    if (!fits(matrix, sources[i])) return "a source of another format than the matrix's";
    if (sources[i].k != matrix.k) return "a source with another number of columns";
    // A strip has one row of FP8 scales: no source may start or end inside a block of another's.
    if (matrix.format == kFp8 && i + 1 < count && sources[i].rows % kFp8Block != 0)
      return "FP8 blocks that hold rows of two sources";
    if (sources[i].is_words() != sources[0].is_words()) return "words beside other sources";
    if (sources[i].is_words() && (sources[i].rows % 8 || matrix.half() % 8))
      return "words of eight outputs that two matrices share";
    rows += sources[i].rows;
  }
  if (rows != matrix.n) return "sources with another number of rows than the matrix";
  uint8_t* data = const_cast<uint8_t*>(matrix.data) + expert * matrix.expert_bytes();
  std::atomic<bool> is_sound = true;
  parallel(matrix.strips(), [&](int64_t strip, int) {
    const std::vector<RowRef> refs = strip_rows(matrix, sources, count, strip);
    if (!StripPacker(matrix, refs, data + strip * matrix.strip_bytes()).run()) is_sound = false;
  });
  return is_sound ? nullptr : "values that are not finite, or too large for int4's float16 scales";
}

}  // namespace fathom
