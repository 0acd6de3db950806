// Int4 in 32-bit words, as AWQ and GPTQ store it, into strips.
#pragma once

#include "pack.h"

namespace fathom {

// Eight outputs of a strip, whose words start at `row`, a multiple of eight; no source for padding.
struct Eight {
  const Source* source = nullptr;
  int64_t row = 0;
};

// Fills one strip of an int4 matrix.
void pack_words(const Matrix& matrix, const Eight (&columns)[kStrip / 8], uint8_t* strip);

}  // namespace fathom
