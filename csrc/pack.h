// From matrices as checkpoints store them to packed ones.
#pragma once

#include "matrix.h"

namespace fathom {

enum SourceKind : int32_t {
  kSourceBf16 = 0,
  kSourceF32 = 1,
  kSourceF16 = 2,
  kSourceFp8 = 3,
  kSourceInt8 = 4,
  kSourceInt4 = 5
};

// Some rows of a matrix [N, K], row-major. Mirrored in ops/backends/cpu/library.py.
struct Source {
  const void* data;
  const void*
      scale;  // fp8: float [rows / 128][K / 128]. int8: float [rows]. int4: float16 [rows][groups]
  const uint8_t* zero;  // int4: [rows][groups]
  int64_t rows, k;
  int64_t stride;        // between rows of data, in elements (int4: in bytes)
  int64_t scale_stride;  // between rows of scale (and zero), in elements
  int32_t kind;
  int32_t group;  // int4
};

// Fills one expert of `matrix` with the rows of `sources`, one source under the other. Same formats
// are moved as they are; floats are rounded to the matrix's format. Null, or what is wrong.
const char* pack(const Matrix& matrix, int64_t expert, const Source* sources, int count);

}  // namespace fathom
