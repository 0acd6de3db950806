// What the C interface checks arguments with. The message stands until the next call of its thread.
#pragma once

#include <cstdarg>
#include <cstdint>
#include <cstdio>

#include "isa.h"

namespace fathom {
namespace {

thread_local char message[512];

__attribute__((format(printf, 1, 2))) const char* fail(const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(message, sizeof message, format, arguments);
  va_end(arguments);
  return message;
}

inline bool is_aligned(const void* at, uintptr_t to) {
  return reinterpret_cast<uintptr_t>(at) % to == 0;
}

inline const char* ready() {
  return isa() == nullptr ? fail("no kernels for this processor") : nullptr;
}

}  // namespace
}  // namespace fathom

#define CHECK(call) \
  if (const char* failed = (call)) return failed
