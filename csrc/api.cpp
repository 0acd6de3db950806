// The C interface: checks every argument before any memory is touched. Each call gives null, or a
// message that stands until the next call of this thread.
#include <cstdlib>

#include "attend.h"
#include "checks.h"
#include "memory.h"
#include "ops.h"
#include "pack.h"
#include "replay.h"

using namespace fathom;

namespace {

const char* check_matrix(const Matrix* m, const char* name) {
  if (m == nullptr || m->data == nullptr) return fail("%s: no matrix", name);
  if (m->format < 0 || m->format >= kNumFormats) return fail("%s: format %d", name, m->format);
  if (m->n < 1 || m->k < 1 || m->experts < 1 || m->n > (1 << 30) || m->k > (1 << 30))
    return fail("%s: %d matrices of %lld x %lld", name, m->experts, (long long)m->n,
                (long long)m->k);
  if (m->is_gated && m->n % 2) return fail("%s: gate and up of %lld rows", name, (long long)m->n);
  if (m->format == kInt4 && m->group != 32 && m->group != 64 && m->group != 128)
    return fail("%s: groups of %d, wanted 32, 64 or 128", name, m->group);
  if (m->format == kInt4 && m->k % m->group)
    return fail("%s: %lld columns are not whole groups of %d", name, (long long)m->k, m->group);
  if (!is_aligned(m->data, 64)) return fail("%s: not aligned to 64 bytes", name);
  if (m->num_bytes < m->experts * m->expert_bytes())
    return fail("%s: %lld bytes, wanted %lld", name, (long long)m->num_bytes,
                (long long)(m->experts * m->expert_bytes()));
  return nullptr;
}

const char* check_rows(const Rows& in, int64_t width, const char* name) {
  if (in.num_rows < 0 || (in.num_rows > 0 && in.x == nullptr)) return fail("%s: no rows", name);
  if (in.width != width)
    return fail("%s: rows of %lld values, wanted %lld", name, (long long)in.width,
                (long long)width);
  if (in.num_rows > 1 && in.stride < width)
    return fail("%s: rows %lld apart overlap", name, (long long)in.stride);
  if (in.residual != nullptr && in.num_rows > 1 && in.residual_stride < width)
    return fail("%s: rows of the residual overlap", name);
  return nullptr;
}

const char* check_output(const Output& out, int64_t rows, int64_t width) {
  if (rows > 0 && out.to == nullptr) return fail("out: no memory");
  if (rows > 1 && out.stride < width) return fail("out: rows overlap");
  return nullptr;
}

const char* check_cache(const Cache& cache) {
  if (cache.data == nullptr || cache.pages < 1 || cache.page_size < 1)
    return fail("cache: no pages");
  if (cache.format != kKvBf16 && cache.format != kKvFp8)
    return fail("cache: format %d", cache.format);
  if (cache.rank < 2 || cache.rank % 2 || cache.rope < 2 || cache.rope % 2)
    return fail("cache: %d latents and %d rotated values, wanted even numbers", cache.rank,
                cache.rope);
  return nullptr;
}

const char* check_batch(const Batch& batch, const Cache& cache) {
  if (!batch.query_starts || !batch.context_lens || !batch.page_table)
    return fail("batch: no memory");
  if (batch.query_starts[0] != 0 || batch.query_starts[batch.sequences] != batch.tokens)
    return fail("query_starts: not from 0 to %lld", (long long)batch.tokens);
  for (int64_t s = 0; s < batch.sequences; ++s) {
    const int64_t queries = batch.query_starts[s + 1] - batch.query_starts[s];
    const int64_t length = batch.context_lens[s];
    const int64_t pages = (length + cache.page_size - 1) / cache.page_size;
    if (queries < 0 || length < queries || pages > batch.table_width)
      return fail("sequence %lld: %lld queries in a context of %lld on %lld pages", (long long)s,
                  (long long)queries, (long long)length, (long long)batch.table_width);
    for (int64_t p = 0; p < pages; ++p) {
      const int64_t page = batch.page_table[s * batch.table_width + p];
      if (page < 0 || page >= cache.pages)
        return fail("page_table: page %lld of %lld", (long long)page, (long long)cache.pages);
    }
  }
  return nullptr;
}

const char* check_source(const Source& s, int index) {
  if (s.data == nullptr || s.rows < 1) return fail("source %d: no rows", index);
  if (s.kind < 0 || s.kind >= kNumSourceKinds) return fail("source %d: kind %d", index, s.kind);
  if (s.kind >= kSourceFp8 && s.scale == nullptr) return fail("source %d: no scales", index);
  if (s.kind >= kSourceInt4 && s.zero == nullptr) return fail("source %d: no zero points", index);
  if (!s.is_words()) return nullptr;
  const int64_t width = s.kind == kSourceAwq ? s.rows / 8 : s.rows;
  if (s.stride < width || s.scale_stride < s.rows || s.zero_stride < s.rows / 8)
    return fail("source %d: rows that overlap", index);
  return nullptr;
}

}  // namespace

