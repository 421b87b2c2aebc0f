// The builds of the kernels, one for each instruction set.
#pragma once
#include "abi.h"

namespace mirl {

struct InstructionSet {
  const char* name;
  int64_t lanes;  // floats of a vector
  bool supported;
#define MIRL_MEMBER(op, Args) void (*op)(Args&);
  MIRL_OPS(MIRL_MEMBER)
#undef MIRL_MEMBER
};

// The build of that name, or null where it cannot run here. Without a name, the one in use: the best that
// there is, or what MIRL_CPU_ISA says.
const InstructionSet* instruction_set(const char* name);

}  // namespace mirl
