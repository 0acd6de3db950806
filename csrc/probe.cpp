// For benchmarks only: how fast this machine reads memory and multiplies, on the pool's threads.
// The rooflines of bench/ops.py are made of these, measured in the same run.
#include "probe.h"

#include <immintrin.h>

#include <algorithm>
#include <atomic>

#include "isa.h"
#include "pool.h"

namespace fathom {
namespace {

constexpr int64_t kPiece = 1 << 20;
// Kept, so that no compiler may drop the work.
std::atomic<int64_t> sink{0};

int64_t sum(const uint8_t* from, int64_t bytes) {
  __m256i sums[4] = {};
  for (int64_t i = 0; i + 128 <= bytes; i += 128)
    for (int j = 0; j < 4; ++j) {
      const auto at = reinterpret_cast<const __m256i*>(from + i + 32 * j);
      sums[j] = _mm256_add_epi64(sums[j], _mm256_loadu_si256(at));
    }
  const __m256i all =
      _mm256_add_epi64(_mm256_add_epi64(sums[0], sums[1]), _mm256_add_epi64(sums[2], sums[3]));
  return _mm256_extract_epi64(all, 0) + _mm256_extract_epi64(all, 3);
}

}  // namespace

// 10 sums hide the latency of two units; the rest of the 16 registers holds the factors.
int64_t peak_avx2(bool is_int8, int64_t rounds) {
  constexpr int kSums = 10;
  if (is_int8) {
    // Bytes widened to 16 bits: products of unsigned by signed bytes would saturate.
    __m256i sums[kSums] = {}, a = _mm256_set1_epi16(1), b = _mm256_set1_epi16(2);
    for (int64_t i = 0; i < rounds; ++i)
      for (int j = 0; j < kSums; ++j) {
        asm volatile("" : "+x"(a));
        sums[j] = _mm256_add_epi32(sums[j], _mm256_madd_epi16(a, b));
      }
    for (int j = 0; j < kSums; ++j) asm volatile("" ::"x"(sums[j]));
    return rounds * kSums * 32;
  }
  __m256 sums[kSums] = {}, a = _mm256_set1_ps(1.0f), b = _mm256_set1_ps(2.0f);
  for (int64_t i = 0; i < rounds; ++i)
    for (int j = 0; j < kSums; ++j) {
      asm volatile("" : "+x"(a));
      sums[j] = _mm256_fmadd_ps(a, b, sums[j]);
    }
  for (int j = 0; j < kSums; ++j) asm volatile("" ::"x"(sums[j]));
  return rounds * kSums * 16;
}

}  // namespace fathom

using namespace fathom;

#pragma GCC visibility push(default)
extern "C" {

// Reads all of `data` once.
void fathom_probe_read(const uint8_t* data, int64_t bytes) {
  if (isa() == nullptr || data == nullptr) return;
  const int64_t pieces = (bytes + kPiece - 1) / kPiece;
  parallel(pieces, [&](int64_t piece, int) {
    const int64_t first = piece * kPiece;
    sink += sum(data + first, std::min(kPiece, bytes - first));
  });
}

// Multiplies and adds in registers alone, on every thread. Gives operations (two for a
// multiply-add) of all threads; 0 where the instruction set in use has no such loop here, as AMX.
int64_t fathom_probe_peak(int is_int8, int64_t rounds) {
  if (isa() == nullptr) return 0;
  const std::string_view name = isa()->name;
  const auto peak = name == "avx512" ? peak_avx512 : name == "avx2" ? peak_avx2 : nullptr;
  if (peak == nullptr) return 0;
  std::atomic<int64_t> operations{0};
  parallel(4 * pool_size(), [&](int64_t, int) { operations += peak(is_int8 != 0, rounds); });
  return operations;
}

}  // extern "C"
#pragma GCC visibility pop
