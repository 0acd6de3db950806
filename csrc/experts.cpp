// Mixture of experts, and the plain gated MLP as the case of a shared expert alone.
//
// Two passes over the weights, each expert's read once: gate and up of all experts for the rows
// that chose them, then down. A thread of the second pass owns some outputs of all rows and adds up
// the experts in ascending order, so that no sum depends on threads or on other rows.
#include "ops.h"

namespace fathom {
namespace {

// One expert's rows: `count` of them from `first` on in the lists of Work.
struct Group {
  const Mlp* mlp;
  int64_t expert, first, count;
};

struct Work {
  std::vector<Group> groups;
  std::vector<int64_t> row;   // which row of x each place is
  std::vector<float> weight;  // what its output is multiplied by
  std::vector<ActRow> acts;   // of x, one a row for each of the two formats
  std::vector<ActRow> shared_acts;
  std::vector<ActRow> places;  // of x, by place
  std::vector<ActRow> inner;   // of silu(gate) * up, by place
};

void group_rows(const Mlp& routed, const Routing& routing, const Mlp& shared, int64_t num_rows,
                Work& work) {
  work.groups.clear();
  const int64_t slots = routed.gate_up ? num_rows * routing.per_row : 0;
  const int64_t places = slots + (shared.gate_up ? num_rows : 0);
  work.row.resize(places);
  work.weight.resize(places);
  if (routed.gate_up) {
    const int64_t num_experts = routed.gate_up->experts;
    std::vector<int64_t> starts(num_experts + 1, 0);
    for (int64_t i = 0; i < slots; ++i) ++starts[routing.ids[i] + 1];
    for (int64_t e = 0; e < num_experts; ++e) {
      if (starts[e + 1] > 0) work.groups.push_back({&routed, e, starts[e], starts[e + 1]});
      starts[e + 1] += starts[e];
    }
    for (int64_t i = 0; i < slots; ++i) {
      const int64_t place = starts[routing.ids[i]]++;
      work.row[place] = i / routing.per_row;
      work.weight[place] = routing.weights[i];
    }
  }
  if (shared.gate_up) {
    work.groups.push_back({&shared, 0, slots, num_rows});
    for (int64_t row = 0; row < num_rows; ++row) {
      work.row[slots + row] = row;
      work.weight[slots + row] = 1.0f;
    }
  }
}

// Items of the first pass: pairs of strips of every group.
struct FirstPass {
  std::vector<int64_t> starts;  // items before each group
  int64_t items = 0;
  explicit FirstPass(const Work& work) {
    for (const Group& group : work.groups) {
      starts.push_back(items);
      items += group.mlp->gate_up->strips() / 2;
    }
  }
  size_t group_of(int64_t item) const {
    return std::upper_bound(starts.begin(), starts.end(), item) - starts.begin() - 1;
  }
};

void gate_up_strip(const Group& group, int64_t pair, const Work& work, uint16_t* inner,
                   int64_t inner_stride, int thread) {
  const Isa& isa_ = *isa();
  const Matrix& matrix = *group.mlp->gate_up;
  TileBuffers buffers(thread);
  float* gate = buffers.sums;
  float* up = buffers.sums + kMaxRows * kStrip;
  for (int64_t done = 0; done < group.count; done += isa_.max_rows) {
    const int count = int(std::min<int64_t>(isa_.max_rows, group.count - done));
    const ActRow* rows = &work.places[group.first + done];
    const auto tile = isa_.tile[matrix.format];
    tile({&matrix, matrix.strip(group.expert, 2 * pair), rows, count, gate, buffers.scratch});
    tile({&matrix, matrix.strip(group.expert, 2 * pair + 1), rows, count, up, buffers.scratch});
    for (int i = 0; i < count; ++i)
      isa_.silu_mul(gate + i * kStrip, up + i * kStrip,
                    inner + (group.first + done + i) * inner_stride + pair * kStrip);
  }
}

void down_strip(const Work& work, int64_t strip, float* sums, int thread) {
  const Isa& isa_ = *isa();
  TileBuffers buffers(thread);
  for (const Group& group : work.groups) {
    const Matrix& matrix = *group.mlp->down;
    for (int64_t done = 0; done < group.count; done += isa_.max_rows) {
      const int count = int(std::min<int64_t>(isa_.max_rows, group.count - done));
      const int64_t place = group.first + done;
      isa_.tile[matrix.format]({&matrix, matrix.strip(group.expert, strip), &work.inner[place],
                                count, buffers.sums, buffers.scratch});
      for (int i = 0; i < count; ++i)
        isa_.add_weighted(sums + work.row[place + i] * kStrip, buffers.sums + i * kStrip,
                          work.weight[place + i]);
    }
  }
}

bool is_plain(const Matrix& matrix) { return matrix.format == kBf16 || matrix.format == kFp8; }

// Rows of x for the routed and the shared matrices; one preparation where their formats agree.
const char* prepare_inputs(const Mlp& routed, const Mlp& shared, const Rows& in, Work& work) {
  const Matrix& first = routed.gate_up ? *routed.gate_up : *shared.gate_up;
  const Matrix* second = routed.gate_up && shared.gate_up ? shared.gate_up : nullptr;
  const bool is_same = second == nullptr || (is_plain(first) && is_plain(*second)) ||
                       (first.format == second->format && first.group == second->group);
  const int64_t bytes = in.num_rows * act_bytes(first);
  uint8_t* memory = arena(kArenaActs, bytes + (is_same ? 0 : in.num_rows * act_bytes(*second)));
  if (memory == nullptr) return "no memory for activations";
  prepare_rows(first, in, work.acts, memory);
  if (is_same) work.shared_acts = work.acts;
  else prepare_rows(*second, in, work.shared_acts, memory + bytes);
  work.places.resize(work.row.size());
  for (const Group& group : work.groups) {
    const std::vector<ActRow>& acts = group.mlp == &shared ? work.shared_acts : work.acts;
    for (int64_t place = group.first; place < group.first + group.count; ++place)
      work.places[place] = acts[work.row[place]];
  }
  return nullptr;
}

// Inner rows for the products with down: as they are, or quantised.
const char* prepare_inner(Work& work, const uint16_t* inner, int64_t stride) {
  int64_t bytes = 0;
  for (const Group& group : work.groups) bytes = std::max(bytes, act_bytes(*group.mlp->down));
  uint8_t* memory = arena(kArenaInnerActs, int64_t(work.row.size()) * bytes);
  if (memory == nullptr) return "no memory for inner activations";
  work.inner.resize(work.row.size());
  std::vector<const Matrix*> matrices(work.row.size());
  bool is_direct = true;
  for (const Group& group : work.groups) {
    is_direct &= is_plain(*group.mlp->down);
    for (int64_t place = group.first; place < group.first + group.count; ++place) {
      matrices[place] = group.mlp->down;
      work.inner[place] = {inner + place * stride, nullptr, nullptr};
    }
  }
  if (is_direct) return nullptr;  // silu(0) * 0 fills what lies beyond the width with zeros
  const Isa& isa_ = *isa();
  parallel(int64_t(work.row.size()), [&](int64_t place, int) {
    const Matrix& matrix = *matrices[place];
    const RowInput row{inner + place * stride, nullptr, nullptr, 0.0f, matrix.k};
    work.inner[place] = isa_.prepare(row, matrix, memory + place * bytes);
  });
  return nullptr;
}

}  // namespace

const char* experts(const Mlp& routed, const Routing& routing, const Mlp& shared, const Rows& in,
                    const Output& out) {
  static Work work;
  group_rows(routed, routing, shared, in.num_rows, work);
  if (const char* failed = prepare_inputs(routed, shared, in, work)) return failed;
  int64_t stride = 0;
  for (const Group& group : work.groups) stride = std::max(stride, group.mlp->down->k_padded());
  uint16_t* inner =
      reinterpret_cast<uint16_t*>(arena(kArenaInner, int64_t(work.row.size()) * stride * 2));
  const Matrix& last = shared.down ? *shared.down : *routed.down;
  const int64_t strips = last.strips();
  float* sums = reinterpret_cast<float*>(arena(kArenaSums, strips * in.num_rows * kStrip * 4));
  if (inner == nullptr || sums == nullptr) return "no memory for inner activations";
  const FirstPass pass(work);
  parallel_runs(pass.items, [&](int64_t item, int thread) {
    const size_t index = pass.group_of(item);
    gate_up_strip(work.groups[index], item - pass.starts[index], work, inner, stride, thread);
  });
  if (const char* failed = prepare_inner(work, inner, stride)) return failed;
  parallel(strips, [&](int64_t strip, int thread) {
    float* own = sums + strip * in.num_rows * kStrip;
    std::memset(own, 0, in.num_rows * kStrip * 4);
    down_strip(work, strip, own, thread);
    const int width = int(std::min<int64_t>(kStrip, last.n - strip * kStrip));
    for (int64_t row = 0; row < in.num_rows; ++row)
      out.put(*isa(), row, strip * kStrip, width, own + row * kStrip);
  });
  return nullptr;
}

}  // namespace fathom
