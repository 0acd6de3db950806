// Sampling and log-probabilities without sorting a vocabulary: only the head that matters is
// sorted.
//
// The k-th largest of the maxima of disjoint groups bounds the k-th largest value from below, so
// one pass over a row and a few maxima find the k best. Where a draw needs more than such a head,
// the row falls into bins by value, and only the bin that holds the wanted token is sorted.
#include "logits.h"

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <utility>

#include "isa.h"
#include "key.h"
#include "pool.h"

namespace fathom {
namespace {

constexpr int64_t kHead = 128;        // the best tokens, which most draws are among
constexpr int64_t kLargeHead = 1024;  // a top_k of so many is sorted outright
constexpr int64_t kRadixFrom = 512;   // keys from which radix sort pays
// Weights below e^-45 of the best are counted in one bin where nothing else bounds them.
constexpr double kLeastLog = -45;
// So near to 1, the draw is decided by the rounding of the running sum: it is run as it is defined.
constexpr double kLastUniform = 1 - 1e-9;
constexpr int kMaxLevels = 5;

// One row, and memory for its keys.
class Row {
 public:
  static int64_t bytes(int64_t vocab) {
    return 8 * (3 * vocab + 16) + int64_t(sizeof(Bin)) * kBins + 4 * 2 * maxima_size(vocab);
  }

  Row(const float* x, int64_t vocab, void* memory)
      : x_(x), vocab_(vocab), kernels_(*isa()->logits) {
    maxima_ = static_cast<float*>(memory);
    bins_ = reinterpret_cast<Bin*>(maxima_ + 2 * maxima_size(vocab));
    keys_ = reinterpret_cast<Key*>(bins_ + kBins);
    other_keys_ = keys_ + vocab + 8;
    weights_ = reinterpret_cast<double*>(other_keys_ + vocab);
    best_ = kernels_.maxima(x, vocab, maxima_);
  }

  float best() const { return best_; }
  const Key* keys() const { return keys_; }
  int64_t draw(const Draw& draw);
  // Brings the keys of the k best to the front, in order; k <= vocab.
  void find_best(int64_t k);

 private:
  struct Place {
    int64_t token, count;  // tokens up to and with this one
    double sum;            // of their weights
  };
  enum Border { kReaches, kExceeds };

  static int64_t maxima_size(int64_t vocab) {
    int64_t total = 0;
    for (int level = 0; level < kMaxLevels; ++level) total += vocab = num_maxima(vocab);
    return total;
  }
  void take_all();
  float threshold(int64_t k);
  void sort_best(int64_t n, int64_t k);
  void radix_sort(int64_t n);
  int64_t draw_head(const Draw& draw, int64_t n, double total, bool is_whole) const;
  int64_t draw_binned(const Draw& draw, int64_t k, Weighing by, double total);
  Place find(Border border, double limit, int64_t max_count, const Weighing& by, float scale);

