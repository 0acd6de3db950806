// Ops on rows of logits, and the kernels that they need of each instruction set.
#pragma once

#include <cstdint>

namespace fathom {

// A logit and its token as one integer: in ascending order of these, logits descend and equal ones
// go by token. Zeros of both signs are equal; NaN comes last.
typedef uint64_t Key;

// What a logit weighs in a draw: e^((logit - best) * inverse_t), and nothing below `least`.
struct Weighing {
  float best;        // largest logit of the row
  double inverse_t;  // 1 / temperature
  double least;
  float from;  // logits below it weigh nothing, or do not matter: they may be passed over
};

// Logits fall into bins by their distance from the best, times a scale; the last takes the rest.
constexpr int kBins = 1024;
struct Bin {
  double sum;     // of weights
  int64_t count;  // NaN too, which only the last can hold
};

// Logits in a group share a cache line's lanes: lane l of group g covers 8 of them, 16 apart.
constexpr int kGroup = 128;
constexpr int64_t num_maxima(int64_t size) { return (size + kGroup - 1) / kGroup * 16; }

// NaN counts as less than everything unless said otherwise; sizes are free.
struct LogitKernels {
  // The largest value; NaN where one is NaN.
  float (*largest)(const float* row, int64_t size);
  // The first place of the largest value.
  int64_t (*argmax)(const float* row, int64_t size);
  // Writes the largest of each lane of each group, num_maxima(size) of them; gives the largest.
  float (*maxima)(const float* row, int64_t size, float* to);
  // Keys of all values over `threshold` and of the first `max_equal` that equal it; `maxima` as
  // above.
  int64_t (*collect)(const float* row, int64_t size, const float* maxima, float threshold,
                     int64_t max_equal, Key* to);
  // Keys of the values of one bin, in order of their place.
  int64_t (*collect_bin)(const float* row, int64_t size, float best, float scale, int bin, Key* to);
  // The sum of weights, in an order that depends on `size` only.
  double (*sum_weights)(const float* row, int64_t size, const Weighing& by);
  // Writes the weights of n values of keys.
  void (*weigh)(const Key* keys, int64_t n, const Weighing& by, double* to);
  // Adds to bins, which are zero before; logits below by.from may be missing.
  void (*fill_bins)(const float* row, int64_t size, const Weighing& by, float scale, Bin* bins);
  // How many values are over values[place], or equal and before it.
  int64_t (*count_before)(const float* row, int64_t size, int64_t place);
  // -inf where the bit is 0, least significant first.
  void (*mask)(float* row, int64_t size, const uint8_t* bits);
};

// How one row is sampled; `uniform` is in [0, 1).
struct Draw {
  float temperature;
  int64_t top_k;  // 0 for all
  float top_p, min_p;
  double uniform;
};

struct Logits {
  const float* x;
  int64_t stride, num_rows, vocab;
};

void largest(const Logits& logits, float* out);

// `draws`: for each row, or null for its largest logit. Gives null, or what failed.
const char* sample(const Logits& logits, const Draw* const* draws, int64_t* out);

struct LogprobsOut {
  float* chosen;     // [rows]
  int64_t* rank;     // [rows]
  int64_t* top_ids;  // [rows][top]
  float* top;
  int64_t num_top;
};
const char* token_logprobs(const Logits& logits, const int64_t* tokens, const LogprobsOut& out);

// Single cells of logits.
struct Cells {
  const int64_t *rows, *ids;  // [count]
  int64_t count;
};
struct PenaltyRows {
  const int64_t* counts;                           // [count of cells]
  const float *repetition, *presence, *frequency;  // [rows]
};

// These write to the logits. `allowed`: packed bits, rows `stride` bytes apart.
void mask(float* x, const Logits& logits, const uint8_t* allowed, int64_t stride);
void add_biases(float* x, const Logits& logits, const Cells& cells, const float* values);
void penalize(float* x, const Logits& logits, const Cells& cells, const PenaltyRows& by);

}  // namespace fathom
