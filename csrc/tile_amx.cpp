// Products of activations with strips of packed weights, with AMX (and AVX-512 beside it).
//
// Every tile has 16 rows of 64 bytes, whatever the number of rows: rows that are not there are
// zeros in scratch. So a sum goes the same way for all numbers of rows, and one configuration
// serves. Packed bf16 and int8 are B tiles as they lie, 256 bytes from row to row; a step of 64
// bytes of each row of activations meets 4096 bytes of a strip. Two tiles of rows by 32 outputs
// need four tiles of sums, and each A and B tile serves twice; one tile of rows takes all 64
// outputs at once, which reads the strip straight ahead. Sums go to memory and back between blocks
// of inputs, which changes no bit.
#include <immintrin.h>

#include "attend_avx512.h"
#include "attend_ops.h"
#include "isa.h"
#include "logit_ops.h"
#include "row_kernels.h"
#include "row_ops.h"
#include "widen_avx512.h"
#ifdef FATHOM_EMULATE_AMX
#include "amx_emulated.h"
#else
#include "amx_native.h"
#endif

namespace fathom {
namespace {

constexpr int kTileRows = 16;
constexpr int kStepBytes = 64;          // of a row of activations
constexpr int kStepWeights = 4096;      // bytes
constexpr int64_t kWeightStride = 256;  // from row to row of a B tile
constexpr int64_t kSumStride = kStrip * 4;
constexpr int kBlockSteps = 16;

// Scratch of a tile call: rows that were gathered, weights that were widened, sums of a group.
constexpr int64_t kGatherStride =
    kBlockSteps * kStepBytes + 64;  // 64 more spread them in the cache
constexpr int64_t kGatherBytes = 2 * kTileRows * kGatherStride;
constexpr int64_t kWidenedBytes = kFp8Block * kStrip * 2;
constexpr int64_t kSumsBytes = kMaxRows * kSumStride;
static_assert(kGatherBytes + kWidenedBytes + kSumsBytes <= kTileScratch);
uint8_t* widened_of(const TileCall& call) { return call.scratch + kGatherBytes; }
float* sums_of(const TileCall& call) {
  return reinterpret_cast<float*>(call.scratch + kGatherBytes + kWidenedBytes);
}

constexpr TileConfig full_tiles() {
  TileConfig config{};
  config.palette = 1;
  for (int tile = 0; tile < 8; ++tile) {
    config.row_bytes[tile] = 64;
    config.rows[tile] = kTileRows;
  }
  return config;
}
constexpr TileConfig kFullTiles = full_tiles();

// Tiles as this file wants them, for the length of one call: other libraries of the process
// configure the same registers, and a thread that keeps them in use makes switches dearer.
struct Tiles {
  Tiles() { configure_tiles(kFullTiles); }
  ~Tiles() { release_tiles(); }
};

struct DotBf16 {
  template <int C, int A, int B>
  static void add() {
    tile_dot_bf16<C, A, B>();
  }
};
struct DotSigned {
  template <int C, int A, int B>
  static void add() {
    tile_dot_signed<C, A, B>();
  }
};
struct DotUnsigned {
  template <int C, int A, int B>
  static void add() {
    tile_dot_unsigned<C, A, B>();
  }
};

// A block of inputs: where it starts in the rows (in bytes), its weights, its length.
struct Block {
  int64_t first_byte;
  const uint8_t* weights;
  int steps;  // at most kBlockSteps
  bool is_first;
};

// Sixteen rows of activations.
struct ActTile {
  const uint8_t* at;
  int64_t stride;
};

bool are_spaced(const ActRow* rows, int64_t stride) {
  for (int i = 1; i < kTileRows; ++i)
    if (intptr_t(rows[i].values) - intptr_t(rows[i - 1].values) != stride) return false;
  return true;
}

// The rows from `row` on as they lie, or copied to `gathered` where they do not lie evenly.
ActTile act_tile(const TileCall& call, int row, const Block& block, uint8_t* gathered) {
  const ActRow* rows = call.rows + row;
  const int count = call.num_rows - row < kTileRows ? call.num_rows - row : kTileRows;
  if (count == kTileRows) {
    const int64_t stride = intptr_t(rows[1].values) - intptr_t(rows[0].values);
    if (are_spaced(rows, stride))
      return {static_cast<const uint8_t*>(rows[0].values) + block.first_byte, stride};
  }
  const int64_t bytes = block.steps * kStepBytes;
  for (int i = 0; i < count; ++i)
    std::memcpy(gathered + i * kGatherStride,
                static_cast<const uint8_t*>(rows[i].values) + block.first_byte, bytes);
  for (int i = count; i < kTileRows; ++i) std::memset(gathered + i * kGatherStride, 0, bytes);
  return {gathered, kGatherStride};
}

template <int T>
inline void start_sums(const float* from, bool is_first) {
  if (is_first) tile_zero<T>();
  else tile_load<T>(from, kSumStride);
}

// Sixteen rows by 64 outputs.
template <class Dot>
void multiply_one(const ActTile& acts, const Block& block, float* sums) {
  start_sums<0>(sums, block.is_first);
  start_sums<1>(sums + 16, block.is_first);
  start_sums<2>(sums + 32, block.is_first);
  start_sums<3>(sums + 48, block.is_first);
  const uint8_t* weights = block.weights;
  for (int step = 0; step < block.steps; ++step, weights += kStepWeights) {
    tile_load<4>(acts.at + step * kStepBytes, acts.stride);
    tile_load<5>(weights, kWeightStride);
    Dot::template add<0, 4, 5>();
    tile_load<6>(weights + 64, kWeightStride);
    Dot::template add<1, 4, 6>();
    tile_load<7>(weights + 128, kWeightStride);
    Dot::template add<2, 4, 7>();
    tile_load<5>(weights + 192, kWeightStride);
    Dot::template add<3, 4, 5>();
  }
  tile_store<0>(sums, kSumStride);
  tile_store<1>(sums + 16, kSumStride);
  tile_store<2>(sums + 32, kSumStride);
  tile_store<3>(sums + 48, kSumStride);
}

// Thirty-two rows by 32 outputs, twice.
template <class Dot>
void multiply_two(const ActTile& upper, const ActTile& lower, const Block& block, float* sums) {
  for (int half = 0; half < 2; ++half, sums += 32) {
    float* below = sums + kTileRows * kStrip;
    start_sums<0>(sums, block.is_first);
    start_sums<1>(sums + 16, block.is_first);
    start_sums<2>(below, block.is_first);
    start_sums<3>(below + 16, block.is_first);
    const uint8_t* weights = block.weights + 128 * half;
    for (int step = 0; step < block.steps; ++step, weights += kStepWeights) {
      tile_load<4>(upper.at + step * kStepBytes, upper.stride);
      tile_load<6>(weights, kWeightStride);
      Dot::template add<0, 4, 6>();
      tile_load<7>(weights + 64, kWeightStride);
      Dot::template add<1, 4, 7>();
      tile_load<5>(lower.at + step * kStepBytes, lower.stride);
      Dot::template add<2, 5, 6>();
      Dot::template add<3, 5, 7>();
    }
    tile_store<0>(sums, kSumStride);
    tile_store<1>(sums + 16, kSumStride);
    tile_store<2>(below, kSumStride);
    tile_store<3>(below + 16, kSumStride);
  }
}

// Adds a block to the sums of all rows, [num_rows rounded up to 16][64] float32 or int32.
template <class Dot>
void multiply(const TileCall& call, const Block& block, float* sums) {
  uint8_t* gathered = call.scratch;
  for (int row = 0; row < call.num_rows; row += 2 * kTileRows) {
    float* to = sums + row * kStrip;
    const ActTile upper = act_tile(call, row, block, gathered);
    if (call.num_rows - row <= kTileRows) {
      multiply_one<Dot>(upper, block, to);
    } else {
      const ActTile lower =
          act_tile(call, row + kTileRows, block, gathered + kTileRows * kGatherStride);
      multiply_two<Dot>(upper, lower, block, to);
    }
  }
}

// All inputs of bf16 and int8, whose weights are tiles as they lie.
template <class Dot>
void multiply_all(const TileCall& call, int64_t steps) {
  for (int64_t step = 0; step < steps; step += kBlockSteps) {
    const int count = int(steps - step < kBlockSteps ? steps - step : kBlockSteps);
    multiply<Dot>(call, {step * kStepBytes, call.strip + step * kStepWeights, count, step == 0},
                  call.out);
  }
}

void tile_bf16(const TileCall& call) {
  const Tiles tiles;
  multiply_all<DotBf16>(call, call.matrix->k_padded() * 2 / kStepBytes);
}

void tile_fp8(const TileCall& call) {
  const Tiles tiles;
  const int64_t k_padded = call.matrix->k_padded();
  const float* scales = reinterpret_cast<const float*>(call.strip + k_padded * kStrip);
  const float* sums = sums_of(call);
  for (int64_t first = 0; first < k_padded; first += kFp8Block) {
    const int64_t size = k_padded - first < kFp8Block ? k_padded - first : kFp8Block;
    widen_fp8(call.strip + first * kStrip, size * kStrip, widened_of(call));
    multiply<DotBf16>(call, {2 * first, widened_of(call), int(size * 2 / kStepBytes), true},
                      sums_of(call));
    const __m512 scale = _mm512_set1_ps(scales[first / kFp8Block]);
    for (int at = 0; at < call.num_rows * kStrip; at += 16) {
      const __m512 before = first == 0 ? _mm512_setzero_ps() : _mm512_load_ps(call.out + at);
      _mm512_store_ps(call.out + at, _mm512_fmadd_ps(_mm512_load_ps(sums + at), scale, before));
    }
  }
}

void tile_int8(const TileCall& call) {
  const Tiles tiles;
  const int64_t k_padded = call.matrix->k_padded();
  multiply_all<DotSigned>(call, k_padded / kStepBytes);
  const float* scales = reinterpret_cast<const float*>(call.strip + k_padded * kStrip);
  for (int m = 0; m < call.num_rows; ++m) {
    const __m512 row_scale = _mm512_set1_ps(call.rows[m].scales[0]);
    for (int j = 0; j < 4; ++j) {
      float* at = call.out + m * kStrip + 16 * j;
      const __m512 scale = _mm512_mul_ps(_mm512_load_ps(scales + 16 * j), row_scale);
      _mm512_store_ps(at, _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_load_si512(at)), scale));
    }
  }
}

