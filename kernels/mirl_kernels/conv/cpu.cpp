#include "conv.h"

namespace MIRL_ISA {

void conv(const MirlConv& a) { run_conv(a); }

}  // namespace MIRL_ISA
