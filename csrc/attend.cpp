#include "attend.h"

#include <cmath>

namespace fathom {
namespace {

struct Shape {
  int heads, nope, rope, value, rank, width;  // width: of a query in the latents' space
  int64_t padded;                             // rank padded to whole strips
  explicit Shape(const AttendCall& call)
      : heads(call.absorb->experts),
        nope(int(call.absorb->k)),
        rope(call.cache.rope),
        value(int(call.expand->n)),
        rank(call.cache.rank),
        width(rank + rope),
        padded(round_up(rank, kStrip)) {}
};

// Some columns of one sequence and some splits of its keys.
struct Item {
  int64_t sequence, first_column, columns, first_split, splits;
  int64_t partial;  // floats before its result among the partial ones; -1: it is the whole
};

// A thread's memory for one item.
struct Workspace {
  uint16_t* queries;
  float* scores;
  uint16_t* weights;
  uint16_t* values;
  uint16_t* wide;  // keys of FP8 as bfloat16
  uint8_t* tile_scratch;
  float* rescale;
  int32_t* visible;
  Found split, whole;

  static int64_t bytes(const Shape& shape) {
    return 2 * (shape.width + 1) * kColumns + 4 * kKeyBlock * kColumns + 2 * kKeyBlock * kColumns +
           2 * kKeyBlock * shape.padded + 2 * kKeyBlock * shape.width + 6 * 4 * kColumns +
           2 * 4 * kColumns * shape.padded + 16 * 64;
  }

  Workspace(const Shape& shape, uint8_t* at, uint8_t* scratch) : tile_scratch(scratch) {
    auto take = [&](int64_t size) {
      uint8_t* taken = at;
      at += round_up(size, 64);
      return taken;
    };
    queries = reinterpret_cast<uint16_t*>(take(2 * (shape.width + 1) * kColumns));
    scores = reinterpret_cast<float*>(take(4 * kKeyBlock * kColumns));
    weights = reinterpret_cast<uint16_t*>(take(2 * kKeyBlock * kColumns));
    values = reinterpret_cast<uint16_t*>(take(2 * kKeyBlock * shape.padded));
    wide = reinterpret_cast<uint16_t*>(take(2 * kKeyBlock * shape.width));
    rescale = reinterpret_cast<float*>(take(4 * kColumns));
    visible = reinterpret_cast<int32_t*>(take(4 * kColumns));
    for (Found* found : {&split, &whole}) {
      found->most = reinterpret_cast<float*>(take(4 * kColumns));
      found->total = reinterpret_cast<float*>(take(4 * kColumns));
      found->latent = reinterpret_cast<float*>(take(4 * kColumns * shape.padded));
    }
  }
};

class Attention {
 public:
  Attention(const AttendCall& call, const uint16_t* queries, uint16_t* found)
      : call_(call), shape_(call), queries_(queries), found_(found), isa_(*isa()) {}

  void plan();
  bool run();

 private:
  void run_item(const Item& item, Workspace& space) const;
  void run_split(const Item& item, int64_t split, Workspace& space) const;
  void load_keys(const Item& item, int64_t first, KeyBlock& keys, uint16_t* wide) const;
  void pack_queries(const Item& item, uint16_t* to) const;
  void add_values(const KeyBlock& keys, int columns, Workspace& space) const;
  void finish(const Item& item, const Found& found) const;
  Found partial(int64_t floats) const;
  int64_t floats_of(int64_t columns) const { return 2 * kColumns + columns * shape_.padded; }

  int64_t position(const Item& item, int64_t column) const {
    const Batch& batch = call_.batch;
    const int64_t token = (item.first_column + column) / shape_.heads;
    const int64_t queries =
        batch.query_starts[item.sequence + 1] - batch.query_starts[item.sequence];
    return batch.context_lens[item.sequence] - queries + token;
  }