// A step's 64 inputs in two groups of 32: low halves, zeros, high halves, so that 4096 bytes from
// the start on are the first group's and those from the zeros on the second's.
void widen_halves(const uint8_t* from, uint8_t* to) {
  widen_int4(from, kStep, to);
  std::memcpy(to + 2 * kStepWeights / 2, to + kStepWeights / 2, kStepWeights / 2);
  std::memset(to + kStepWeights / 2, 0, kStepWeights / 2);
}

void tile_int4(const TileCall& call) {
  const Tiles tiles;
  const Matrix& matrix = *call.matrix;
  const int64_t unit = matrix.unit(), units = round_up(matrix.k_padded(), unit) / unit;
  const bool is_halved = matrix.group < kStep;
  const int64_t groups = unit / matrix.group;
  uint8_t* widened = widened_of(call);
  for (int64_t u = 0; u < units; ++u) {
    const uint8_t* data = call.strip + u * matrix.unit_bytes();
    if (is_halved) widen_halves(data, widened);
    else widen_int4(data, unit, widened);
    for (int64_t g = 0; g < groups; ++g) {
      const uint8_t* weights = widened + g * (kStepWeights / 2);
      multiply<DotUnsigned>(call, {u * unit, weights, int(unit / kStep), true}, sums_of(call));
      add_group(call, sums_of(call), data + unit * kStrip / 2 + g * 3 * kStrip, u * groups + g);
    }
  }
}

bool is_supported() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512vbmi") && __builtin_cpu_supports("avx512vnni") &&
         __builtin_cpu_supports("avx512bf16") && is_amx_allowed();
}

const Isa* table(const char* name) {
  static const AttendKernels attend{scores_avx512, weigh,  interleave, rescale_add, merge,
                                    finish,        rotate, read_fp8,   write_fp8};
  static const Isa made{
      name,           kMaxRows, false,          {tile_bf16, tile_fp8, tile_int8, tile_int4},
      prepare_row<0>, norm_row, silu_mul_strip, add_weighted_strip,
      round_strip,    &attend,  &logit_kernels, &row_kernels};
  static const bool is_able = is_supported();
  return is_able ? &made : nullptr;
}

}  // namespace

#ifdef FATHOM_EMULATE_AMX
const Isa* isa_amx_emulated() { return table("amx_emulated"); }
#else
const Isa* isa_amx() { return table("amx"); }
#endif

}  // namespace fathom