  const float* x_;
  int64_t vocab_;
  const LogitKernels& kernels_;
  float* maxima_;
  Bin* bins_;
  Key *keys_, *other_keys_;
  double* weights_;
  float best_;
};

void Row::take_all() {
  for (int64_t i = 0; i < vocab_; ++i) keys_[i] = key_of(x_[i], i);
}

// At least k values are no less than this. Maxima of maxima serve as long as they are many.
float Row::threshold(int64_t k) {
  float* level = maxima_;
  int64_t size = num_maxima(vocab_);
  for (int i = 1; i < kMaxLevels && num_maxima(size) >= k + k / 2; ++i) {
    kernels_.maxima(level, size, level + size);
    level += size;
    size = num_maxima(size);
  }
  float* copy = maxima_ + maxima_size(vocab_);
  std::copy(level, level + size, copy);
  std::nth_element(copy, copy + (k - 1), copy + size, [](float a, float b) { return a > b; });
  return copy[k - 1];
}

void Row::find_best(int64_t k) {
  int64_t found = 0;
  if (k < 1) return;
  if (2 * k <= num_maxima(vocab_)) {
    const float least = threshold(k);
    found = kernels_.collect(x_, vocab_, maxima_, least, k, keys_);
  }
  if (found < k) {  // many are wanted, or some are NaN
    take_all();
    found = vocab_;
  }
  sort_best(found, k);
}

// Sorts so that the first k of n are in place; the keys come in the order of their tokens.
void Row::sort_best(int64_t n, int64_t k) {
  if (k >= kRadixFrom) return radix_sort(n);
  if (k < n) std::nth_element(keys_, keys_ + k, keys_ + n);
  std::sort(keys_, keys_ + k);
}

// By the logits alone, 11 bits at a time: tokens of equal ones keep their order.
void Row::radix_sort(int64_t n) {
  constexpr int kBits = 11, kSize = 1 << kBits;
  for (int shift = 32; shift < 64; shift += kBits) {
    int64_t starts[kSize] = {};
    for (int64_t i = 0; i < n; ++i) ++starts[keys_[i] >> shift & (kSize - 1)];
    int64_t start = 0;
    for (int64_t& at : starts) start += std::exchange(at, start);
    for (int64_t i = 0; i < n; ++i)
      other_keys_[starts[keys_[i] >> shift & (kSize - 1)]++] = keys_[i];
    std::swap(keys_, other_keys_);
  }
}

// No logit below this weighs more than e^log_weight of the best.
float lower_bound(float best, float temperature, double log_weight) {
  const double bound = best + double(temperature) * (log_weight - 1e-6);
  return std::nextafter(float(std::max(bound, -double(FLT_MAX))), -HUGE_VALF);
}

int64_t Row::draw(const Draw& draw) {
  if (!std::isfinite(best_)) return kernels_.argmax(x_, vocab_);
  const double least_log = draw.min_p > 0 ? std::log(double(draw.min_p)) : -701;
  const Weighing by{best_, 1.0 / double(draw.temperature), double(draw.min_p),
                    lower_bound(best_, draw.temperature, least_log)};
  const bool is_cut = draw.top_k > 0 && draw.top_k < vocab_;
  const int64_t k = is_cut ? draw.top_k : vocab_;
  if (k <= kLargeHead || draw.uniform > kLastUniform) {
    find_best(k);
    kernels_.weigh(keys_, k, by, weights_);
    double total = 0;
    for (int64_t i = 0; i < k; ++i) total += weights_[i];
    return draw_head(draw, k, total, true);
  }
  double total = 0;
  if (!is_cut) {
    total = kernels_.sum_weights(x_, vocab_, by);
    for (const int64_t head : {kHead, kLargeHead}) {
      find_best(head);
      kernels_.weigh(keys_, head, by, weights_);
      const int64_t token = draw_head(draw, head, total, false);
      if (token >= 0) return token;
    }
  }
  return draw_binned(draw, k, by, total);
}

// The token, from the n best; -1 where it is not among them, which cannot be of a whole.
int64_t Row::draw_head(const Draw& draw, int64_t n, double total, bool is_whole) const {
  int64_t kept = n;
  double share = total;
  if (draw.top_p < 1.0f) {
    const double limit = double(draw.top_p) * total;
    double sum = 0;
    for (kept = 0; kept < n;) {
      sum += weights_[kept++];
      if (sum >= limit) break;
    }
    if (sum < limit && !is_whole) return -1;
    share = sum;
    is_whole = true;
  }
  const double target = draw.uniform * share;
  double sum = 0;
  int64_t last = 0;
  for (int64_t i = 0; i < kept; ++i) {
    sum += weights_[i];
    if (sum > target) return token_of(keys_[i]);
    if (weights_[i] > 0) last = i;
  }
  return is_whole ? token_of(keys_[last]) : -1;
}

// `total`: of all weights, where k is the vocabulary.
int64_t Row::draw_binned(const Draw& draw, int64_t k, Weighing by, double total) {
  double least_log = kLeastLog;
  if (k == vocab_) {
    // All that weigh less than a vocabulary-th of what lies beyond the wanted token come after it.
    const double beyond = total * (1 - (draw.top_p < 1.0f ? double(draw.top_p) : draw.uniform));
    least_log = std::log(beyond / double(2 * vocab_));
    by.from = std::max(by.from, lower_bound(by.best, draw.temperature, least_log));
  }
  const double width = -least_log * double(draw.temperature);
  const float scale = float(std::min(kBins / width, double(FLT_MAX)));
  std::fill(bins_, bins_ + kBins, Bin{});
  kernels_.fill_bins(x_, vocab_, by, scale, bins_);
  double share = k < vocab_ ? find(kReaches, HUGE_VAL, k, by, scale).sum : total;
  if (draw.top_p < 1.0f) {
    const Place last = find(kReaches, double(draw.top_p) * share, k, by, scale);
    share = last.sum;
    k = last.count;
  }
  return find(kExceeds, draw.uniform * share, k, by, scale).token;
}

// The first token at which the sum of weights reaches or exceeds `limit`. Where max_count tokens do
// not, the last of these that weighs anything.
Row::Place Row::find(Border border, double limit, int64_t max_count, const Weighing& by,
                     float scale) {
  const auto is_over = [&](double sum) { return border == kReaches ? sum >= limit : sum > limit; };
  Place at{0, 0, 0};
  for (int bin = 0; bin < kBins && at.count < max_count; ++bin) {
    const double sum = at.sum + bins_[bin].sum;
    const int64_t count = at.count + bins_[bin].count;
    const bool is_last = bin == kBins - 1;
    if (!is_over(sum) && count < max_count && !is_last) {
      at.sum = sum;
      at.count = count;
      continue;
    }
    const int64_t found = kernels_.collect_bin(x_, vocab_, by.best, scale, bin, keys_);
    sort_best(found, found);
    kernels_.weigh(keys_, found, by, weights_);
    for (int64_t i = 0; i < found && at.count < max_count; ++i) {
      at.sum += weights_[i];
      ++at.count;
      if (weights_[i] > 0) at.token = token_of(keys_[i]);
      if (is_over(at.sum)) return at;
    }
  }
  return at;
}

// Calls body(row, memory) for every row, each with `bytes` of memory of its own.
template <class Body>
const char* for_rows(int64_t rows, int64_t bytes, Body&& body) {
  for (int thread = 0; thread < pool_size(); ++thread)
    if (scratch(thread, bytes) == nullptr) return "no memory for keys of logits";
  parallel(rows, [&](int64_t row, int thread) { body(row, scratch(thread, bytes)); });
  return nullptr;
}

}  // namespace

void largest(const Logits& logits, float* out) {
  parallel(logits.num_rows, [&](int64_t row, int) {
    out[row] = isa()->logits->largest(logits.x + row * logits.stride, logits.vocab);
  });
}

const char* sample(const Logits& logits, const Draw* const* draws, int64_t* out) {
  return for_rows(logits.num_rows, Row::bytes(logits.vocab), [&](int64_t row, void* memory) {
    const float* x = logits.x + row * logits.stride;
    if (draws[row] == nullptr) out[row] = isa()->logits->argmax(x, logits.vocab);
    else out[row] = Row(x, logits.vocab, memory).draw(*draws[row]);
  });
}

const char* token_logprobs(const Logits& logits, const int64_t* tokens, const LogprobsOut& out) {
  return for_rows(logits.num_rows, Row::bytes(logits.vocab), [&](int64_t row, void* memory) {
    const LogitKernels& kernels = *isa()->logits;
    const float* x = logits.x + row * logits.stride;
    const int64_t vocab = logits.vocab;
    const float best = kernels.largest(x, vocab);
    double total = best;
    if (std::isfinite(best))
      total += std::log(kernels.sum_weights(x, vocab, {best, 1.0, 0.0, -HUGE_VALF}));
    out.chosen[row] = float(double(x[tokens[row]]) - total);
    out.rank[row] = 1 + kernels.count_before(x, vocab, tokens[row]);
    if (out.num_top == 0) return;
    Row sorted(x, vocab, memory);
    sorted.find_best(out.num_top);
    for (int64_t i = 0; i < out.num_top; ++i) {
      const int64_t token = token_of(sorted.keys()[i]);
      out.top_ids[row * out.num_top + i] = token;
      out.top[row * out.num_top + i] = float(double(x[token]) - total);
    }
  });
}

}  // namespace fathom
