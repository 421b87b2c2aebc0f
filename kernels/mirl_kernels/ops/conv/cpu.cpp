#include "conv.h"

namespace MIRL_ISA {

void conv(MirlConv& a) { run_conv(a); }

}  // namespace MIRL_ISA
