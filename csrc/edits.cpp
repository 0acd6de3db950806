// Edits of logits before sampling.
#include "isa.h"
#include "logits.h"
#include "pool.h"

namespace fathom {

void mask(float* x, const Logits& logits, const uint8_t* allowed, int64_t stride) {
  parallel(logits.num_rows, [&](int64_t row, int) {
    isa()->logits->mask(x + row * logits.stride, logits.vocab, allowed + row * stride);
  });
}

void add_biases(float* x, const Logits& logits, const Cells& cells, const float* values) {
  for (int64_t i = 0; i < cells.count; ++i)
    x[cells.rows[i] * logits.stride + cells.ids[i]] += values[i];
}

void penalize(float* x, const Logits& logits, const Cells& cells, const PenaltyRows& by) {
  for (int64_t i = 0; i < cells.count; ++i) {
    const int64_t row = cells.rows[i];
    float& cell = x[row * logits.stride + cells.ids[i]];
    cell = cell > 0 ? cell / by.repetition[row] : cell * by.repetition[row];
    cell -= by.frequency[row] * float(by.counts[i]);
    if (by.counts[i] > 0) cell -= by.presence[row];
  }
}

}  // namespace fathom
