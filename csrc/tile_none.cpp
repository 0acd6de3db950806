// Instruction sets that have no kernels yet.
#include "isa.h"

namespace fathom {

const Isa* isa_amx() { return nullptr; }

}  // namespace fathom
