// Where large matrices lie: on huge pages, and spread over the memories of all sockets, so that the
// threads of each read half of everything from their own and none is the bottleneck.
#include "memory.h"

#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstdio>

namespace fathom {
namespace {

constexpr int kInterleave = 3;  // MPOL_INTERLEAVE of linux/mempolicy.h

// Bits of the memories that are online; the file holds a list such as 0-1,3.
unsigned long online_nodes() {
  std::FILE* file = std::fopen("/sys/devices/system/node/online", "r");
  if (file == nullptr) return 1;
  unsigned long nodes = 0;
  int first, last;
  for (char separator = ','; separator == ',' && std::fscanf(file, "%d", &first) == 1;) {
    last = first;
    if (std::fscanf(file, "%c", &separator) != 1) separator = '\n';
    if (separator == '-') {
      if (std::fscanf(file, "%d", &last) != 1) break;
      if (std::fscanf(file, "%c", &separator) != 1) separator = '\n';
    }
    for (int node = first; node <= last && node < 64; ++node) nodes |= 1ul << node;
  }
  std::fclose(file);
  return nodes;
}

}  // namespace

void place_weights(void* at, size_t bytes) {
  madvise(at, bytes, MADV_HUGEPAGE);
  static const unsigned long nodes = online_nodes();
  const bool has_several = (nodes & (nodes - 1)) != 0;
  if (has_several) syscall(SYS_mbind, at, bytes, kInterleave, &nodes, 64ul, 0u);
}

}  // namespace fathom
