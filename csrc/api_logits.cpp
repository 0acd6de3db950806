// The C interface of the ops on logits and of small row ops, as api.cpp.
#include <cstring>
#include <vector>

#include "checks.h"
#include "logits.h"
#include "pool.h"
#include "replay.h"
#include "rows.h"

using namespace fathom;

namespace {

constexpr int64_t kMaxVocab = int64_t(1) << 31;
// Rows of small ops that one item takes.
constexpr int64_t kItemRows = 16;

const char* has_kernels() {
  CHECK(ready());
  if (isa()->logits == nullptr || isa()->rows == nullptr)
    return fail("no kernels for logits and rows with %s", isa()->name);
  return nullptr;
}

const char* check_logits(const Logits& in) {
  if (in.num_rows < 0 || (in.num_rows > 0 && in.x == nullptr)) return fail("logits: no rows");
  if (in.vocab < 1 || in.vocab > kMaxVocab) return fail("logits: %lld wide", (long long)in.vocab);
  if (in.num_rows > 1 && in.stride < in.vocab) return fail("logits: rows overlap");
  return nullptr;
}

const char* check_range(const int64_t* values, int64_t count, int64_t end, const char* name) {
  if (count < 0 || (count > 0 && values == nullptr)) return fail("%s: none", name);
  for (int64_t i = 0; i < count; ++i)
    if (values[i] < 0 || values[i] >= end)
      return fail("%s: %lld, wanted 0 .. %lld", name, (long long)values[i], (long long)end - 1);
  return nullptr;
}

const char* check_cells(const Cells& cells, const Logits& in, const char* name) {
  CHECK(check_range(cells.rows, cells.count, in.num_rows, name));
  return check_range(cells.ids, cells.count, in.vocab, name);
}

// Calls body(row) for every row, a few at a time on each thread.
template <class Body>
void for_each_row(int64_t rows, Body&& body) {
  parallel((rows + kItemRows - 1) / kItemRows, [&](int64_t item, int) {
    const int64_t end = (item + 1) * kItemRows;
    for (int64_t row = item * kItemRows; row < end && row < rows; ++row) body(row);
  });
}

}  // namespace

