// Where the buffers of a program go in one stretch of memory, for one input size. Buffers share memory: that
// of a buffer is used again after its last reader is done.
#pragma once
#include <vector>

#include "program.h"

namespace mirl {

// A stretch of memory: the first and the last step that use it, and its size in floats.
struct Lifetime {
  int64_t first, last, floats;

  bool overlaps(const Lifetime& other) const { return first <= other.last && other.first <= last; }
};

// Places stretches such that two that overlap in time do not overlap in space: the largest first, each at the
// lowest address that is free as long as it is in use. Returns the length of the memory.
int64_t place(const std::vector<Lifetime>& lifetimes, std::vector<int64_t>* starts);

struct InputSize {
  int64_t batch, height, width;

  int64_t height_at(int64_t level) const { return height >> level; }
  int64_t width_at(int64_t level) const { return width >> level; }
};

// Checks a size: sides that are multiples of the program's, and no more than memory can be addressed for.
MirlStatus check_size(const MirlProgram& program, const InputSize& size);

}  // namespace mirl

struct MirlPlan {
  const MirlProgram& program;
  const mirl::InputSize size;
  std::vector<int64_t> buffers, scratch;  // where each buffer, and each step's scratch memory, begins
  int64_t floats = 0;
  float* memory = nullptr;

  // Plans; allocates nothing.
  MirlPlan(const MirlProgram& program, const mirl::InputSize& size);
  ~MirlPlan();
  MirlPlan(const MirlPlan&) = delete;

  // A slice of a buffer as the kernels take it.
  MirlImage image(const mirl::ProgramSlice& slice) const;
  MirlSize size_of(const mirl::ProgramSlice& slice) const;

 private:
  int64_t scratch_floats(const mirl::ProgramStep& step) const;
};
