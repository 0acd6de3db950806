#pragma once

#include <cstddef>

namespace fathom {

// Asks the system to put untouched memory, aligned to its pages, where weights are read fastest. It
// is a wish: what the system does not grant changes no result.
void place_weights(void* at, size_t bytes);

}  // namespace fathom