namespace fathom {

namespace {

struct {
  uint8_t* memory;
  int64_t bytes, asked;
} arenas[kNumArenas];

uint8_t* make_arena(int purpose, int64_t bytes) {
  auto& own = arenas[purpose];
  std::free(own.memory);
  const int64_t size = round_up(std::max<int64_t>(bytes, 4096), 4096);
  own.memory = static_cast<uint8_t*>(std::aligned_alloc(4096, size));
  own.bytes = own.memory == nullptr ? 0 : size;
  return own.memory;
}

}  // namespace

uint8_t* arena(Arena purpose, int64_t bytes) {
  auto& own = arenas[purpose];
  own.asked = std::max(own.asked, bytes);
  if (own.bytes < bytes || own.memory == nullptr) return make_arena(purpose, bytes + bytes / 4);
  return own.memory;
}

}  // namespace fathom

#pragma GCC visibility push(default)
extern "C" {

const char* fathom_isa() { return isa() == nullptr ? "" : isa()->name; }
int fathom_choose_isa(const char* name) { return choose_isa(name); }
int fathom_start_threads(int threads, const int* cpus) { return start_pool(threads, cpus); }
void fathom_pin_caller() { pin_caller(); }
int fathom_num_threads() { return pool_size(); }
int64_t fathom_busy_ns() { return busy_nanoseconds(); }

// Sizes of the arenas, then of a thread's scratch: made anew, so that no step makes them grow.
const char* fathom_reserve(const int64_t* bytes) {
  bool has_memory = reserve_scratch(size_t(bytes[kNumArenas]));
  for (int i = 0; i < kNumArenas; ++i) {
    arenas[i].asked = 0;
    has_memory &= make_arena(i, bytes[i]) != nullptr;
  }
  return has_memory ? nullptr : fail("no memory for the buffers of a step");
}

// Of each arena, then of scratch over all threads: bytes held, and the most asked for at once.
void fathom_buffers(int64_t* held, int64_t* asked) {
  for (int i = 0; i < kNumArenas; ++i) {
    held[i] = arenas[i].bytes;
    asked[i] = arenas[i].asked;
  }
  scratch_bytes(&held[kNumArenas], &asked[kNumArenas]);
}

void fathom_place_weights(void* at, int64_t bytes) { place_weights(at, size_t(bytes)); }
int64_t fathom_matrix_bytes(const Matrix* m) { return m->experts * m->expert_bytes(); }

const char* fathom_pack(const Matrix* matrix, int64_t expert, const Source* sources, int count) {
  CHECK(ready());
  CHECK(check_matrix(matrix, "matrix"));
  if (expert < 0 || expert >= matrix->experts) return fail("expert %lld", (long long)expert);
  if (count < 1) return fail("no sources");
  for (int i = 0; i < count; ++i) CHECK(check_source(sources[i], i));
  if (const char* failed = pack(*matrix, expert, sources, count)) return fail("%s", failed);
  return nullptr;
}

const char* fathom_linear(const Matrix* matrix, int64_t expert, const uint16_t* x, int64_t stride,
                          int64_t rows, int64_t width, const uint16_t* norm, float eps,
                          uint16_t* residual, int64_t residual_stride, void* out,
                          int64_t out_stride, int is_wide) {
  CHECK(ready());
  CHECK(check_matrix(matrix, "weight"));
  if (matrix->is_gated) return fail("weight: packed for an MLP");
  if (expert < 0 || expert >= matrix->experts) return fail("expert %lld", (long long)expert);
  const Rows in{x, stride, rows, width, residual, residual_stride, norm, eps};
  CHECK(check_rows(in, matrix->k, "x"));
  const Output output{out, out_stride, is_wide != 0, expert};
  CHECK(check_output(output, rows, matrix->n));
  if (const char* failed = linear(*matrix, in, output)) return fail("%s", failed);
  return nullptr;
}

const char* fathom_rms_norm(const uint16_t* x, int64_t stride, int64_t rows, int64_t width,
                            const uint16_t* norm, float eps, uint16_t* residual,
                            int64_t residual_stride, uint16_t* out, int64_t out_stride) {
  CHECK(ready());
  if (norm == nullptr) return fail("weight: none");
  const Rows in{x, stride, rows, width, residual, residual_stride, norm, eps};
  CHECK(check_rows(in, width, "x"));
  CHECK(check_output({out, out_stride, false, 0}, rows, width));
  parallel(rows, [&](int64_t row, int) { isa()->norm(in.at(row), out + row * out_stride); });
  return nullptr;
}

const char* fathom_experts(const Matrix* gate_up, const Matrix* down, const int64_t* ids,
                           const float* weights, int64_t per_row, const Matrix* shared_gate_up,
                           const Matrix* shared_down, const uint16_t* x, int64_t stride,
                           int64_t rows, int64_t width, uint16_t* out, int64_t out_stride) {
  CHECK(ready());
  if (gate_up == nullptr && shared_gate_up == nullptr) return fail("experts: none");
  const Matrix* pairs[2][2] = {{gate_up, down}, {shared_gate_up, shared_down}};
  for (auto& pair : pairs) {
    if (pair[0] == nullptr) continue;
    CHECK(check_matrix(pair[0], "gate_up"));
    CHECK(check_matrix(pair[1], "down"));
    if (!pair[0]->is_gated || pair[1]->is_gated) return fail("gate_up: not packed for an MLP");
    if (pair[0]->experts != pair[1]->experts || pair[0]->n != 2 * pair[1]->k ||
        pair[0]->k != width || pair[1]->n != width)
      return fail("gate_up and down: shapes that do not fit each other and rows of %lld",
                  (long long)width);
  }
  const Rows in{x, stride, rows, width, nullptr, 0, nullptr, 0.0f};
  CHECK(check_rows(in, width, "x"));
  const Output output{out, out_stride, false, 0};
  CHECK(check_output(output, rows, width));
  if (gate_up != nullptr) {
    if (rows > 0 && (ids == nullptr || weights == nullptr || per_row < 1))
      return fail("expert_ids: none");
    for (int64_t i = 0; i < rows * per_row; ++i)
      if (ids[i] < 0 || ids[i] >= gate_up->experts)
        return fail("expert_ids: %lld of %d experts", (long long)ids[i], gate_up->experts);
  }
  if (rows == 0) return nullptr;
  const char* failed =
      experts({gate_up, down}, {ids, weights, per_row}, {shared_gate_up, shared_down}, in, output);
  return failed ? fail("%s", failed) : nullptr;
}

int64_t fathom_cell_bytes(int32_t format, int32_t rank, int32_t rope) {
  return Cache{nullptr, 0, 1, format, rank, rope}.cell_bytes();
}

const char* fathom_mla_write(const Cache* cache, const int64_t* slots, int64_t tokens,
                             const uint16_t* latent, const uint16_t* key, int64_t stride,
                             const uint16_t* norm, float eps, const float* cos, const float* sin,
                             int is_interleaved) {
  CHECK(ready());
  CHECK(check_cache(*cache));
  if (tokens == 0) return nullptr;
  if (!slots || !latent || !key || !norm || !cos || !sin) return fail("mla_write: no memory");
  for (int64_t i = 0; i < tokens; ++i)
    if (slots[i] < 0 || slots[i] >= cache->pages * cache->page_size)
      return fail("slots: %lld of %lld", (long long)slots[i],
                  (long long)(cache->pages * cache->page_size));
  const char* failed = mla_write(
      {latent, key, stride, norm, eps, slots, tokens, *cache, {cos, sin, is_interleaved != 0}});
  return failed ? fail("%s", failed) : nullptr;
}

const char* fathom_mla_attend(const uint16_t* q, int64_t q_stride, const Matrix* absorb,
                              const Matrix* expand, const Cache* cache, const Batch* batch,
                              const float* cos, const float* sin, int is_interleaved, float scale,
                              uint16_t* out) {
  CHECK(ready());
  CHECK(check_cache(*cache));
  CHECK(check_matrix(absorb, "kv_b (keys)"));
  CHECK(check_matrix(expand, "kv_b (values)"));
  if (batch->tokens == 0) return nullptr;
  if (!q || !cos || !sin || !out) return fail("mla_attend: no memory");
  if (absorb->n != cache->rank || expand->k != cache->rank || absorb->experts != expand->experts ||
      absorb->is_gated || expand->is_gated)
    return fail("kv_b: not of a cache with %d latents", cache->rank);
  if (q_stride < absorb->experts * (absorb->k + cache->rope)) return fail("q: rows overlap");
  CHECK(check_batch(*batch, *cache));
  const char* failed = mla_attend(
      {q, q_stride, absorb, expand, *cache, *batch, {cos, sin, is_interleaved != 0}, scale, out});
  return failed ? fail("%s", failed) : nullptr;
}

CALLABLE(fathom_linear)
CALLABLE(fathom_rms_norm)
CALLABLE(fathom_experts)
CALLABLE(fathom_mla_write)
CALLABLE(fathom_mla_attend)

// One call after the other, up to one that fails.
const char* fathom_replay(const Call* calls, int64_t count) {
  for (int64_t i = 0; i < count; ++i) CHECK(calls[i].run(calls[i].arguments));
  return nullptr;
}

}  // extern "C"
#pragma GCC visibility pop
