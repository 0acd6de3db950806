// Which instruction set is used: the best that this processor has, or a lesser one that was named.
#include "isa.h"

#include <cstring>
#include <initializer_list>

namespace fathom {
namespace {

const Isa* chosen = nullptr;
bool is_decided = false;

}  // namespace

const Isa* isa() {
  if (!is_decided) {
    is_decided = true;
    for (const Isa* found : {isa_amx(), isa_avx512(), isa_avx2()})
      if (found != nullptr && chosen == nullptr) chosen = found;
  }
  return chosen;
}

bool choose_isa(const char* name) {
  for (const Isa* found : {isa_amx(), isa_avx512(), isa_avx2(), isa_amx_emulated()})
    if (found != nullptr && std::strcmp(found->name, name) == 0) {
      chosen = found;
      is_decided = true;
      return true;
    }
  return false;
}

}  // namespace fathom