#pragma GCC visibility push(default)
extern "C" {

const char* fathom_largest(const float* x, int64_t stride, int64_t rows, int64_t vocab,
                           float* out) {
  CHECK(has_kernels());
  const Logits logits{x, stride, rows, vocab};
  CHECK(check_logits(logits));
  largest(logits, out);
  return nullptr;
}

const char* fathom_sample(const float* x, int64_t stride, int64_t rows, int64_t vocab,
                          int64_t drawn, const int64_t* drawn_rows, const float* temperature,
                          const int64_t* top_k, const float* top_p, const float* min_p,
                          const double* uniform, int64_t* out) {
  CHECK(has_kernels());
  const Logits logits{x, stride, rows, vocab};
  CHECK(check_logits(logits));
  CHECK(check_range(drawn_rows, drawn, rows, "rows"));
  std::vector<Draw> draws(drawn);
  std::vector<const Draw*> by_row(rows, nullptr);
  for (int64_t i = 0; i < drawn; ++i) {
    if (!(temperature[i] > 0))
      return fail("temperature: %g, wanted over 0", double(temperature[i]));
    draws[i] = {temperature[i], top_k[i], top_p[i], min_p[i], uniform[i]};
    by_row[drawn_rows[i]] = &draws[i];
  }
  const char* failed = sample(logits, by_row.data(), out);
  return failed ? fail("%s", failed) : nullptr;
}

const char* fathom_token_logprobs(const float* x, int64_t stride, int64_t rows, int64_t vocab,
                                  const int64_t* tokens, int64_t num_top, float* chosen,
                                  int64_t* rank, int64_t* top_ids, float* top) {
  CHECK(has_kernels());
  const Logits logits{x, stride, rows, vocab};
  CHECK(check_logits(logits));
  CHECK(check_range(tokens, rows, vocab, "tokens"));
  if (num_top < 0 || num_top > vocab) return fail("top: %lld", (long long)num_top);
  const char* failed = token_logprobs(logits, tokens, {chosen, rank, top_ids, top, num_top});
  return failed ? fail("%s", failed) : nullptr;
}

const char* fathom_mask(float* x, int64_t stride, int64_t rows, int64_t vocab,
                        const uint8_t* allowed, int64_t allowed_stride) {
  CHECK(has_kernels());
  const Logits logits{x, stride, rows, vocab};
  CHECK(check_logits(logits));
  if (rows > 1 && allowed_stride < (vocab + 7) / 8) return fail("allowed: rows overlap");
  mask(x, logits, allowed, allowed_stride);
  return nullptr;
}

const char* fathom_add_biases(float* x, int64_t stride, int64_t rows, int64_t vocab, int64_t count,
                              const int64_t* cell_rows, const int64_t* cell_ids,
                              const float* values) {
  CHECK(has_kernels());
  const Logits logits{x, stride, rows, vocab};
  CHECK(check_logits(logits));
  CHECK(check_cells({cell_rows, cell_ids, count}, logits, "biases"));
  add_biases(x, logits, {cell_rows, cell_ids, count}, values);
  return nullptr;
}

const char* fathom_penalize(float* x, int64_t stride, int64_t rows, int64_t vocab, int64_t count,
                            const int64_t* cell_rows, const int64_t* cell_ids,
                            const int64_t* counts, const float* repetition, const float* presence,
                            const float* frequency) {
  CHECK(has_kernels());
  const Logits logits{x, stride, rows, vocab};
  CHECK(check_logits(logits));
  CHECK(check_cells({cell_rows, cell_ids, count}, logits, "penalties"));
  penalize(x, logits, {cell_rows, cell_ids, count}, {counts, repetition, presence, frequency});
  return nullptr;
}

const char* fathom_route(const void* x, int64_t stride, int64_t rows, const Router* router,
                         int64_t* ids, float* weights) {
  CHECK(has_kernels());
  const Router& r = *router;
  if (rows < 0 || r.width < 1 || r.experts < 1 || (rows > 0 && x == nullptr))
    return fail("x: %lld rows of %lld", (long long)rows, (long long)r.width);
  if (r.per_token < 1 || r.per_token > r.experts)
    return fail("experts_per_token: %lld of %lld", (long long)r.per_token, (long long)r.experts);
  if (r.groups < 1 || r.experts % r.groups || r.groups_per_token < 1 ||
      r.groups_per_token > r.groups)
    return fail("groups: %lld of %lld", (long long)r.groups_per_token, (long long)r.groups);
  if (rows > 1 && stride < r.width) return fail("x: rows overlap");
  if (rows == 0) return nullptr;
  const char* failed = route(r, x, stride, rows, ids, weights);
  return failed ? fail("%s", failed) : nullptr;
}

const char* fathom_embed(const int64_t* ids, int64_t rows, const uint8_t* weight, int64_t num_ids,
                         int64_t row_bytes, int64_t first_id, uint8_t* out) {
  for_each_row(rows, [&](int64_t row) {
    const int64_t id = ids[row] - first_id;
    uint8_t* to = out + row * row_bytes;
    if (id >= 0 && id < num_ids) std::memcpy(to, weight + id * row_bytes, row_bytes);
    else std::memset(to, 0, row_bytes);
  });
  return nullptr;
}

const char* fathom_rope(const uint16_t* x, int64_t token_stride, int64_t head_stride,
                        int64_t tokens, int64_t heads, int64_t half, const float* cos,
                        const float* sin, int is_interleaved, uint16_t* out) {
  CHECK(has_kernels());
  const RowKernels& kernels = *isa()->rows;
  for_each_row(tokens, [&](int64_t token) {
    for (int64_t head = 0; head < heads; ++head)
      kernels.rope(x + token * token_stride + head * head_stride, cos + token * half,
                   sin + token * half, half, is_interleaved,
                   out + (token * heads + head) * 2 * half);
  });
  return nullptr;
}

const char* fathom_silu_mul(const uint16_t* x, int64_t stride, int64_t rows, int64_t width,
                            uint16_t* out) {
  CHECK(has_kernels());
  const RowKernels& kernels = *isa()->rows;
  for_each_row(rows, [&](int64_t row) {
    const uint16_t* gate = x + row * stride;
    kernels.silu_mul(gate, gate + width, width, out + row * width);
  });
  return nullptr;
}

CALLABLE(fathom_route)
CALLABLE(fathom_embed)

}  // extern "C"
#pragma GCC visibility pop
