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
  kSourceInt4 = 5,
  kSourceAwq = 6,
  kSourceGptq = 7,
  kSourceGptqV2 = 8,
  kNumSourceKinds = 9
};

// Some rows of a matrix [N, K]. Mirrored in ops/backends/cpu/library.py.
//
//   kind     data [rows][K]             scale                             zero
//   floats   as they are
//   fp8      e4m3                       float [rows / 128][K / 128]
//   int8     int8                       float [rows]
//   int4     uint8 [rows][K / 2]        float16 [rows][K / group]         uint8 [rows][K / group]
//   awq      uint32 [K][rows / 8]       float16 [K / group][rows]         uint32 [K / group][rows /
//   8] gptq     uint32 [K / 8][rows]       the same                          the same
//
// In the words of the last two (spec/stored.py) a value has four bits. From the lowest up they are
// of values that follow each other, but for awq of outputs 0 2 4 6 1 3 5 7; gptq's zero points are
// stored minus one, gptq_v2's as they are. Rows come in eights.
struct Source {
  const void* data;
  const void* scale;
  const void* zero;
  int64_t rows, k;
  int64_t stride;        // from one row of `data` to the next, in its elements
  int64_t scale_stride;  // the same of `scale`
  int64_t zero_stride;   // the same of `zero`
  int32_t kind;
  int32_t group;  // int4, awq, gptq: inputs that share a scale

  bool is_words() const { return kind >= kSourceAwq; }
};

// Fills one expert of `matrix` with the rows of `sources`, one source under the other. Same formats
// are moved as they are; floats are rounded to the matrix's format. Null, or what is wrong.
const char* pack(const Matrix& matrix, int64_t expert, const Source* sources, int count);

}  // namespace fathom
