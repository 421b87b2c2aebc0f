// What of this processor multiplies bfloat16 numbers: the upper halves of floats, rounded to nearest.
#pragma once
#include <cstdint>

namespace mirl {

enum class Bfloat16Unit : int64_t {
  none,    // products are computed in float, as `tiles` would compute them
  vector,  // AVX512_BF16
  tiles    // AMX
};

// The best one, or the one that MIRL_CPU_BFLOAT16 names. The first call asks the system for AMX, so that only
// those make it who multiply such numbers. Other instruction sets than avx512 have none.
Bfloat16Unit bfloat16_unit();

// Set up this thread's tiles, all of 16 rows of 64 bytes, if AMX is in use; and give them back.
void begin_tiles();
void end_tiles();

}  // namespace mirl
