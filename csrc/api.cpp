// The C interface: checks every argument before any memory is touched. Each call gives null, or a
// message that stands until the next call of this thread.
#include <cstdlib>

#include "checks.h"
#include "ops.h"
#include "pack.h"

using namespace fathom;

namespace {

const char* check_matrix(const Matrix* m, const char* name) {
  if (m == nullptr || m->data == nullptr) return fail("%s: no matrix", name);
  if (m->format < 0 || m->format >= kNumFormats) return fail("%s: format %d", name, m->format);
  if (m->n < 1 || m->k < 1 || m->experts < 1 || m->n > (1 << 30) || m->k > (1 << 30))
    return fail("%s: %d matrices of %lld x %lld", name, m->experts, (long long)m->n, (long long)m->k);
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
    return fail("%s: rows of %lld values, wanted %lld", name, (long long)in.width, (long long)width);
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

}  // namespace

namespace fathom {

uint8_t* arena(Arena purpose, int64_t bytes) {
  static struct { uint8_t* memory; int64_t bytes; } arenas[kNumArenas];
  auto& own = arenas[purpose];
  if (own.bytes < bytes || own.memory == nullptr) {
    std::free(own.memory);
    const int64_t size = round_up(std::max<int64_t>(bytes + bytes / 4, 4096), 4096);
    own.memory = static_cast<uint8_t*>(std::aligned_alloc(4096, size));
    own.bytes = own.memory == nullptr ? 0 : size;
  }
  return own.memory;
}

}  // namespace fathom

#pragma GCC visibility push(default)
extern "C" {

const char* fathom_isa() { return isa() == nullptr ? "" : isa()->name; }
int fathom_choose_isa(const char* name) { return choose_isa(name); }
int fathom_start_threads(int threads, const int* cpus) { return start_pool(threads, cpus); }
int fathom_num_threads() { return pool_size(); }
int64_t fathom_busy_ns() { return busy_nanoseconds(); }
int64_t fathom_matrix_bytes(const Matrix* m) { return m->experts * m->expert_bytes(); }

const char* fathom_pack(const Matrix* matrix, int64_t expert, const Source* sources, int count) {
  CHECK(ready());
  CHECK(check_matrix(matrix, "matrix"));
  if (expert < 0 || expert >= matrix->experts) return fail("expert %lld", (long long)expert);
  for (int i = 0; i < count; ++i)
    if (sources[i].data == nullptr || sources[i].rows < 1) return fail("source %d: no rows", i);
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
    if (rows > 0 && (ids == nullptr || weights == nullptr || per_row < 1)) return fail("expert_ids: none");
    for (int64_t i = 0; i < rows * per_row; ++i)
      if (ids[i] < 0 || ids[i] >= gate_up->experts)
        return fail("expert_ids: %lld of %d experts", (long long)ids[i], gate_up->experts);
  }
  if (rows == 0) return nullptr;
  const char* failed = experts({gate_up, down}, {ids, weights, per_row},
                               {shared_gate_up, shared_down}, in, output);
  return failed ? fail("%s", failed) : nullptr;
}

}  // extern "C"
#pragma GCC visibility pop
