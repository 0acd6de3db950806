// Products of rows of activations with packed matrices.
#include "ops.h"

#include "pool.h"

namespace fathom {

namespace {

// Rows that one item takes: a strip of weights is read from memory once for all of them.
constexpr int64_t kItemRows = 480;

}  // namespace

void prepare_rows(const Matrix& matrix, const Rows& in, std::vector<ActRow>& rows,
                  uint8_t* memory) {
  const bool is_direct = (matrix.format == kBf16 || matrix.format == kFp8) && in.norm == nullptr &&
                         in.residual == nullptr && matrix.k == matrix.k_padded();
  rows.resize(in.num_rows);
  if (is_direct) {
    for (int64_t row = 0; row < in.num_rows; ++row)
      rows[row] = {in.x + row * in.stride, nullptr, nullptr};
    return;
  }
  const Isa& isa_ = *isa();
  const int64_t bytes = act_bytes(matrix);
  parallel(in.num_rows, [&](int64_t row, int) {
    rows[row] = isa_.prepare(in.at(row), matrix, memory + row * bytes);
  });
}

const char* linear(const Matrix& matrix, const Rows& in, const Output& out) {
  uint8_t* memory = arena(kArenaActs, in.num_rows * act_bytes(matrix));
  if (memory == nullptr) return "no memory for activations";
  static std::vector<ActRow> rows;
  prepare_rows(matrix, in, rows, memory);
  const Isa& isa_ = *isa();
  const int64_t chunks = (in.num_rows + kItemRows - 1) / kItemRows;
  parallel_runs(matrix.strips() * chunks, [&](int64_t item, int thread) {
    const int64_t strip = item / chunks, first = item % chunks * kItemRows;
    const int64_t end = std::min(first + kItemRows, in.num_rows);
    TileBuffers buffers(thread);
    for (int64_t row = first; row < end; row += isa_.max_rows) {
      const int count = int(std::min<int64_t>(isa_.max_rows, end - row));
      isa_.tile[matrix.format]({&matrix, matrix.strip(out.expert, strip), &rows[row], count,
                                buffers.sums, buffers.scratch});
      const int width = int(std::min<int64_t>(kStrip, matrix.n - strip * kStrip));
      for (int i = 0; i < count; ++i)
        out.put(isa_, row + i, strip * kStrip, width, buffers.sums + i * kStrip);
    }
  });
  return nullptr;
}

}  // namespace fathom
