// Which unit of this processor multiplies bfloat16 numbers: the upper halves of floats, rounded to nearest.
#pragma once
#include <cstdint>

// Whether the compiler knows these units: from GCC 11 and Clang 12 on.
#if defined(__x86_64__) && \
    ((defined(__clang__) && __clang_major__ >= 12) || (!defined(__clang__) && __GNUC__ >= 11))
#define MIRL_BFLOAT16_UNITS
#endif

namespace mirl {

enum class Bfloat16Unit : int64_t {
  none,    // products are computed in float, as `tiles` would compute them
  vector,  // AVX512_BF16
  tiles    // AMX
};

// The best one, or the one that MIRL_CPU_BFLOAT16 names. The first call asks the system for AMX, so call it
// only where such numbers are multiplied. Only avx512 has units.
Bfloat16Unit bfloat16_unit();

// Set up this thread's tiles, all of 16 rows of 64 bytes, if AMX is in use; and give them back.
void begin_tiles();
void end_tiles();

}  // namespace mirl
