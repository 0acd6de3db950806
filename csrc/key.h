// Logits as integers that sort as they do, see Key in logits.h.
#pragma once

#include <cstring>

#include "logits.h"

namespace fathom {
namespace {

inline Key key_of(float value, int64_t token) {
  int32_t bits;
  value += 0.0f;  // a zero's sign becomes positive
  std::memcpy(&bits, &value, 4);
  const uint32_t ascending = uint32_t(bits ^ ((bits >> 31) & 0x7fffffff)) ^ 0x80000000u;
  const uint32_t descending = value == value ? ~ascending : 0xffffffffu;
  return Key(descending) << 32 | uint32_t(token);
}

inline int64_t token_of(Key key) { return int64_t(key & 0xffffffffu); }

// NaN comes as some NaN.
inline float value_of(Key key) {
  const int32_t ordered = int32_t(~uint32_t(key >> 32) ^ 0x80000000u);
  const int32_t bits = ordered ^ ((ordered >> 31) & 0x7fffffff);
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

}  // namespace
}  // namespace fathom
