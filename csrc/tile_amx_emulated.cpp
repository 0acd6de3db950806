// The kernels for AMX on emulated tiles. Only tests choose them, by name; they need AVX-512.
#define FATHOM_EMULATE_AMX
#include "tile_amx.cpp"