  const AttendCall& call_;
  const Shape shape_;
  const uint16_t* queries_;  // [T][H][width]
  uint16_t* found_;          // [T][H][rank]
  const Isa& isa_;
  std::vector<Item> items_;
  std::vector<Item> merges_;  // columns whose splits ran side by side; `partial`: the first of them
  int64_t partial_floats_ = 0;
  float* partial_memory_ = nullptr;
};

void Attention::plan() {
  const Batch& batch = call_.batch;
  for (int64_t s = 0; s < batch.sequences; ++s) {
    const int64_t queries = batch.query_starts[s + 1] - batch.query_starts[s];
    const int64_t columns = queries * shape_.heads;
    const int64_t splits = (batch.context_lens[s] + kSplitKeys - 1) / kSplitKeys;
    // Prefill has columns enough for all threads, and its partial results would be large.
    const int64_t floats =
        splits * (round_up(columns, kColumns) / kColumns * floats_of(0) + columns * shape_.padded);
    const bool is_cut =
        splits > 1 && columns <= 4 * kColumns && partial_floats_ + floats <= kMaxPartialFloats;
    for (int64_t first = 0; first < columns; first += kColumns) {
      const int64_t count = std::min<int64_t>(kColumns, columns - first);
      const Item whole{s, first, count, 0, splits, -1};
      if (!is_cut) {
        items_.push_back(whole);
        continue;
      }
      merges_.push_back({s, first, count, 0, splits, partial_floats_});
      for (int64_t split = 0; split < splits; ++split) {
        items_.push_back({s, first, count, split, 1, partial_floats_});
        partial_floats_ += floats_of(count);
      }
    }
  }
  // The longest first, so that no thread is left with a long one at the end.
  auto cost = [&](const Item& item) {
    return item.partial >= 0 ? int64_t(kSplitKeys)
                             : position(item, item.columns - 1) * (item.columns + 16) / 16;
  };
  std::stable_sort(items_.begin(), items_.end(),
                   [&](const Item& a, const Item& b) { return cost(a) > cost(b); });
}

Found Attention::partial(int64_t floats) const {
  float* at = partial_memory_ + floats;
  return {at, at + kColumns, at + 2 * kColumns};
}

bool Attention::run() {
  if (partial_floats_ > 0) {
    partial_memory_ = reinterpret_cast<float*>(arena(kArenaSums, partial_floats_ * 4));
    if (partial_memory_ == nullptr) return false;
  }
  std::atomic<bool> has_memory{true};
  parallel(int64_t(items_.size()), [&](int64_t index, int thread) {
    TileBuffers tiles(thread, Workspace::bytes(shape_));
    if (tiles.more == nullptr) {
      has_memory = false;
      return;
    }
    Workspace space(shape_, tiles.more, tiles.scratch);
    run_item(items_[index], space);
  });
  parallel(int64_t(merges_.size()), [&](int64_t index, int) {
    const Item& item = merges_[index];
    Found whole = partial(item.partial);
    for (int64_t split = 1; split < item.splits; ++split)
      isa_.attend->merge(whole, partial(item.partial + split * floats_of(item.columns)),
                         int(item.columns), shape_.padded);
    finish(item, whole);
  });
  return has_memory;
}

void reset(Found& found, int64_t columns, int64_t padded) {
  for (int c = 0; c < kColumns; ++c) found.most[c] = -INFINITY;
  std::memset(found.total, 0, 4 * kColumns);
  std::memset(found.latent, 0, 4 * columns * padded);
}

void Attention::run_item(const Item& item, Workspace& space) const {
  pack_queries(item, space.queries);
  if (item.partial >= 0) {
    space.split = partial(item.partial);
    return run_split(item, item.first_split, space);
  }
  const int64_t last = position(item, item.columns - 1) / kSplitKeys;
  for (int64_t split = 0; split <= last; ++split) {
    run_split(item, split, space);
    if (split == 0) std::swap(space.split, space.whole);
    else isa_.attend->merge(space.whole, space.split, int(item.columns), shape_.padded);
  }
  finish(item, space.whole);
}

// Pairs of a query's values side by side for sixteen columns: [width / 2][blocks][16][2].
void Attention::pack_queries(const Item& item, uint16_t* to) const {
  const int64_t start = call_.batch.query_starts[item.sequence] * shape_.heads + item.first_column;
  const int blocks = int(round_up(item.columns, kLanesInBlock) / kLanesInBlock);
  uint32_t* pairs = reinterpret_cast<uint32_t*>(to);
  for (int c = 0; c < blocks * kLanesInBlock; ++c) {
    const int at = c / kLanesInBlock * kLanesInBlock + c % kLanesInBlock;
    if (c >= item.columns) {
      for (int d = 0; d < shape_.width / 2; ++d) pairs[d * blocks * kLanesInBlock + at] = 0;
      continue;
    }
    const uint16_t* from = queries_ + (start + c) * shape_.width;
    for (int d = 0; d < shape_.width / 2; ++d)
      std::memcpy(&pairs[d * blocks * kLanesInBlock + at], from + 2 * d, 4);
  }
}

void Attention::load_keys(const Item& item, int64_t first, KeyBlock& keys, uint16_t* wide) const {
  const Cache& cache = call_.cache;
  const int64_t* pages = call_.batch.page_table + item.sequence * call_.batch.table_width;
  for (int i = 0; i < keys.count; ++i) {
    const int64_t place = first + i;
    const int64_t slot = pages[place / cache.page_size] * cache.page_size + place % cache.page_size;
    const uint8_t* cell = cache.cell(slot);
    if (cache.format == kKvBf16) {
      keys.rows[i] = reinterpret_cast<const uint16_t*>(cell);
    } else {
      isa_.attend->read_fp8(cache, cell, wide + i * shape_.width);
      keys.rows[i] = wide + i * shape_.width;
    }
  }
}

void Attention::run_split(const Item& item, int64_t split, Workspace& space) const {
  const int columns = int(item.columns);
  const int blocks = int(round_up(columns, kLanesInBlock) / kLanesInBlock);
  reset(space.split, columns, shape_.padded);
  const int64_t start = split * kSplitKeys;
  const int64_t end = std::min(start + kSplitKeys, position(item, columns - 1) + 1);
  for (int64_t first = start; first < end; first += kKeyBlock) {
    KeyBlock keys;
    keys.count = int(std::min<int64_t>(kKeyBlock, end - first));
    load_keys(item, first, keys, space.wide);
    bool is_masked = false;
    for (int c = 0; c < kColumns; ++c) {
      const int64_t seen = c < columns ? position(item, c) + 1 - first : kKeyBlock;
      space.visible[c] = int32_t(std::clamp<int64_t>(seen, 0, kKeyBlock));
      is_masked |= space.visible[c] < keys.count;
    }
    isa_.attend->scores(keys, space.queries, shape_.width, blocks, space.scores);
    isa_.attend->weigh(space.scores, keys.count, blocks, space.visible, is_masked, call_.scale,
                       space.split, space.rescale, space.weights);
    isa_.attend->interleave(keys, shape_.rank, space.values);
    add_values(keys, columns, space);
  }
}

void Attention::add_values(const KeyBlock& keys, int columns, Workspace& space) const {
  // The block's latents as a packed matrix: outputs are latents, inputs are keys.
  Matrix matrix{kBf16, 0, 0, 1, shape_.padded, round_up(keys.count, kStep), nullptr, 0};
  ActRow rows[kColumns];
  for (int c = 0; c < columns; ++c) rows[c] = {space.weights + c * kKeyBlock, nullptr, nullptr};
  float* sums = space.scores;  // the scores are used up
  for (int64_t strip = 0; strip < shape_.padded / kStrip; ++strip) {
    const uint8_t* values =
        reinterpret_cast<const uint8_t*>(space.values + strip * kKeyBlock * kStrip);
    for (int done = 0; done < columns; done += isa_.max_rows) {
      const int count = std::min(isa_.max_rows, columns - done);
      isa_.tile[kBf16]({&matrix, values, rows + done, count, sums, space.tile_scratch});
      for (int c = 0; c < count; ++c)
        isa_.attend->rescale_add(space.split.latent + (done + c) * shape_.padded + strip * kStrip,
                                 sums + c * kStrip, space.rescale[done + c]);
    }
  }
}

void Attention::finish(const Item& item, const Found& found) const {
  const int64_t start = call_.batch.query_starts[item.sequence] * shape_.heads + item.first_column;
  for (int c = 0; c < int(item.columns); ++c)
    isa_.attend->finish(found, c, shape_.padded, shape_.rank, found_ + (start + c) * shape_.rank);
}

// Rows of one head for all tokens times that head's matrix; `from` and `to` by token and head.
struct HeadProduct {
  const Matrix* matrix;
  const uint16_t* from;
  int64_t from_token, from_head;  // strides
  uint16_t* to;
  int64_t to_token, to_head;
};

constexpr int64_t kHeadRows = 96;  // tokens of an item

bool multiply_heads(const HeadProduct& product, int64_t tokens, Arena memory_of) {
  const Matrix& matrix = *product.matrix;
  const Isa& isa_ = *isa();
  const int64_t heads = matrix.experts, bytes = act_bytes(matrix);
  const bool is_direct =
      (matrix.format == kBf16 || matrix.format == kFp8) && matrix.k == matrix.k_padded();
  static std::vector<ActRow> rows;
  rows.resize(heads * tokens);
  uint8_t* memory = is_direct ? nullptr : arena(memory_of, heads * tokens * bytes);
  if (!is_direct && memory == nullptr) return false;
  for (int64_t i = 0; is_direct && i < heads * tokens; ++i)
    rows[i].values =
        product.from + i % tokens * product.from_token + i / tokens * product.from_head;
  if (!is_direct)
    parallel(heads * tokens, [&](int64_t i, int) {
      const uint16_t* x =
          product.from + i % tokens * product.from_token + i / tokens * product.from_head;
      rows[i] = isa_.prepare({x, nullptr, nullptr, 0.0f, matrix.k}, matrix, memory + i * bytes);
    });
  const int64_t strips = matrix.strips(), chunks = (tokens + kHeadRows - 1) / kHeadRows;
  parallel_runs(heads * strips * chunks, [&](int64_t item, int thread) {
    const int64_t head = item / (strips * chunks), strip = item / chunks % strips;
    const int64_t first = item % chunks * kHeadRows;
    const int64_t end = std::min(first + kHeadRows, tokens);
    TileBuffers tiles(thread);
    const int width = int(std::min<int64_t>(kStrip, matrix.n - strip * kStrip));
    for (int64_t token = first; token < end; token += isa_.max_rows) {
      const int count = int(std::min<int64_t>(isa_.max_rows, end - token));
      isa_.tile[matrix.format]({&matrix, matrix.strip(head, strip), &rows[head * tokens + token],
                                count, tiles.sums, tiles.scratch});
      for (int i = 0; i < count; ++i)
        isa_.round(
            tiles.sums + i * kStrip, width,
            product.to + (token + i) * product.to_token + head * product.to_head + strip * kStrip);
    }
  });
  return true;
}

}  // namespace

const char* mla_attend(const AttendCall& call) {
  const Shape shape(call);
  const int64_t tokens = call.batch.tokens, columns = tokens * shape.heads;
  uint16_t* queries = reinterpret_cast<uint16_t*>(arena(kArenaQueries, columns * shape.width * 2));
  uint16_t* found = reinterpret_cast<uint16_t*>(arena(kArenaFound, columns * shape.rank * 2));
  if (queries == nullptr || found == nullptr) return "no memory for queries";
  const int qk = shape.nope + shape.rope;
  if (!multiply_heads({call.absorb, call.q, call.q_stride, qk, queries,
                       int64_t(shape.heads) * shape.width, shape.width},
                      tokens, kArenaActs))
    return "no memory for queries";
  parallel(tokens, [&](int64_t token, int) {
    const int64_t angle = token * (shape.rope / 2);
    for (int head = 0; head < shape.heads; ++head)
      isa()->attend->rotate(call.q + token * call.q_stride + head * qk + shape.nope,
                            call.angles.cos + angle, call.angles.sin + angle, shape.rope,
                            call.angles.is_interleaved,
                            queries + (token * shape.heads + head) * shape.width + shape.rank);
  });
  Attention attention(call, queries, found);
  attention.plan();
  if (!attention.run()) return "no memory for attention";
  if (!multiply_heads({call.expand, found, int64_t(shape.heads) * shape.rank, shape.rank, call.out,
                       int64_t(shape.heads) * shape.value, shape.value},
                      tokens, kArenaActs))
    return "no memory for attention";
  return nullptr;
}

const char* mla_write(const WriteCall& call) {
  const Cache& cache = call.cache;
  parallel(call.tokens, [&](int64_t token, int thread) {
    const int64_t angle = token * (cache.rope / 2);
    TileBuffers tiles(thread, 2 * (cache.rank + cache.rope));
    uint8_t* cell = cache.cell(call.slots[token]);
    uint16_t* to = reinterpret_cast<uint16_t*>(cache.format == kKvBf16 ? cell : tiles.more);
    isa()->norm({call.latent + token * call.stride, nullptr, call.norm, call.eps, cache.rank}, to);
    isa()->attend->rotate(call.key + token * call.stride, call.angles.cos + angle,
                          call.angles.sin + angle, cache.rope, call.angles.is_interleaved,
                          to + cache.rank);
    if (cache.format == kKvFp8) isa()->attend->write_fp8(cache, to, cell);
  });
  return nullptr;
}

}  // namespace fathom
