// Which experts take each token.
#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include "isa.h"
#include "logits.h"
#include "ops.h"
#include "pool.h"
#include "rows.h"

namespace fathom {
namespace {

constexpr float kTaken = std::numeric_limits<float>::quiet_NaN();
constexpr float kLowest = -std::numeric_limits<float>::infinity();
// Tokens and experts of one item: its weights and rows stay in the second-level cache.
constexpr int64_t kItemRows = 24, kItemExperts = 32;
// Products below which waking other threads costs more than it saves.
constexpr int64_t kAlone = 1 << 19;
constexpr int64_t kMaxExperts = 1024;

// The largest of `size` values from `from`, after which it is taken; values hold no other NaN.
int64_t take_best(float* from, int64_t size) {
  const int64_t best = isa()->logits->argmax(from, size);
  from[best] = kTaken;
  return best;
}

float group_score(const float* choice, int64_t size, GroupRank rank) {
  float best = kLowest, second = kLowest;
  for (int64_t i = 0; i < size; ++i) {
    const float value = choice[i];
    if (value > best) second = std::exchange(best, value);
    else if (value > second) second = value;
  }
  return rank == kBestTwoOfGroup && size > 1 ? best + second : best;
}

void limit_groups(const Router& router, float* choice) {
  float scores[kMaxExperts];
  const int64_t size = router.experts / router.groups;
  for (int64_t g = 0; g < router.groups; ++g)
    scores[g] = group_score(choice + g * size, size, router.group_rank);
  for (int64_t i = 0; i < router.groups_per_token; ++i) take_best(scores, router.groups);
  for (int64_t g = 0; g < router.groups; ++g)
    if (scores[g] == scores[g]) std::fill_n(choice + g * size, size, kLowest);
}

void choose(const Router& router, float* scores, int64_t* ids, float* weights) {
  alignas(64) float choice[kMaxExperts];
  if (router.is_softmax) isa()->rows->softmax(scores, router.experts);
  else isa()->rows->sigmoid(scores, router.experts);
  for (int64_t e = 0; e < router.experts; ++e) {
    const float value = router.bias == nullptr ? scores[e] : scores[e] + router.bias[e];
    choice[e] = value == value ? value : kLowest;
  }
  if (router.group_rank != kNoGroups && router.groups > 1) limit_groups(router, choice);
  float total = 0;
  for (int64_t i = 0; i < router.per_token; ++i) {
    ids[i] = take_best(choice, router.experts);
    weights[i] = scores[ids[i]];
    total += weights[i];
  }
  for (int64_t i = 0; i < router.per_token; ++i) {
    if (router.is_normalized) weights[i] = weights[i] / (total + 1e-20f);
    weights[i] *= router.scale;
  }
}

}  // namespace

const char* route(const Router& router, const void* x, int64_t stride, int64_t rows, int64_t* ids,
                  float* weights) {
  if (router.experts > kMaxExperts) return "more experts than 1024";
  const int64_t padded = (router.experts + 15) / 16 * 16;
  float* scores = reinterpret_cast<float*>(arena(kArenaSums, 4 * rows * padded));
  if (scores == nullptr) return "no memory for scores";
  const Isa& isa_ = *isa();
  const auto dot = router.is_wide ? isa_.rows->dot_float : isa_.rows->dot_bf16;
  const int64_t bytes = router.is_wide ? 4 : 2;
  const auto multiply = [&](int64_t row, int64_t num_rows, int64_t expert, int64_t num_experts) {
    dot({static_cast<const uint8_t*>(x) + row * stride * bytes, stride, num_rows,
         static_cast<const uint8_t*>(router.weight) + expert * router.width * bytes, num_experts,
         router.width, scores + row * padded + expert, padded});
  };
  auto finish = [&](int64_t row, int) {
    choose(router, scores + row * padded, ids + row * router.per_token,
           weights + row * router.per_token);
  };
  if (rows * router.experts * router.width <= kAlone) {
    multiply(0, rows, 0, router.experts);
    for (int64_t row = 0; row < rows; ++row) finish(row, 0);
    return nullptr;
  }
  const int64_t parts = (router.experts + kItemExperts - 1) / kItemExperts;
  const int64_t chunks = (rows + kItemRows - 1) / kItemRows;
  parallel(parts * chunks, [&](int64_t item, int) {
    const int64_t row = item / parts * kItemRows, expert = item % parts * kItemExperts;
    multiply(row, std::min(kItemRows, rows - row), expert,
             std::min(kItemExperts, router.experts - expert));
  });
  parallel(rows, finish);
  return nullptr;
}

}  // namespace fathom
