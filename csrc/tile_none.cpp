// Instruction sets that have no kernels yet.
#include "isa.h"

namespace fathom {

const Isa* isa_amx() { return nullptr; }
const Isa* isa_avx2() { return nullptr; }

}  // namespace fathom
