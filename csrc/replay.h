// Calls of the C interface as numbers, so that a list of them runs without the host in between.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <type_traits>
#include <utility>

namespace fathom {

constexpr int kMaxArguments = 15;

// Addresses and whole numbers as they are, floating ones as the bits of a double.
struct Call {
  const char* (*run)(const int64_t* arguments);
  int64_t arguments[kMaxArguments];
};

template <class T>
T argument(int64_t bits) {
  if constexpr (std::is_floating_point_v<T>) return T(std::bit_cast<double>(bits));
  else if constexpr (std::is_pointer_v<T>) return reinterpret_cast<T>(bits);
  else return T(bits);
}

template <class... A, size_t... I>
const char* run_call(const char* (*op)(A...), const int64_t* arguments, std::index_sequence<I...>) {
  static_assert(sizeof...(A) <= kMaxArguments);
  return op(argument<A>(arguments[I])...);
}

template <class... A>
const char* run_call(const char* (*op)(A...), const int64_t* arguments) {
  return run_call(op, arguments, std::index_sequence_for<A...>{});
}

}  // namespace fathom

// What a Call of `op` runs.
#define CALLABLE(op) \
  const char* op##_call(const int64_t* arguments) { return run_call(op, arguments); }
