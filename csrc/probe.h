// For benchmarks only, see probe.cpp: loops of multiply-adds in registers. Each gives operations.
#pragma once

#include <cstdint>
#include <string_view>

namespace fathom {

int64_t peak_avx2(bool is_int8, int64_t rounds);
int64_t peak_avx512(bool is_int8, int64_t rounds);

}  // namespace fathom
