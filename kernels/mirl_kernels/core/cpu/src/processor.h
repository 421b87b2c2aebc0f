// What this processor can do, and the system allows.
#pragma once

namespace mirl {

bool has_avx2();    // with FMA
bool has_avx512();  // F, DQ, BW and VL
bool has_avx512_bf16();
bool has_amx();  // for bfloat16. It asks the system for the registers, which the process then keeps.

}  // namespace mirl
